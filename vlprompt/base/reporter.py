"""What a run says on the screen: bars on a terminal, a few plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from vlprompt.base.shown import printable

WIDTH = 100  # of tables and lines that do not go to a terminal
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


class Reporter:
    """Tells how work gets on.

    Args:
        quiet: say nothing.
    """

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.console = make_console()

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, lines: int = 10) -> Iterator[Update]:
        """Yield ``update(done, total, note="")``; off a terminal it prints at most ``lines`` lines."""
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
            printed = 0

            def update(done: int, total: int, note: str = "") -> None:
                nonlocal printed
                printed = min(printed, done * lines // total)  # another stage begins anew
                if done * lines // total > printed:
                    printed = done * lines // total
                    self.say(f"{title} {done}/{total}  {note}".rstrip())

            yield update
