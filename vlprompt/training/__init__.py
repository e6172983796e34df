"""The training loop and its parts: feeds, optimisers, schedules, stages and their checkpoints."""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports

if TYPE_CHECKING:
    from vlprompt.base.settings import TrainOptions
    from vlprompt.training.optimizers import OPTIMIZERS
    from vlprompt.training.schedules import SCHEDULES
    from vlprompt.training.trainer import BestEpoch, Log, Trainer, train

__all__ = ["OPTIMIZERS", "SCHEDULES", "BestEpoch", "Log", "TrainOptions", "Trainer", "train"]

__getattr__, __dir__ = lazy_exports(__name__, formerly="vlprompt.training.trainer")
