"""Tables of groups of results: means over seeds, averages over datasets, and what is incomplete."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlprompt.data import list_collections
from vlprompt.errors import VlpromptError, nearest
from vlprompt.protocols import PROTOCOLS
from vlprompt.report.groups import STUDY, ZERO_SHOT, Group, Key, Run, say_shots
from vlprompt.results import harmonic_mean
from vlprompt.statistics import ONE_SEED, SPREAD, Statistic


@dataclass(frozen=True)
class Metric:
    """A number of ``Row``: its name there, zero-shot's, what it is called, and whether more is better."""

    learnt: str
    frozen: str
    title: str
    higher: bool = True


METRICS = {
    "accuracy": Metric("accuracy", "zero_shot", "top-1 accuracy (%)"),
    "macro_accuracy": Metric("macro_accuracy", "zero_shot_macro", "macro accuracy (%)"),
    "top5": Metric("top5", "zero_shot_top5", "top-5 accuracy (%)"),
    "ece": Metric("ece", "zero_shot_ece", "expected calibration error (%)", higher=False),
}


@dataclass(frozen=True)
class Cell:
    """A number of a table, or the words that stand in its place.

    Attributes:
        value: None if there is no number.
        text: in place of a number.
        std: population standard deviation over seeds; None if seeds do not matter, or for one seed.
        interval: 95% of it, over seeds as ``Statistic.interval`` has it or as the text of the table says; None for one
            seed, and where all seeds agree.
        seeds: that the number is the mean over.
        n_images: test images in all.
        missing: what the number lacks, in words; empty if it is complete.
        signed: show a plus sign.
        best: of its column and section.
        runs: that the number comes from.
    """

    value: float | None = None
    text: str = ""
    std: float | None = None
    interval: tuple[float, float] | None = None
    seeds: tuple[int, ...] = ()
    n_images: int = 0
    missing: str = ""
    signed: bool = False
    best: bool = False
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Column:
    """A column's heading, the test images behind it (None if they differ by row), and whether the best is marked."""

    heading: str
    n_images: int | None = None
    ranked: bool = True


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
    """What every format shows.

    Attributes:
        title: in a few words.
        kind: the protocol, or ``published``, ``pair``, ``classes``.
        caption: conditions and averaging rule.
        columns: as many as each row has cells.
        sections: at least one.
        notes: below the table.
        conditions: what all numbers have in common, by name.
        seeds: whether rows tell their number of seeds.
    """

    title: str
    kind: str
    caption: str
    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    notes: list[str] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    seeds: bool = True


@dataclass(frozen=True)
class Tested:
    """What a method scored on one test, by seed.

    Attributes:
        name: of the test, for what is said of it.
        values: by seed; one entry, whatever the seed, for what is not trained.
        n_images: of the test.
        runs: behind the values.
        fixed: whether seeds do not matter.
    """

    name: str
    values: dict[int, float]
    n_images: int
    runs: tuple[Run, ...]
    fixed: bool = False

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values.values())


Rule = Callable[[Sequence[float]], float]


def first(values: Sequence[float]) -> float:
    """The rule of a single test."""
    return values[0]


def h_of_averages(values: Sequence[float]) -> float:
    """Harmonic mean of two averages, as published (CoCoOp, MaPLe); base, new, base, new, …"""
    return harmonic_mean(statistics.fmean(values[0::2]), statistics.fmean(values[1::2]))


def mean_of_h(values: Sequence[float]) -> float:
    """Mean of the datasets' harmonic means, the other rule (PRE); base, new, base, new, …"""
    return statistics.fmean(map(harmonic_mean, values[0::2], values[1::2]))


def check_metric(name: str) -> Metric:
    """Return a metric by name."""
    if name not in METRICS:
        raise VlpromptError(f"unknown metric '{name}': {nearest(str(name), METRICS)}")
    return METRICS[name]


def tested(group: Group, label: str, key: Key, metric: Metric) -> Tested | None:
    """What a method of a group scored on a test; None if it was not run or did not measure that."""
    tests = group.values[label].get(key, []) if label != ZERO_SHOT else _any_tests(group, key)
    name = metric.frozen if label == ZERO_SHOT else metric.learnt
    values = {test.seed: getattr(test.row, name) for test in tests if getattr(test.row, name) is not None}
    if not values:
        return None
    runs = [test.run for test in tests]
    if label == ZERO_SHOT:
        runs = [run for run in runs if run.result.method == ZERO_SHOT]
    fixed = label == ZERO_SHOT or not any(run.result.has_seeds for run in runs)
    return Tested(f"{key[0]}, {key[1]}", values, tests[0].row.n_images, tuple(runs), fixed)


