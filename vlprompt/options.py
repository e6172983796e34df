"""How to optimise: options, with optimiser and schedule as parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vlprompt.learning import ParameterGroup
from vlprompt.optimizers import OPTIMIZERS, SGD
from vlprompt.parts import parse_part
from vlprompt.schedules import SCHEDULES, Dassl, Moment, Schedule


@dataclass
class TrainOptions:
    """How to optimise; the defaults are what the recipes of the CoOp lineage share.

    Attributes:
        epochs: passes over the training images.
        steps: steps in all, in place of epochs.
        lr: learning rate at the start of the schedule.
        batch_size: images a step; a short last batch is dropped unless it is the only one.
        optimizer: sgd, adam or adamw, with settings as in adamw(eps=1e-4).
        momentum: of SGD, without Nesterov.
        weight_decay: applied to every learnable. The published code takes it from Dassl's defaults; no recipe names it.
        schedule: of the learning rate, dassl (the published recipes'), cosine(warmup=1, floor=1e-5, per=step),
            constant or inverse(gamma=0.001, power=0.75).
        warmup_epochs: first epochs of dassl, at the constant rate warmup_lr; the cosine starts counting after them.
        warmup_lr: learning rate of that warm-up.
        clip_grad: largest norm of the whole gradient; null clips nothing.
        checkpoint_seconds: least time between two checkpoints; the last epoch always leaves one.
    """

    epochs: int = 50
    steps: int | None = None
    lr: float = 2e-3
    batch_size: int = 32
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "dassl"
    warmup_epochs: int = 1
    warmup_lr: float = 1e-5
    clip_grad: float | None = None
    checkpoint_seconds: float = 5.0


def learning_rate(epoch: int, lr: float, epochs: int, warmup_epochs: int = 1, warmup_lr: float = 1e-5) -> float:
    """Return the learning rate of a 0-based epoch, as the published code steps it; see ``schedules.Dassl``.

    >>> [round(learning_rate(e, 3.5e-3, 5), 6) for e in range(5)]
    [1e-05, 0.0035, 0.003166, 0.002291, 0.001209]
    """
    return Dassl(warmup_epochs, warmup_lr)(lr, Moment(epoch, epochs, 0, 0))


def make_schedule(options: TrainOptions) -> Schedule:
    """Return the schedule that ``options`` names."""
    if options.schedule == "dassl":
        return Dassl(options.warmup_epochs, options.warmup_lr)
    return parse_part(options.schedule, SCHEDULES)


def make_optimizer(groups: Sequence[ParameterGroup], options: TrainOptions) -> torch.optim.Optimizer:
    """Return the optimiser that ``options`` names, for fp32 parameters."""
    optimizer = parse_part(options.optimizer, OPTIMIZERS)
    if isinstance(optimizer, SGD):
        optimizer.arguments.setdefault("momentum", options.momentum)
    return optimizer(groups, options.lr, options.weight_decay)
