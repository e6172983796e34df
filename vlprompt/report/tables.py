"""Tables of groups of results: means over seeds, averages over datasets, and notes on what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datasets_registry.catalog import list_collections
from vlprompt.evaluation.averages import SIDES, sides_of
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.evaluation.statistics import ONE_SEED, SPREAD
from vlprompt.learner.facts import Predicts
from vlprompt.learner.held_out import FIXED
from vlprompt.report.cells import (
    Cell,
    Metric,
    Rule,
    any_tests,
    check_metric,
    combine,
    first,
    h_of_averages,
    mean_of_h,
    tested,
)
from vlprompt.report.groups import STUDY, ZERO_SHOT, Group, Key, say_shots, shots_order


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: over its numbers.
        n_images: the number of test images behind them; None if it differs by row.
        ranked: whether the best number is marked.
        over: the heading that neighbouring columns share, if any.
    """

    heading: str
    n_images: int | None = None
    ranked: bool = True
    over: str = ""


@dataclass(frozen=True)
class Style:
    """How a table's numbers are written: the decimals, and whether with standard deviations and intervals."""

    decimals: int = 2
    std: bool = True
    interval: bool = True


# what a row of each kind of table is; a method in all others
ROWS = {"classes": "class", "failures": "run", "pair": "tested", "confusions": "class"}
LONG = Style()
PLAIN = Style(std=False, interval=False)


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    """Rows that are compared with each other, under a heading."""

    heading: str
    lines: tuple[Line, ...]


@dataclass
class Table:
    """A table of any kind, which every output format shows alike.

    Attributes:
        title: in a few words.
        kind: the protocol, or ``published``, ``pair``, ``classes``, ``robin_hood``, ``confusions``.
        caption: the conditions and the averaging rule.
        columns: one per cell of each row.
        sections: at least one.
        notes: below the table.
        conditions: by name, what all numbers have in common.
        seeds: whether each row states its number of seeds.
        style: how the numbers are written.
    """

    title: str
    kind: str
    caption: str
    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    notes: list[str] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    seeds: bool = True
    style: Style = LONG

    @property
    def rows(self) -> str:
        """What each row is, such as ``method`` or ``class``."""
        return ROWS.get(self.kind, "method")


def lines_of(table: Table) -> list[Line]:
    """All rows of a table."""
    return [line for section in table.sections for line in section.lines]


def make_tables(group: Group, metric: str = "accuracy") -> list[Table]:
    """Return a group's tables.

    Args:
        group: as ``collect`` returns it.
        metric: one of ``METRICS``.
    """
    measure = check_metric(metric)
    if group.protocol == STUDY:
        tables = [_few_shot(group, measure)]
    elif PROTOCOLS.get(group.protocol).average == "harmonic_mean":
        tables = _base_new(group, measure)
    else:
        tables = [_targets(group, measure)]
    return [_finish(table, group, measure) for table in tables]


def labels(group: Group) -> list[str]:
    """The labels of a group's rows: zero-shot, which every run measures, then the methods."""
    return [ZERO_SHOT, *(label for label in group.values if label != ZERO_SHOT)]


def _lines(group: Group, measure: Metric, columns: Iterable[tuple[Sequence[Key], Rule]]) -> tuple[Line, ...]:
    """One row per method that was run on any of the tests; a column is its tests and the rule that combines them."""
    columns, seeds = list(columns), group.seeds
    tests = {key for keys, _ in columns for key in keys}

    def line(label: str) -> Line:
        cells = (combine([tested(group, label, key, measure) for key in keys], rule, seeds) for keys, rule in columns)
        return Line(label, tuple(cells))

    return tuple(line(label) for label in labels(group) if label == ZERO_SHOT or tests & group.values[label].keys())


def _images(group: Group, key: Key) -> int:
    return next((test.row.n_images for test in any_tests(group, key)), 0)


def _datasets(group: Group) -> list[str]:
    return list(dict.fromkeys(dataset for dataset, _, _ in group.keys))


