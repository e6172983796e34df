"""Class names as prompts use them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from vlprompt.base.shown import HIDDEN


def natural_name(class_name: str) -> str:
    """A class name as prompts use it: without signs that nobody sees, accents composed, white space folded, no _."""
    seen = "".join(sign for sign in class_name if sign not in HIDDEN)
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", seen).replace("_", " ")).strip()


def same_names(class_names: Iterable[str]) -> tuple[str, ...]:
    """What two lists of class names have in common if prompts cannot tell them apart."""
    return tuple(map(natural_name, class_names))


class ClassNames(tuple[str, ...]):
    """Class names, of which some go by others besides: a tuple of the C names, with all M by which they are called.

    What encodes class prompts encodes each of the M, and gives one feature a class: the mean of theirs.

    Args:
        names: one a class.
        others: class to its other names; keys count without case, and those of no class are left out.
        best: whether the M features are left as they are, for an image to be scored with each class's nearest.

    Attributes:
        every: the M names, a class's own first.
        owners: M places, whose name each is.

    >>> names = ClassNames(["cat", "car"], {"Cat": ["kitty", "cat"]})
    >>> names, names.every, names.owners
    (('cat', 'car'), ('cat', 'kitty', 'car'), (0, 0, 1))
    """

    every: tuple[str, ...]
    owners: tuple[int, ...]
    best: bool

    def __new__(
        cls, names: Iterable[str], others: Mapping[str, Sequence[str]] | None = None, best: bool = False
    ) -> ClassNames:
        """Find all names of each class; see the class."""
        made = super().__new__(cls, names)
        known = {natural_name(name).casefold(): more for name, more in (others or {}).items()}
        rows = [_different((name, *known.get(natural_name(name).casefold(), ()))) for name in made]
        made.every = tuple(name for row in rows for name in row)
        made.owners = tuple(owner for owner, row in enumerate(rows) for _ in row)
        made.best = best
        return made

    def __repr__(self) -> str:
        return repr(tuple(self))


def _different(names: Iterable[str]) -> list[str]:
    """Names that prompts can tell apart, in their order."""
    seen: dict[str, str] = {}
    for name in names:
        seen.setdefault(natural_name(name).casefold(), name)
    return list(seen.values())


def spoken(class_names: Sequence[str]) -> tuple[Sequence[str], tuple[int, ...] | None]:
    """All names by which classes are called, and whose each is; None if each class has one."""
    if isinstance(class_names, ClassNames) and len(class_names.every) > len(class_names):
        return class_names.every, class_names.owners
    return class_names, None
