"""Comparison of two methods on the same images and seeds, and the classes on which each gains or loses."""

from __future__ import annotations

from collections.abc import Sequence

from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.statistics import ClassChange, Comparison, class_changes, compare
from vlprompt.report.cells import Cell
from vlprompt.report.groups import Group, Key, Measured, say_shots
from vlprompt.report.tables import Column, Line, Section, Table, say_conditions

MOST = 8  # classes shown of those that gain most, and of those that lose most


def pair_tables(groups: Sequence[Group], pair: Sequence[str]) -> list[Table]:
    """Compare two methods in every group that has both: their difference with its interval, and the gains by class.

    Args:
        groups: as ``collect`` returns them.
        pair: the labels of two methods in the tables.

    Raises:
        VlpromptError: ``pair`` is not two different labels, there are no results of one of them, or they have no test
            and seed in common.
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
    """The comparison at each number of shots, and each method's gains by class; empty without a common test."""
    first, second = pair
    lines: list[Line] = []
    shots = list(dict.fromkeys(key[2] for key in group.keys))
    for k in shots:
        sides = [_shared_tests(group, a, b, k) for a, b in (pair, pair[::-1])]
        if sides[0]:
            ours, theirs = ({test.run.path: test.run.result for test in side} for side in sides)
            comparisons = compare(ours, theirs)
            seeds = tuple(sorted({test.seed for test in sides[0]}))
            lines += [_line(one, "" if k is None else say_shots(k), seeds) for one in comparisons]
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
        conditions=group.shown_conditions,
    )
    return [table, *(t for label in pair if (t := _changes(group, label)))]


def _line(one: Comparison, prefix: str, seeds: tuple[int, ...]) -> Line:
    alike = "every image alike"  # no bootstrap draw differs, so there is no interval to decide by
    cells = (
        Cell(one.difference, interval=one.interval, seeds=seeds, n_images=one.n_images, signed=True),
        Cell(text=alike if one.interval is None else "yes" if one.decided else "no"),
        Cell(text=f"{one.n_images:,}"),
    )
    return Line(" · ".join(filter(None, [prefix, one.target])), cells)


def _shared_tests(group: Group, label: str, other: str, shots: int | str | None) -> list[Measured]:
    """Tests of a method at a number of shots that the other method was also run on, with the same seed."""
    return [
        test
        for key, tests in group.values[label].items()
        if key[2] == shots
        for test in tests
        if test.seed in {t.seed for t in group.values[other].get(key, ())}
    ]


def changes(group: Group, label: str, key: Key) -> list[ClassChange]:
    """What a method gains or loses on each class of a test, over its seeds; empty for results of schema 1."""
    tests = group.values[label].get(key, [])
    if not tests or any(test.row.per_class is None for test in tests):
        return []
    return class_changes([test.run.result for test in tests], key[1])


def _changes(group: Group, label: str) -> Table | None:
    """The classes that gain and lose most over zero-shot, at the largest number of shots; None without any."""
    sections = []
    for key in group.telling_keys:
        classes = changes(group, label, key)
        shown = classes if len(classes) <= 2 * MOST else classes[:MOST] + classes[-MOST:]
        if shown:
            left = f", {len(classes) - len(shown)} classes between left out" if len(classes) > len(shown) else ""
            sections.append(Section(f"{key[0]}: {key[1]}{left}", tuple(map(_class_line, shown))))
    if not sections:
        return None
    shots = group.telling_keys[0][2]
    columns = tuple(Column(name, ranked=False) for name in ("zero-shot", label, "gain", "images"))
    title = f"classes on which {label} gains and loses: {group.title}" + (f", {say_shots(shots)}" if shots else "")
    caption = f"accuracy of a class (%), mean over seeds, against zero-shot; {say_conditions(group)}."
    return Table(title, "classes", caption, columns, tuple(sections), conditions=group.shown_conditions, seeds=False)


def _class_line(c: ClassChange) -> Line:
    return Line(c.name, (Cell(c.zero_shot), Cell(c.accuracy), Cell(c.gain, signed=True), Cell(text=str(c.n_images))))
