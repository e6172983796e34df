"""One run from settings to result, and matrices of them."""

from vlprompt.base.wiring import formerly
from vlprompt.runs.one import execute, is_seeded, reevaluate, run
from vlprompt.runs.settings import describe_keys, resolve

__all__ = ["describe_keys", "execute", "is_seeded", "reevaluate", "resolve", "run"]

__getattr__ = formerly("vlprompt.runs.one")
