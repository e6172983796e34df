"""A time that is to be kept: how it is written, what is left of it, and when a training would overrun it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from vlprompt.base.reporter import Pace
from vlprompt.base.settings import TrainOptions
from vlprompt.base.settings_text import show
from vlprompt.errors import VlpromptError

UNITS = {"s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}
PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")
GRACE = 1.0  # seconds of a training that say nothing of its pace yet
EARLY = 0.05  # or this share of the budget, if that is less


def seconds_of(text: float | str) -> float:
    """Seconds of a duration; a number is of seconds.

    >>> seconds_of("2min"), seconds_of("1h30m"), seconds_of("90 seconds"), seconds_of(45)
    (120.0, 5400.0, 90.0, 45.0)

    Raises:
        VlpromptError: it is no duration above 0.
    """
    given = str(text).strip().lower()
    parts = PART.findall(given)
    try:
        if parts and "".join(number + unit for number, unit in parts) == re.sub(r"\s", "", given):
            # only words have a plural: 5ms are no five minutes
            found = sum(
                float(number) * UNITS[unit.removesuffix("s") if len(unit) > 2 else unit] for number, unit in parts
            )
        else:
            found = float(given)
    except (KeyError, ValueError):
        found = 0.0
    if isinstance(text, bool) or not 0 < found < float("inf"):
        raise VlpromptError(f"budget must be a time above 0, as in 90s, 2min or 1h30min, not {show(text)}")
    return found


class OutOfBudget(Exception):
    """A training that would take longer than there is time; it is stopped, and nothing of it is used.

    Attributes:
        seconds: that it would have taken.
    """

    def __init__(self, seconds: float):
        super().__init__(seconds)
        self.seconds = seconds


class Budget:
    """A time that runs from now on.

    Args:
        seconds: of it.
        clock: seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]):
        self.seconds, self.clock, self.start = seconds, clock, clock()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.start

    @property
    def left(self) -> float:
        """Seconds until the end; below 0 behind it."""
        return self.seconds - self.spent

    def deadline(self, fits: float) -> Deadline:
        """What stops a training of which so many must fit into the time that is left."""
        return Deadline(self.left / fits, min(GRACE, EARLY * self.seconds), self.clock)


class Deadline:
    """Stops a training as soon as its pace tells that it will take too long.

    Args:
        seconds: that it may take.
        grace: seconds that tell nothing yet.
        clock: seconds.
    """

    def __init__(self, seconds: float, grace: float, clock: Callable[[], float]):
        self.seconds, self.grace, self.pace = seconds, grace, Pace(clock)

    def epoch(self, stage: str, options: TrainOptions, record: Mapping[str, Any]) -> None:
        """Called with each epoch's record."""
        self._judge(record["epoch"] + 1, options.epochs)

    def steps(self, stage: str, options: TrainOptions, done: float, means: Mapping[str, float]) -> None:
        """Called within an epoch, with the epochs that are done."""
        self._judge(done, options.epochs)

    def _judge(self, done: float, epochs: int) -> None:
        self.pace.update(done)
        more = self.pace.left(epochs)
        if more is not None and self.grace < self.pace.elapsed and self.pace.elapsed + more > self.seconds:
            raise OutOfBudget(self.pace.elapsed + more)