def _averaged(datasets: Sequence[str]) -> dict[str, Sequence[str]]:
    """The datasets of each mean by its name: the largest complete collections, or all datasets if none is complete."""
    collections = {name: members for name, members in list_collections().items() if len(members) > 1}
    whole = {name: members for name, members in collections.items() if set(members) <= set(datasets)}
    largest = {name: m for name, m in whole.items() if not any(set(m) < set(other) for other in whole.values())}
    if not largest and len(datasets) > 1:
        return {f"mean of {len(datasets)} datasets": datasets}
    return {f"mean of the {len(members)} datasets of {name}": members for name, members in largest.items()}


def _base_new(group: Group, measure: Metric) -> list[Table]:
    datasets, names = _datasets(group), sides_of(key[1] for key in group.keys) or SIDES[0]
    tables = []
    for name, members in _averaged(datasets).items():
        sides = [[(dataset, side, None) for dataset in members] for side in names]
        pairs = [key for both in zip(*sides, strict=True) for key in both]
        rules = (
            (sides[0], statistics.fmean),
            (sides[1], statistics.fmean),
            (pairs, h_of_averages),
            (pairs, mean_of_h),
        )
        n = [sum(_images(group, key) for key in side) for side in sides]
        columns: tuple[Column, ...] = (
            Column(names[0], n[0]),
            Column(names[1], n[1]),
            Column("H of averages", sum(n)),
            Column("mean of H", sum(n)),
        )
        section = Section("", _lines(group, measure, rules))
        tables.append(Table(f"{group.title}: {name}", group.protocol, "", columns, (section,)))
    sections = []
    for dataset in datasets:
        base, new = ((dataset, side, None) for side in names)
        lines = _lines(group, measure, (([base], first), ([new], first), ([base, new], h_of_averages)))
        count = f"{_images(group, base):,} {names[0]}, {_images(group, new):,} {names[1]} images"
        sections.append(Section(f"{dataset}: {count}", lines))
    columns = (Column(names[0]), Column(names[1]), Column("harmonic mean"))
    tables.append(Table(group.title, group.protocol, "", columns, tuple(sections)))
    return tables


def _few_shot(group: Group, measure: Metric) -> Table:
    datasets, keys = _datasets(group), group.keys
    shots = sorted({key[2] for key in keys}, key=shots_order)
    sections = []
    images = {dataset: max(_images(group, (dataset, "all", k)) for k in shots) for dataset in datasets}
    for name, members in _averaged(datasets).items():
        rules = [([(dataset, "all", k) for dataset in members], statistics.fmean) for k in shots]
        heading = f"{name}: {sum(images[dataset] for dataset in members):,} images"
        sections.append(Section(heading, _lines(group, measure, rules)))
    for dataset, n in images.items():
        lines = _lines(group, measure, [([(dataset, "all", k)], first) for k in shots])
        sections.append(Section(f"{dataset}: {n:,} images", lines))
    columns = tuple(Column(say_shots(k)) for k in shots)
    return Table(group.title, group.protocol, "", columns, tuple(sections))


def _targets(group: Group, measure: Metric) -> Table:
    keys = sorted(group.keys, key=lambda key: key[1] != "source")
    rules: list[tuple[Sequence[Key], Rule]] = [([key], first) for key in keys]
    columns = [Column(key[1], _images(group, key)) for key in keys]
    targets = [key for key in keys if key[1] != "source"]
    if len(targets) > 1:
        rules.append((targets, statistics.fmean))
        what = "domains" if "held_out" in group.conditions else "targets"
        columns.append(Column(f"mean of {len(targets)} {what}", sum(_images(group, key) for key in targets)))
    lines = _lines(group, measure, rules)
    return Table(group.title, group.protocol, "", tuple(columns), (Section("", lines),))


def _finish(table: Table, group: Group, measure: Metric) -> Table:
    """Add the conditions, caption and notes to a table, and mark its best numbers."""
    table.conditions = group.shown_conditions
    table.caption = f"{measure.title}; {say_conditions(group)}. Rule: {PROTOCOLS.get(group.protocol).averaging}."
    table.caption += say_spread(table)
    table.notes = [*group.notes, *incomplete(table), *say_parts(group)]
    table.sections = tuple(mark_best(section, table.columns, measure.higher) for section in table.sections)
    return table


