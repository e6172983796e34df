"""Creates the optimizer and the schedule that training options name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlprompt.base.parts import parse_part
from vlprompt.base.settings import TrainOptions
from vlprompt.learner.learning import ParameterGroup
from vlprompt.training.optimizers import OPTIMIZERS, SGD
from vlprompt.training.schedules import SCHEDULES, Dassl, Moment, Schedule


def learning_rate(epoch: int, lr: float, epochs: int, warmup_epochs: int = 1, warmup_lr: float = 1e-5) -> float:
    """Return the learning rate of a 0-based epoch in the published code's schedule; see ``schedules.Dassl``.

    >>> [round(learning_rate(e, 3.5e-3, 5), 6) for e in range(5)]
    [1e-05, 0.0035, 0.003166, 0.002291, 0.001209]
    """
    return Dassl(warmup_epochs, warmup_lr)(lr, Moment(epoch, epochs, 0, 0))


def make_schedule(options: TrainOptions) -> Schedule:
    """Create the schedule that the options name."""
    if options.schedule == "dassl":
        return Dassl(options.warmup_epochs, options.warmup_lr)
    return parse_part(options.schedule, SCHEDULES)


def make_optimizer(groups: Sequence[ParameterGroup], options: TrainOptions) -> torch.optim.Optimizer:
    """Create the optimizer that the options name, for fp32 parameters."""
    optimizer = parse_part(options.optimizer, OPTIMIZERS)
    if isinstance(optimizer, SGD):
        optimizer.arguments.setdefault("momentum", options.momentum)
    return optimizer(groups, options.lr, options.weight_decay)
