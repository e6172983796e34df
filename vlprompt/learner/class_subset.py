"""Finds, by name, the classes that are asked for among those that a learner is bound to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vlprompt.clip.naming import same_names
from vlprompt.errors import VlpromptError


def confirmed_places(learnt: Sequence[str], asked: Sequence[str], places: Sequence[int]) -> tuple[int, ...]:
    """The given positions of classes among those learnt; empty if other classes are at those positions."""
    known = same_names(learnt)
    found = [known[place] for place in places if 0 <= place < len(known)]
    return tuple(places) if found == [*same_names(asked)] and len(found) == len(places) else ()


def find_subset(learnt: Sequence[str], asked: Sequence[str], places: Sequence[int] = ()) -> tuple[int, ...] | None:
    """Positions of the classes asked for among those learnt; None if some of them were not learnt.

    Args:
        learnt, asked: names, considered equal if prompts cannot tell them apart.
        places: positions, if known in advance; ignored if other classes are there.

    Raises:
        VlpromptError: several learnt classes have the same name, as two pairs of ImageNet's do, and nothing tells them
            apart.

    >>> find_subset(["sea_lake", "okapi", "cat"], ["cat", "sea lake"])
    (2, 0)
    """
    known, wanted = same_names(learnt), same_names(asked)
    if confirmed := confirmed_places(learnt, asked, places):
        return confirmed
    where: dict[str, list[int]] = {}
    for place, name in enumerate(known):
        where.setdefault(name, []).append(place)
    if not where.keys() >= {*wanted}:
        return None
    for name, count in Counter(wanted).items():
        if count != len(where[name]):
            raise VlpromptError(
                f"the class name '{name}' occurs {len(where[name])} times among the classes that were learnt and "
                f"{count} times among those asked for, so it is ambiguous: give them other names"
            )
    return tuple(where[name].pop(0) for name in wanted)
