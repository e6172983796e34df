"""Class names as prompts use them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from vlprompt.base.shown import HIDDEN


def natural_name(class_name: str) -> str:
    """A class name as prompts use it: without signs that nobody sees, accents composed, white space folded, no _."""
    seen = "".join(sign for sign in class_name if sign not in HIDDEN)
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", seen).replace("_", " ")).strip()


def same_names(class_names: Iterable[str]) -> tuple[str, ...]:
    """What two lists of class names have in common if prompts cannot tell them apart."""
    return tuple(map(natural_name, class_names))
