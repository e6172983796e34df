"""How much the fast paths save, as ratios measured in one run."""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports

if TYPE_CHECKING:
    from vlprompt.bench.cases import Case, pairs
    from vlprompt.bench.measuring import measure
    from vlprompt.bench.steps import bench

__all__ = ["Case", "bench", "measure", "pairs"]

__getattr__, __dir__ = lazy_exports(__name__, formerly="vlprompt.bench.steps")
