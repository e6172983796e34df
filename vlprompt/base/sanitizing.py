"""Makes text from others, such as class names and paths, safe for terminals, spreadsheets, JSON and figures."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

HIDDEN = "\u200b\u2060\ufeff"  # invisible, and not needed by any script
FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"  # characters that start a formula in spreadsheets, with their wide forms


def printable(text: str, keep: str = "") -> str:
    r"""Escape control characters, so that they have no effect on a terminal.

    Args:
        text: any text.
        keep: control characters that are kept, such as line ends.

    >>> printable("red\x1b[31m fox")
    'red\\x1b[31m fox'
    """
    if text.isprintable():
        return text
    return "".join(sign if sign in keep or not _is_control(sign) else _written_out(sign) for sign in text)


def _is_control(sign: str) -> bool:
    # bidirectional embeddings and overrides can reverse what is read; joiners are kept, since scripts need them
    kind = unicodedata.category(sign)
    return kind in ("Cc", "Cs", "Zl", "Zp") or sign in HIDDEN or unicodedata.bidirectional(sign)[2:] in ("E", "O", "I")


def _written_out(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


def csv_cell(value: Any) -> Any:
    """Return a value for a CSV cell; text that a spreadsheet would run as a formula gets a leading apostrophe.

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
    """Escape the control characters beyond ASCII in JSON text, which JSON itself does not."""
    return re.sub(r"[\x7f-\x9f]", lambda sign: f"\\u{ord(sign[0]):04x}", text)


def figure_text(text: str) -> str:
    """Escape text for a figure, where dollar signs would start a formula."""
    return printable(text, keep="\n").replace("$", r"\$")
