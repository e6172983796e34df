"""What the fast paths are worth, as ratios in one run."""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import face

if TYPE_CHECKING:
    from vlprompt.bench.cases import Case, pairs
    from vlprompt.bench.measuring import measure
    from vlprompt.bench.steps import bench

__all__ = ["Case", "bench", "measure", "pairs"]

__getattr__, __dir__ = face(__name__, formerly="vlprompt.bench.steps")
