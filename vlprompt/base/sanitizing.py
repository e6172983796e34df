"""Text of others, such as class names and paths, made fit to be shown: on a terminal, in a spreadsheet, in a figure."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

HIDDEN = "\u200b\u2060\ufeff"  # no width, and not needed by any script
FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"  # what spreadsheets take for the start of one, the wide forms too


def printable(text: str, keep: str = "") -> str:
    r"""Return text whose control characters are written out, so that a terminal obeys none.

    Args:
        text: any.
        keep: control characters that stay, such as line ends.

    >>> printable("red\x1b[31m fox")
    'red\\x1b[31m fox'
    """
    if text.isprintable():
        return text
    return "".join(sign if sign in keep or not _is_control(sign) else _written_out(sign) for sign in text)


def _is_control(sign: str) -> bool:
    # bidirectional marks that embed or override turn round what is read; joiners, which scripts need, are left
    kind = unicodedata.category(sign)
    return kind in ("Cc", "Cs", "Zl", "Zp") or sign in HIDDEN or unicodedata.bidirectional(sign)[2:] in ("E", "O", "I")


def _written_out(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


def csv_cell(value: Any) -> Any:
    """Return a value as a cell that no spreadsheet runs: text that would be a formula gets an apostrophe in front.

    >>> csv_cell("=HYPERLINK(1)"), csv_cell("-0.5"), csv_cell(-0.5)
    ("'=HYPERLINK(1)", '-0.5', -0.5)
    """
    if not isinstance(value, str):
        return value
    text = printable(value, keep="\n")
    start = text.lstrip()
    is_formula = start[:1] and start[0] in FORMULA and not re.fullmatch(r"[-+]?[\d.,]*", start)
    return f"'{text}" if is_formula else text


def json_line(text: str) -> str:
    """Return JSON whose control characters beyond ASCII, which JSON leaves as they are, are escaped too."""
    return re.sub(r"[\x7f-\x9f]", lambda sign: f"\\u{ord(sign[0]):04x}", text)


def figure_text(text: str) -> str:
    """Return text that a figure shows as it is: dollar signs start no formula."""
    return printable(text, keep="\n").replace("$", r"\$")
