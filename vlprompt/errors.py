"""The exception that users see, warnings, and hints for misspelt names."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from types import FrameType

PACKAGES = ("vlprompt", "datasets_registry")


class VlpromptError(ValueError):
    """Bad input or an unmet requirement, explained in one sentence: what is wrong, where, and what to do.

    Commands print it as ``error: …`` without a traceback and exit with status 2.
    """


def warn(sentence: str) -> None:
    """Warn at the line that called this package, however deep the call: that is the line to change."""
    frame: FrameType | None = sys._getframe(1)
    level = outermost = 2
    while frame is not None:  # torch's and others' decorators may stand between our functions
        if frame.f_globals.get("__name__", "").partition(".")[0] in PACKAGES:
            outermost = level + 1
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, stacklevel=outermost)


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return a hint that lists the known names closest to ``name``, or those alone that have its very letters.

    >>> nearest("mapel", ["coop", "maple", "vpt"])
    'did you mean maple?'
    >>> nearest("n_cxt", ["n_att", "n_ctx"])
    'did you mean n_ctx?'
    >>> nearest("???", ["coop", "maple"])
    'known: coop, maple'
    """
    import difflib  # which commands that go well do not need

    known = sorted(known)
    close = difflib.get_close_matches(str(name).lower(), [k.lower() for k in known], n=limit, cutoff=0.6)
    by_lower = {k.lower(): k for k in known}
    # letters in another order are a slip of the fingers, beside which names that only look alike say nothing
    close = [c for c in close if sorted(c) == sorted(str(name).lower())] or close
    if close:
        return f"did you mean {' or '.join(by_lower[c] for c in close)}?"
    shown = ", ".join(known[:20])
    return f"known: {shown}" + (f", … ({len(known)} in all)" if len(known) > 20 else "")


def first_line(error: Exception, limit: int = 300) -> str:
    """The first line of what an error says, cut short in its middle."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= limit else f"{line[: limit // 2]} … {line[-limit // 2 :]}"
