"""Learning-rate schedules as parts: ``dassl``, ``cosine(warmup=1, floor=1e-5, per=step)``, ``inverse(gamma=1e-3)``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from typing_extensions import TypedDict, Unpack

from vlprompt.base.parts import Part
from vlprompt.base.registry import Registry
from vlprompt.errors import VlpromptError


class Warmup(TypedDict, total=False):
    """Arguments of every schedule's warm-up; see ``Schedule``."""

    warmup: int
    warmup_lr: float | None
    warmup_from: float | None


class Pace(Warmup, total=False):
    """Arguments of every schedule; see ``Schedule``."""

    per: Literal["epoch", "step"]


@dataclass(frozen=True)
class Moment:
    """A point in time of a training.

    Attributes:
        epoch: index of the epoch.
        epochs: number of epochs of the training.
        step: index of the step in the training.
        steps: number of steps of the training.
    """

    epoch: int
    epochs: int
    step: int
    steps: int


class Schedule(Part):
    """A learning rate over time.

    Args:
        warmup: epochs, or steps where ``per`` is ``step``, before the schedule starts counting.
        warmup_lr: constant rate of the warm-up; None rises linearly, starting with lr/warmup.
        warmup_from: rate at the first epoch or step of a linear warm-up, which continues with lr/warmup.
        per: unit of time, ``epoch`` or ``step``.
    """

    def __init__(
        self,
        warmup: int = 0,
        warmup_lr: float | None = None,
        warmup_from: float | None = None,
        per: Literal["epoch", "step"] = "epoch",
    ):
        if per not in ("epoch", "step"):
            raise VlpromptError(f"a schedule moves on per epoch or per step, not per '{per}'")
        self.warmup, self.warmup_lr, self.warmup_from, self.per = warmup, warmup_lr, warmup_from, per

    def __call__(self, lr: float, moment: Moment) -> float:
        """The learning rate at a moment, given the base rate ``lr``."""
        at, of = (moment.epoch, moment.epochs) if self.per == "epoch" else (moment.step, moment.steps)
        if at < self.warmup and self.warmup_from is not None:
            return max(self.warmup_from, lr * at / self.warmup)
        if at < self.warmup:
            return lr * (at + 1) / self.warmup if self.warmup_lr is None else self.warmup_lr
        return self.rate(lr, at - self.warmup, of)

    def rate(self, lr: float, at: int, of: int) -> float:
        """The learning rate ``at`` epochs or steps after the warm-up, out of ``of`` in total including the warm-up."""
        raise NotImplementedError


SCHEDULES: Registry[type[Schedule]] = Registry("schedule")


@SCHEDULES.register("dassl")
class Dassl(Schedule):
    """The schedule of the published code (Dassl): a constant warm-up, then a cosine over as many epochs as all.

    The cosine starts after the w epochs of warm-up but has period T, so the rate never reaches zero:
    lr·½(1 + cos(π(e - w)/T)). The warm-up is set by ``warmup_epochs`` and ``warmup_lr`` of the recipe.
    """

    def rate(self, lr: float, at: int, of: int) -> float:
        """½(1 + cos(π·at/of)) of the rate."""
        return lr * 0.5 * (1 + math.cos(math.pi * at / of))


@SCHEDULES.register("cosine")
class Cosine(Schedule):
    """A cosine from the base rate, after the warm-up, to a floor at the end.

    Args:
        floor: learning rate at the end.
        warmup, warmup_lr, warmup_from, per: as in ``Schedule``.
    """

    def __init__(self, floor: float = 0.0, **options: Unpack[Pace]):
        super().__init__(**options)
        self.floor = floor

    def rate(self, lr: float, at: int, of: int) -> float:
        """Half a cosine over the time after the warm-up."""
        return self.floor + (lr - self.floor) * 0.5 * (1 + math.cos(math.pi * at / max(1, of - self.warmup)))


@SCHEDULES.register("constant")
class Constant(Schedule):
    """The base rate, after the warm-up."""

    def rate(self, lr: float, at: int, of: int) -> float:
        """The rate."""
        return lr


@SCHEDULES.register("inverse")
class Inverse(Schedule):
    """Inverse decay, lr·(1 + γ·i)^-power, by default per step.

    Args:
        gamma: γ.
        power: exponent of the decay.
        warmup, warmup_lr, warmup_from, per: as in ``Schedule``.
    """

    def __init__(
        self,
        gamma: float = 1e-3,
        power: float = 0.75,
        per: Literal["epoch", "step"] = "step",
        **options: Unpack[Warmup],
    ):
        super().__init__(per=per, **options)
        self.gamma, self.power = gamma, power

    def rate(self, lr: float, at: int, of: int) -> float:
        """The decayed rate."""
        decayed: float = lr * (1 + self.gamma * at) ** -self.power
        return decayed