def say_conditions(group: Group) -> str:
    """What a group's results have in common, in one line."""
    c, identity = group.conditions, group.conditions["identity"]
    words = [c["backbone"], str(identity.get("precision", ""))]
    if "shots" in c:
        words.append(say_shots(c["shots"]))
    words.append("weights of the last epoch" if c["selection"] == FIXED else f"selection {c['selection']}")
    if c.get("split", "published") != "published":
        words.append(f"{c['split']} split")
    if "own_split" in c:
        words.append("a split of one's own")
    if "templates" in c:
        words.append(f"templates {c['templates']}")
    if "region" in c:
        words.append(f"region={c['region']} of each image")
    if "limit" in c:
        words.append(f"at most {c['limit']:,} test images each")
    return ", ".join(word for word in words if word)


def say_parts(group: Group) -> list[str]:
    """One sentence per method that fuses several logits: the accuracy of each part by itself, and fused."""
    said = []
    for label, tests in group.values.items():
        rows = [test.row for found in tests.values() for test in found if test.row.parts]
        if rows:
            means = {name: statistics.fmean((row.parts or {})[name] for row in rows) for name in rows[0].parts or {}}
            parts = ", ".join(f"{name} {value:.2f}" for name, value in means.items())
            fused = statistics.fmean(row.accuracy for row in rows)
            said.append(
                f"{label} fuses parts of its logits for classes that it was trained on: by themselves, accuracy on "
                f"these tests is {parts}, and fused {fused:.2f}"
            )
    return said


def incomplete(table: Table) -> list[str]:
    """One sentence per row with numbers marked as incomplete: what is missing, of which tests."""
    lacking: dict[str, dict[str, dict[str, None]]] = {}  # row, what is missing, of which tests
    for section in table.sections:
        for line in section.lines:
            marked = [cell for cell in line.cells if cell.missing and cell.value is not None]
            for part in (part for cell in marked for part in cell.missing.split("; ")):
                test, _, what = part.rpartition(": ")
                lacking.setdefault(line.label, {}).setdefault(what, {})[test] = None
    return [f"† {label}: {'; '.join(map(_of_tests, what, what.values()))}" for label, what in lacking.items()]


def say_spread(table: Table) -> str:
    """A sentence on what ± and brackets mean; empty if nothing in the table was learnt with seeds."""
    cells = [cell for section in table.sections for line in section.lines for cell in line.cells]
    if any(cell.std is not None for cell in cells):
        return f" {SPREAD}"
    return f" {ONE_SEED}" if any(cell.seeds for cell in cells) else ""


def _of_tests(what: str, tests: Iterable[str]) -> str:
    tests = list(tests)
    return f"{what} of {' and '.join(tests)}" if len(tests) <= 2 else f"{what} of {len(tests)} tests"


def mark_best(section: Section, columns: Sequence[Column], higher: bool = True) -> Section:
    """Mark the best number of each ranked column, apart for each kind of what predictions depend on.

    Incomplete numbers do not compete, and one number alone is not marked.
    """
    best: list[dict[Predicts, float]] = []
    for i, column in enumerate(columns):
        values: dict[Predicts, list[float]] = {}  # joint predictions do not compete with those of single images
        for cell in (line.cells[i] for line in section.lines):
            if column.ranked and cell.value is not None and not cell.missing:
                values.setdefault(cell.predicts, []).append(round(cell.value, 2))
        best.append({kind: (max if higher else min)(each) for kind, each in values.items() if len(each) > 1})

    def marked(cell: Cell, top: Mapping[Predicts, float]) -> Cell:
        wins = cell.value is not None and not cell.missing and round(cell.value, 2) == top.get(cell.predicts)
        return replace(cell, best=True) if wins else cell

    lines = (Line(line.label, tuple(map(marked, line.cells, best))) for line in section.lines)
    return Section(section.heading, tuple(lines))