def _any_tests(group: Group, key: Key) -> list:
    """Tests of any method: zero-shot was scored in each."""
    return [test for cells in group.values.values() for test in cells.get(key, ())]


def combine(parts: Sequence[Tested | None], rule: Rule, expected: Sequence[int]) -> Cell:
    """Make one number of several tests: a rule over their means over seeds, as published.

    The spread over seeds is that of the rule applied to each seed by itself. A test that was not run leaves the number
    out, since an average over other tests is another number; a seed that was not run is told.

    Args:
        parts: the tests; None for one that was not run.
        rule: from one value a test to the number.
        expected: the seeds of a complete number.
    """
    there = [part for part in parts if part is not None]
    runs = tuple(run for part in there for run in part.runs)
    if len(there) < len(parts):
        text = f"{len(there)} of {len(parts)} run" if there else "not run"
        return Cell(text=text, missing=f"{len(parts) - len(there)} of {len(parts)} tests not run", runs=runs)
    value = rule([part.mean for part in there])
    n_images = sum(part.n_images for part in there)
    learnt = [part for part in there if not part.fixed]
    if not learnt:
        return Cell(value, n_images=n_images, runs=runs)
    shared = sorted(set.intersection(*(set(part.values) for part in learnt)))
    by_seed = [rule([part.mean if part.fixed else part.values[seed] for part in there]) for seed in shared]
    spread = replace(Statistic.of(by_seed), mean=value) if by_seed else None
    lacking = {part.name: sorted(set(expected) - set(part.values)) for part in learnt}
    return Cell(
        value,
        std=spread.std if spread else None,
        interval=spread.interval if spread else None,
        seeds=tuple(shared),
        n_images=n_images,
        missing="; ".join(f"{name}: no seed {', '.join(map(str, seeds))}" for name, seeds in lacking.items() if seeds),
        runs=runs,
    )


def make_tables(group: Group, metric: str = "accuracy") -> list[Table]:
    """Return a group's tables.

    Args:
        group: of ``collect``.
        metric: one of ``METRICS``.
    """
    measure = check_metric(metric)
    if group.protocol == STUDY:
        made = [_few_shot(group, measure)]
    elif PROTOCOLS.get(group.protocol).average == "harmonic_mean":
        made = _base_new(group, measure)
    else:
        made = [_targets(group, measure)]
    return [_finish(table, group, measure) for table in made]


def labels(group: Group) -> list[str]:
    """The rows of a group's tables: zero-shot, which every run measures, then the methods."""
    return [ZERO_SHOT, *(label for label in group.values if label != ZERO_SHOT)]


def _lines(group: Group, measure: Metric, columns: Iterable[tuple[Sequence[Key], Rule]]) -> tuple[Line, ...]:
    """A row a method that was run on any of the tests; a column is the tests that it needs and their rule."""
    columns, seeds = list(columns), group.seeds
    asked = {key for keys, _ in columns for key in keys}

    def line(label: str) -> Line:
        cells = (combine([tested(group, label, key, measure) for key in keys], rule, seeds) for keys, rule in columns)
        return Line(label, tuple(cells))

    return tuple(line(label) for label in labels(group) if label == ZERO_SHOT or asked & group.values[label].keys())


def _images(group: Group, key: Key) -> int:
    return next((test.row.n_images for test in _any_tests(group, key)), 0)


def _datasets(group: Group) -> list[str]:
    return list(dict.fromkeys(dataset for dataset, _, _ in group.keys))


def _averaged(datasets: Sequence[str]) -> dict[str, Sequence[str]]:
    """What means are over, by name: each collection that papers average over, where it is whole, and else all."""
    collections = {name: members for name, members in list_collections().items() if len(members) > 1}
    whole = {name: members for name, members in collections.items() if set(members) <= set(datasets)}
    largest = {name: m for name, m in whole.items() if not any(set(m) < set(other) for other in whole.values())}
    if not largest and len(datasets) > 1:
        return {f"mean of {len(datasets)} datasets": datasets}
    return {f"mean of the {len(members)} datasets of {name}": members for name, members in largest.items()}


