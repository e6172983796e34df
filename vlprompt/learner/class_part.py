"""Which of the classes that a learner is bound to are asked for: found by their names, whatever their places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vlprompt.clip.naming import same_names
from vlprompt.errors import VlpromptError


def told_places(learnt: Sequence[str], asked: Sequence[str], places: Sequence[int]) -> tuple[int, ...]:
    """The places of classes among those that were learnt as they are told beforehand; none if others stand there."""
    known = same_names(learnt)
    told = [known[place] for place in places if 0 <= place < len(known)]
    return tuple(places) if told == [*same_names(asked)] and len(told) == len(places) else ()


def find_part(learnt: Sequence[str], asked: Sequence[str], places: Sequence[int] = ()) -> tuple[int, ...] | None:
    """The places of classes that are asked for among those that were learnt; None if some of them were not.

    Args:
        learnt, asked: names, which are the same if prompts cannot tell them apart.
        places: where that is known beforehand; left unused if others stand there.

    Raises:
        VlpromptError: several learnt classes have a name, as two pairs of ImageNet's do, and nothing tells them apart.

    >>> find_part(["sea_lake", "okapi", "cat"], ["cat", "sea lake"])
    (2, 0)
    """
    known, wanted = same_names(learnt), same_names(asked)
    if told := told_places(learnt, asked, places):
        return told
    where: dict[str, list[int]] = {}
    for place, name in enumerate(known):
        where.setdefault(name, []).append(place)
    if not where.keys() >= {*wanted}:
        return None
    for name, count in Counter(wanted).items():
        if count != len(where[name]):
            raise VlpromptError(
                f"the class name '{name}' stands {len(where[name])} times among the classes that were learnt and "
                f"{count} times among those asked for, so that it does not tell which is meant: give them other names"
            )
    return tuple(where[name].pop(0) for name in wanted)
