"""The training loop and its parts: feeds, optimisers, schedules, stages and their checkpoints."""

from vlprompt.base.settings import TrainOptions
from vlprompt.base.wiring import formerly
from vlprompt.training.optimizers import OPTIMIZERS
from vlprompt.training.schedules import SCHEDULES
from vlprompt.training.trainer import BestEpoch, Log, Trainer, train

__all__ = ["OPTIMIZERS", "SCHEDULES", "BestEpoch", "Log", "TrainOptions", "Trainer", "train"]

__getattr__ = formerly("vlprompt.training.trainer")