def _base_new(group: Group, measure: Metric) -> list[Table]:
    datasets = _datasets(group)
    made = []
    for name, members in _averaged(datasets).items():
        sides = [[(dataset, side, None) for dataset in members] for side in ("base", "new")]
        pairs = [key for both in zip(*sides, strict=True) for key in both]
        rules = (
            (sides[0], statistics.fmean),
            (sides[1], statistics.fmean),
            (pairs, h_of_averages),
            (pairs, mean_of_h),
        )
        n = [sum(_images(group, key) for key in side) for side in sides]
        columns = (
            Column("base", n[0]),
            Column("new", n[1]),
            Column("H of averages", sum(n)),
            Column("mean of H", sum(n)),
        )
        section = Section("", _lines(group, measure, rules))
        made.append(Table(f"{group.title}: {name}", group.protocol, "", columns, (section,)))
    sections = []
    for dataset in datasets:
        base, new = (dataset, "base", None), (dataset, "new", None)
        lines = _lines(group, measure, (([base], first), ([new], first), ([base, new], h_of_averages)))
        sections.append(Section(f"{dataset}: {_images(group, base):,} base, {_images(group, new):,} new images", lines))
    columns = (Column("base"), Column("new"), Column("harmonic mean"))
    made.append(Table(group.title, group.protocol, "", columns, tuple(sections)))
    return made


def _few_shot(group: Group, measure: Metric) -> Table:
    datasets, keys = _datasets(group), group.keys
    shots = sorted({key[2] for key in keys}, key=lambda k: k if isinstance(k, int) else 10**9)
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
    """Add caption and notes, and mark what is best."""
    table.conditions = {key: value for key, value in group.conditions.items() if key != "identity"}
    table.caption = f"{measure.title}; {say_conditions(group)}. Rule: {PROTOCOLS.get(group.protocol).averaging}."
    table.caption += say_spread(table)
    table.notes = [*group.notes, *incomplete(table)]
    table.sections = tuple(mark_best(section, table.columns, measure.higher) for section in table.sections)
    return table


def say_conditions(group: Group) -> str:
    """What a group's results have in common, in a line."""
    c, identity = group.conditions, group.conditions["identity"]
    words = [c["backbone"], str(identity.get("precision", ""))]
    if "shots" in c:
        words.append(say_shots(c["shots"]))
    words.append("weights of the last epoch" if c["selection"] == "last" else f"selection {c['selection']}")
    if c.get("split", "published") != "published":
        words.append(f"{c['split']} split")
    if "templates" in c:
        words.append(f"templates {c['templates']}")
    if "limit" in c:
        words.append(f"at most {c['limit']:,} test images each")
    return ", ".join(word for word in words if word)


def incomplete(table: Table) -> list[str]:
    """Say what the marked numbers lack, a sentence a row."""
    lacking: dict[str, dict[str, dict[str, None]]] = {}  # row, what is missing, of which tests
    for section in table.sections:
        for line in section.lines:
            marked = [cell for cell in line.cells if cell.missing and cell.value is not None]
            for part in (part for cell in marked for part in cell.missing.split("; ")):
                test, _, what = part.rpartition(": ")
                lacking.setdefault(line.label, {}).setdefault(what, {})[test] = None
    return [f"† {label}: {'; '.join(map(_of_tests, what, what.values()))}" for label, what in lacking.items()]


def say_spread(table: Table) -> str:
    """Say what stands after ± and in brackets, if anything in a table was learnt with seeds."""
    cells = [cell for section in table.sections for line in section.lines for cell in line.cells]
    if any(cell.std is not None for cell in cells):
        return f" {SPREAD}"
    return f" {ONE_SEED}" if any(cell.seeds for cell in cells) else ""


def _of_tests(what: str, tests: Iterable[str]) -> str:
    tests = list(tests)
    return f"{what} of {' and '.join(tests)}" if len(tests) <= 2 else f"{what} of {len(tests)} tests"


def mark_best(section: Section, columns: Sequence[Column], higher: bool = True) -> Section:
    """Mark the best complete number of each ranked column, ties included, where there are at least two."""
    best: list[float | None] = []
    for i, column in enumerate(columns):
        values = [
            round(line.cells[i].value, 2)
            for line in section.lines
            if line.cells[i].value is not None and not line.cells[i].missing
        ]
        best.append((max if higher else min)(values) if column.ranked and len(values) > 1 else None)

    def marked(cell: Cell, top: float | None) -> Cell:
        wins = top is not None and cell.value is not None and not cell.missing and round(cell.value, 2) == top
        return replace(cell, best=True) if wins else cell

    lines = (Line(line.label, tuple(map(marked, line.cells, best))) for line in section.lines)
    return Section(section.heading, tuple(lines))
