"""What a run says on the screen: bars on a terminal, a few plain lines elsewhere, nothing when quiet."""

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

WIDTH = 100  # of tables and lines that do not go to a terminal
LONG = 10.0  # seconds from which on whoever waits is told how long it will be
WARM_UP = (
    20.0  # seconds that a first piece of work may take without telling anything: imports and caches are part of it
)
LOOKED_BACK = 20  # reports of progress that the time left is worked out from: the pace may change
Update = Callable[..., None]


class _PlainConsole(Console):
    """A console that shows text as it is: no markup, no emoji by name, and control characters written out."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, keep="\n"), **options)


def make_console() -> Console:
    """Return a console on standard output: as wide as the terminal, or of a fixed width in a pipe or file."""
    console = _PlainConsole(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    return console


class Pace:
    """How fast work gets on, and when it will be done.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.start = clock, clock()
        self.seen: deque[tuple[float, float]] = deque([(self.start, 0.0)], maxlen=LOOKED_BACK)

    def update(self, done: float) -> None:
        """Take note of what is done; less than before is the start of other work."""
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
        """Seconds until ``total`` is done; None while nothing tells. The first piece counts while there is no other."""
        if len(self.seen) == 2 and self.elapsed < WARM_UP:
            return None
        (before, first), (now, done) = self.seen[1 if len(self.seen) > 2 else 0], self.seen[-1]
        return (now - before) / (done - first) * (total - done) if done > first else None

    def say_left(self, total: float) -> str:
        """The time left in words, of work that takes long; empty for what is done soon, and at the end."""
        left = self.left(total)
        return f"{duration(left)} left" if left and self.elapsed + left >= LONG else ""


def duration(seconds: float) -> str:
    """Seconds in words that are as exact as one cares.

    >>> duration(7.2), duration(200), duration(9000)
    ('7 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Reporter:
    """Tells how work gets on.

    Args:
        quiet: say nothing.
        clock: seconds, for the time left.
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
        """Yield ``update(done, total, note="")``; off a terminal it prints at most ``lines`` lines with the time left.

        One more tells of work that has shown nothing for ten seconds. ``done`` may be a fraction.
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
            printed, pace, told = 0, Pace(self.clock), False

            def update(done: float, total: int, note: str = "") -> None:
                nonlocal printed, told
                pace.update(done)
                due = int(done * lines // total)
                printed = min(printed, due)  # another stage begins anew
                early = not told and printed == 0 and pace.elapsed >= LONG
                if due > printed or early:
                    printed, told = due, True
                    left = pace.say_left(total)
                    self.say("  ".join(filter(None, [f"{title} {int(done)}/{total}", note, left])))

            yield update
