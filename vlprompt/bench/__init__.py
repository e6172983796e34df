"""What the fast paths are worth, as ratios in one run."""

from vlprompt.base.wiring import formerly
from vlprompt.bench.steps import Case, bench, measure, pairs

__all__ = ["Case", "bench", "measure", "pairs"]

__getattr__ = formerly("vlprompt.bench.steps")
