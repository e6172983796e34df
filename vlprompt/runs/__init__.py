"""Runs: from settings to a result, one at a time or as a sweep."""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports

if TYPE_CHECKING:
    from vlprompt.runs.inspecting import inspect_run
    from vlprompt.runs.one import execute, is_seeded, run, start
    from vlprompt.runs.scoring import reevaluate
    from vlprompt.runs.settings import describe_keys, resolve

__all__ = ["describe_keys", "execute", "inspect_run", "is_seeded", "reevaluate", "resolve", "run", "start"]

__getattr__, __dir__ = lazy_exports(__name__, formerly="vlprompt.runs.one")
