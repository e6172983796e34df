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
    """Where a training stands.

    Attributes:
        epoch: index of the epoch.
        epochs: of the whole training.
        step: index of the step in the whole training.
        steps: of the whole training.
    """

    epoch: int
    epochs: int
    step: int
    steps: int


class Schedule(Part):
    """A learning rate over time.

    Args:
        warmup: epochs, or steps where ``per`` is ``step``, before the schedule starts counting.
        warmup_lr: constant rate of the warm-up; None rises linearly, lr/warmup at its first epoch or step.
        warmup_from: what it rises from instead, a step later: this rate at first, then lr/warmup.
        per: what it moves on with, ``epoch`` or ``step``.
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
        """The learning rate at a moment, of ``lr`` at the start."""
        at, of = (moment.epoch, moment.epochs) if self.per == "epoch" else (moment.step, moment.steps)
        if at < self.warmup and self.warmup_from is not None:
            return max(self.warmup_from, lr * at / self.warmup)
        if at < self.warmup:
            return lr * (at + 1) / self.warmup if self.warmup_lr is None else self.warmup_lr
        return self.rate(lr, at - self.warmup, of)

    def rate(self, lr: float, at: int, of: int) -> float:
        """The learning rate ``at`` epochs or steps behind the warm-up, in a training ``of`` so many with it."""
        raise NotImplementedError


SCHEDULES: Registry[type[Schedule]] = Registry("schedule")


@SCHEDULES.register("dassl")
class Dassl(Schedule):
    """As the published code (Dassl) steps it: a constant warm-up, then a cosine that keeps its period of all epochs.

    It starts counting from zero behind the warm-up and so never reaches zero: lr·½(1 + cos(π(e - w)/T)). Warm-up
    epochs and rate are ``warmup_epochs`` and ``warmup_lr`` of the recipe.
    """

    def rate(self, lr: float, at: int, of: int) -> float:
        """½(1 + cos(π·at/of)) of the rate."""
        return lr * 0.5 * (1 + math.cos(math.pi * at / of))


@SCHEDULES.register("cosine")
class Cosine(Schedule):
    """A cosine from the rate, behind the warm-up, to a floor, at the end.

    Args:
        floor: learning rate that it ends at.
        warmup, warmup_lr, warmup_from, per: as in ``Schedule``.
    """

    def __init__(self, floor: float = 0.0, **options: Unpack[Pace]):
        super().__init__(**options)
        self.floor = floor

    def rate(self, lr: float, at: int, of: int) -> float:
        """Half a cosine over what follows the warm-up."""
        return self.floor + (lr - self.floor) * 0.5 * (1 + math.cos(math.pi * at / max(1, of - self.warmup)))


@SCHEDULES.register("constant")
class Constant(Schedule):
    """The rate itself, behind the warm-up."""

    def rate(self, lr: float, at: int, of: int) -> float:
        """The rate."""
        return lr


@SCHEDULES.register("inverse")
class Inverse(Schedule):
    """Inverse decay, lr·(1 + γ·i)^-power, per step unless told otherwise.

    Args:
        gamma: γ.
        power: of the decay.
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
