"""Reports progress: bars on a terminal, a few plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from vlprompt.base.sanitizing import printable

WIDTH = 100  # columns of output that does not go to a terminal
LONG = 10.0  # seconds of work from which on the time left is reported
WARM_UP = (
    20.0  # seconds that a first piece of work may take without telling anything: imports and caches are part of it
)
LOOKED_BACK = 20  # latest updates that the time left is estimated from, since the pace may change
Update = Callable[..., None]


class _PlainConsole(Console):
    """A console that prints text literally: without markup or named emoji, and with control characters escaped."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, keep="\n"), **options)


def make_console() -> Console:
    """Return a console on standard output, as wide as the terminal, or of a fixed width for pipes and files."""
    console = _PlainConsole(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    return console


class Pace:
    """Estimates when work will be done.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.start = clock, clock()
        self.seen: deque[tuple[float, float]] = deque([(self.start, 0.0)], maxlen=LOOKED_BACK)

    def update(self, done: float) -> None:
        """Record how much is done; less than before means that other work has started."""
        now = self.clock()
        if done < self.seen[-1][1]:
            self.start = now
            self.seen.clear()
        self.seen.append((now, done))

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.seen[-1][0] - self.start

    def left(self, total: float) -> float | None:
        """Estimated seconds until ``total`` is done; None as long as there is nothing to estimate it from."""
        if len(self.seen) == 2 and self.elapsed < WARM_UP:
            return None
        (before, first), (now, done) = self.seen[1 if len(self.seen) > 2 else 0], self.seen[-1]
        return (now - before) / (done - first) * (total - done) if done > first else None

    def say_left(self, total: float) -> str:
        """The time left in words, for work that takes long; empty for short work and at the end."""
        left = self.left(total)
        return f"{duration(left)} left" if left and self.elapsed + left >= LONG else ""


def duration(seconds: float) -> str:
    """A time in seconds as text, rounded for people.

    >>> duration(7.2), duration(200), duration(9000)
    ('7 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Reporter:
    """Prints messages and progress.

    Args:
        quiet: print nothing.
        clock: returns seconds, to estimate the time left.
    """

    def __init__(self, quiet: bool = False, clock: Callable[[], float] = time.monotonic):
        self.quiet, self.clock = quiet, clock
        self.console = make_console()

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, lines: int = 10) -> Iterator[Update]:
        """Yield ``update(done, total, note="")``, which shows a progress bar on a terminal.

        Elsewhere it prints at most ``lines`` lines with the time left, and one more if nothing was printed for ten
        seconds. ``done`` may be a fraction.
        """
        if self.quiet:
            yield lambda done, total, note="": None
        elif self.console.is_terminal:
            title_column, note_column = (
                TextColumn(form, markup=False) for form in ("{task.description}", "{task.fields[note]}")
            )
            columns = title_column, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note_column
            with Progress(*columns, console=self.console, transient=True) as bars:
                task = bars.add_task(printable(title), total=None, note="")
                yield lambda done, total, note="": bars.update(task, completed=done, total=total, note=printable(note))
        else:
            printed, pace, shown = 0, Pace(self.clock), False

            def update(done: float, total: int, note: str = "") -> None:
                nonlocal printed, shown
                pace.update(done)
                due = int(done * lines // total)
                printed = min(printed, due)  # another stage starts from 0 again
                early = not shown and printed == 0 and pace.elapsed >= LONG
                if due > printed or early:
                    printed, shown = due, True
                    left = pace.say_left(total)
                    self.say("  ".join(filter(None, [f"{title} {int(done)}/{total}", note, left])))

            yield update
