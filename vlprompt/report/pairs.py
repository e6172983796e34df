"""Two methods on the same images and seeds, and the classes on which each gains and loses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.statistics import ClassChange, Comparison, class_changes, compare
from vlprompt.report.cells import Cell
from vlprompt.report.groups import Group, Key, Measured, say_shots
from vlprompt.report.tables import Column, Line, Section, Table, say_conditions

MOST = 8  # classes shown at either end


def pair_tables(groups: Sequence[Group], pair: Sequence[str]) -> list[Table]:
    """Compare two methods in every group that has both: the difference with its interval, and gains of classes.

    Args:
        groups: of ``collect``.
        pair: two names of methods, as the tables have them.

    Raises:
        VlpromptError: not two names, or no group has both with the same datasets and seeds.
    """
    if len(pair) != 2 or pair[0] == pair[1]:
        raise VlpromptError(f"pair takes two methods, such as pair=coop,kgcoop, not {','.join(map(str, pair))!r}")
    for name in pair:
        known = {label for group in groups for label in group.values}
        if name not in known:
            raise VlpromptError(f"there are no results of '{name}' to compare: {nearest(name, known)}")
    tables = [table for group in groups if set(pair) <= group.values.keys() for table in _of_group(group, pair)]
    if not tables:
        raise VlpromptError(f"{pair[0]} and {pair[1]} have no test and seed in common under the same conditions")
    return tables


def _of_group(group: Group, pair: Sequence[str]) -> list[Table]:
    first, second = pair
    lines: list[Line] = []
    shots = list(dict.fromkeys(key[2] for key in group.keys))
    for k in shots:
        sides = [_shared_tests(group, a, b, k) for a, b in (pair, pair[::-1])]
        if sides[0]:
            ours, theirs = ({test.run.path: test.run.result for test in side} for side in sides)
            found = compare(ours, theirs)
            seeds = tuple(sorted({test.seed for test in sides[0]}))
            lines += [_line(one, "" if k is None else say_shots(k), seeds) for one in found]
    if not lines:
        return []
    columns = (
        Column("difference", ranked=False),
        Column("decided", ranked=False),
        Column("images", ranked=False),
    )
    table = Table(
        f"{first} less {second}: {group.title}",
        "pair",
        f"percentage points of top-1 accuracy; {say_conditions(group)}. Interval: 95%, bootstrap over images in pairs, "
        "so within -100 and 100; decided: whether it excludes zero.",
        columns,
        (Section("", tuple(lines)),),
        conditions=_plain(group),
    )
    return [table, *(t for label in pair if (t := _changes(group, label)))]


def _plain(group: Group) -> dict[str, Any]:
    return {key: value for key, value in group.conditions.items() if key != "identity"}


def _line(one: Comparison, prefix: str, seeds: tuple[int, ...]) -> Line:
    alike = "every image alike"  # drawn again they say the same, so that there is no interval to decide by
    cells = (
        Cell(one.difference, interval=one.interval, seeds=seeds, n_images=one.n_images, signed=True),
        Cell(text=alike if one.interval is None else "yes" if one.decided else "no"),
        Cell(text=f"{one.n_images:,}"),
    )
    return Line(" · ".join(filter(None, [prefix, one.target])), cells)


def _shared_tests(group: Group, label: str, other: str, shots: int | str | None) -> list[Measured]:
    """Tests of a method that the other has done too, with the same seed."""
    return [
        test
        for key, tests in group.values[label].items()
        if key[2] == shots
        for test in tests
        if test.seed in {t.seed for t in group.values[other].get(key, ())}
    ]


def changes(group: Group, label: str, key: Key) -> list[ClassChange]:
    """What a method gains and loses on each class of a test, over its seeds; empty for results of schema 1."""
    tests = group.values[label].get(key, [])
    if not tests or any(test.row.per_class is None for test in tests):
        return []
    return class_changes([test.run.result for test in tests], key[1])


def _changes(group: Group, label: str) -> Table | None:
    """The classes at either end of the gains over zero-shot; of several shots, the most."""
    sections = []
    for key in group.telling_keys:
        found = changes(group, label, key)
        shown = found if len(found) <= 2 * MOST else found[:MOST] + found[-MOST:]
        if shown:
            left = f", {len(found) - len(shown)} classes between left out" if len(found) > len(shown) else ""
            sections.append(Section(f"{key[0]}: {key[1]}{left}", tuple(map(_class_line, shown))))
    if not sections:
        return None
    shots = group.telling_keys[0][2]
    columns = tuple(Column(name, ranked=False) for name in ("zero-shot", label, "gain", "images"))
    title = f"classes on which {label} gains and loses: {group.title}" + (f", {say_shots(shots)}" if shots else "")
    caption = f"accuracy of a class (%), mean over seeds, against zero-shot; {say_conditions(group)}."
    return Table(title, "classes", caption, columns, tuple(sections), conditions=_plain(group), seeds=False)


def _class_line(c: ClassChange) -> Line:
    return Line(c.name, (Cell(c.zero_shot), Cell(c.accuracy), Cell(c.gain, signed=True), Cell(text=str(c.n_images))))
