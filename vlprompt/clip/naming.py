"""Class names as prompts use them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from vlprompt.base.sanitizing import HIDDEN


def natural_name(class_name: str) -> str:
    """A class name as prompts use it: no invisible characters or underscores, composed accents, single spaces."""
    seen = "".join(sign for sign in class_name if sign not in HIDDEN)
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", seen).replace("_", " ")).strip()


def same_names(class_names: Iterable[str]) -> tuple[str, ...]:
    """Class names in a form that is equal for two lists if and only if prompts cannot tell them apart."""
    return tuple(map(natural_name, class_names))


class ClassNames(tuple[str, ...]):
    """Names of C classes, some of which have several: a tuple of the C main names that also holds all M names.

    Each of the M names is encoded as a prompt; the feature of a class is the mean over its names.

    Args:
        names: the main name of each class.
        others: additional names by class. Keys are compared without case; keys that are no class are ignored.
        best: keep all M features instead of their means, so that an image can be scored with the most similar name of
            each class.

    Attributes:
        every: the M names; each class's main name comes first.
        owners: the index of each name's class (M,).

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
        """Collect all names of each class; arguments as for the class."""
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
    """The names without those that prompts cannot tell from an earlier one."""
    seen: dict[str, str] = {}
    for name in names:
        seen.setdefault(natural_name(name).casefold(), name)
    return list(seen.values())


def all_names(class_names: Sequence[str]) -> Sequence[str]:
    """All M names of C classes, in the order of the classes."""
    return names_and_owners(class_names)[0]


def names_and_owners(class_names: Sequence[str]) -> tuple[Sequence[str], tuple[int, ...] | None]:
    """All M names of C classes, and the index of each name's class (M,); None if every class has a single name."""
    if isinstance(class_names, ClassNames) and len(class_names.every) > len(class_names):
        return class_names.every, class_names.owners
    return class_names, None
