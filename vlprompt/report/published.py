"""Published figures beside our results: the difference, the source of each figure, and what was not run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlprompt.base.settings_text import read_settings
from vlprompt.evaluation.averages import harmonic_mean
from vlprompt.learner.facts import Predicts, marked
from vlprompt.report.cells import METRICS, Cell, Rule, combine, first, h_of_averages, mean_of_h, tested
from vlprompt.report.groups import STUDY, ZERO_SHOT, Group, Key, say_shots
from vlprompt.report.tables import Column, Line, Section, Table, incomplete, labels, say_conditions, say_spread

FIGURES = Path(__file__).resolve().parents[1] / "published"
PROTOCOLS_WITH_FIGURES = ("base_to_new", "few_shot", "cross_dataset", "domain_generalization")
ACCURACY = METRICS["accuracy"]
MEAN_OF_H, NOT_STATED = "mean of the datasets' harmonic means", "not stated"
SIDES = ("base", "new")


@dataclass(frozen=True)
class Published:
    """One row of a published table; figures in percent.

    Attributes:
        protocol, method: what was run.
        variant: what distinguishes it from other rows of the method.
        source: where it was printed.
        evidence: ``released`` (the authors' own), ``rerun`` (others' runs), ``second-hand`` (copied from another table)
            or ``recalled`` (not read at its source).
        averages: by measure: ``base``, ``new``, ``harmonic_mean``; ``16 shots`` and so on; or ``average``.
        figures: by test, as ``Group.keys`` names it: ``("eurosat", "base", None)``.
        n_datasets: how many datasets the averages are over.
        mean_of_h: whether ``harmonic_mean`` is the mean of the datasets' harmonic means.
        predicts: what the predictions depended on; only results of the same kind are compared with the row.
    """

    protocol: str
    method: str
    variant: str = ""
    source: str = ""
    evidence: str = "released"
    averages: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[Key, float] = field(default_factory=dict)
    n_datasets: int = 0
    mean_of_h: bool = False
    predicts: Predicts = "alone"

    @property
    def name(self) -> str:
        """The method, marked if images were not predicted alone."""
        return marked(self.method, self.predicts)

    @property
    def origin(self) -> str:
        """Variant, source and evidence in a few words."""
        return ", ".join(filter(None, [self.variant, self.source, self.evidence]))


@dataclass(frozen=True)
class Figures:
    """A published table: its conditions, what it averages over, and its rows."""

    conditions: Mapping[str, Any]
    keys: tuple[Key, ...]
    rows: tuple[Published, ...]


@lru_cache
def load_published(protocol: str) -> Figures:
    """Return the published figures of one of ``PROTOCOLS_WITH_FIGURES``."""
    data = _read(protocol)
    conditions = data["conditions"]
    if protocol == "base_to_new":
        rows = [_base_new_row(row, conditions) for row in data["rows"]]
        rows += _by_dataset(protocol, data["by_dataset"], [(side, None) for side in SIDES])
    elif protocol == STUDY:
        rows = [_shots_row(row, conditions["datasets"], data["shots"]) for row in data["rows"]]
        rows += _by_dataset(protocol, data["by_dataset"], [("all", k) for k in data["shots"]])
    else:
        rows = [_target_row(protocol, row, data) for row in data["rows"]]
    keys = dict.fromkeys(key for row in rows for key in row.figures)
    return Figures(conditions, tuple(keys), tuple(rows))


def _read(name: str) -> dict[str, Any]:
    return read_settings(FIGURES / f"{name}.yaml", "published figures", shipped=True)


def _base_new_row(row: Mapping[str, Any], conditions: Mapping[str, Any]) -> Published:
    rule = row.get("average")
    return Published(
        "base_to_new",
        row["method"],
        row.get("variant", ""),
        row["source"],
        row["evidence"],
        # a harmonic mean by an unknown rule cannot be compared with ours
        {name: row[name] for name in (*SIDES, *(["harmonic_mean"] if rule != NOT_STATED else []))},
        n_datasets=row.get("datasets", conditions["datasets"]),
        mean_of_h=rule == MEAN_OF_H,
        predicts=row.get("predicts", "alone"),
    )


def _shots_row(row: Mapping[str, Any], n_datasets: int, shots: Sequence[int]) -> Published:
    values = {say_shots(k): value for k, value in zip(shots, row["accuracy"], strict=True) if value is not None}
    origin = (row["method"], row.get("variant", ""), row["source"], row["evidence"])
    return Published(STUDY, *origin, values, n_datasets=n_datasets, predicts=row.get("predicts", "alone"))


def _by_dataset(
    protocol: str, rows: Sequence[Mapping[str, Any]], tests: Sequence[tuple[str, Any]]
) -> Iterator[Published]:
    """Rows with figures of single datasets; a dataset's list has one value per test."""
    for row in rows:
        figures = {
            (dataset, *test): value
            for dataset, values in row["figures"].items()
            for test, value in zip(tests, values, strict=True)
        }
        yield Published(protocol, row["method"], "", row.get("source", ""), row["evidence"], figures=figures)


def _target_row(protocol: str, row: Mapping[str, Any], table: Mapping[str, Any]) -> Published:
    source, targets = table["conditions"]["source"], row.get("targets")
    values = {"source": row["source_accuracy"]}
    if targets:
        values |= zip(table["targets"], targets, strict=True)
    return Published(
        protocol,
        row["method"],
        row.get("variant", ""),
        row.get("source", table["source"]),
        row["evidence"],
        {"average": row["average"]} if "average" in row else {},
        {(source, target, None): value for target, value in values.items()},
    )


def average_published(*rows: Published) -> dict[str, float]:
    """Average the single figures of published rows of one method by the rules of our tables.

    Returns:
        ``base``, ``new``, ``harmonic_mean_of_averages`` and ``mean_of_harmonic_means``; ``16 shots`` and so on; or
        ``average`` of the targets.
    """
    figures = {key: value for row in rows for key, value in row.figures.items()}
    if rows[0].protocol == STUDY:
        shots = dict.fromkeys(k for _, _, k in figures)
        return {say_shots(k): statistics.fmean(v for key, v in figures.items() if key[2] == k) for k in shots}
    if rows[0].protocol != "base_to_new":
        return {"average": statistics.fmean(v for (_, target, _), v in figures.items() if target != "source")}
    base, new = ([value for (_, side, _), value in figures.items() if side == wanted] for wanted in SIDES)
    return {
        "base": statistics.fmean(base),
        "new": statistics.fmean(new),
        "harmonic_mean_of_averages": harmonic_mean(statistics.fmean(base), statistics.fmean(new)),
        "mean_of_harmonic_means": statistics.fmean(map(harmonic_mean, base, new)),
    }


def other_settings() -> list[Table]:
    """Return tables of published figures in settings that no protocol covers, such as test-time prompts."""
    return [_other_table(each) for each in _read("other_settings")["tables"]]


def _other_table(data: Mapping[str, Any]) -> Table:
    columns = [Column(name, ranked=False) for name in data["columns"]]
    averages = data.get("averages", {})
    if averages:
        columns.append(Column("mean as printed", ranked=False))

    def cell(value: float | None) -> Cell:
        return Cell(text="–") if value is None else Cell(value)

    lines = (
        Line(name, tuple(map(cell, [*values, *([averages.get(name)] if averages else [])])))
        for name, values in data["rows"].items()
    )
    caption = f"{data['conditions']}. {data['source']} ({data['evidence']})."
    section = Section("", tuple(lines))
    return Table(data["title"], "published", caption, tuple(columns), (section,), seeds=False)


def comparable(group: Group, figures: Figures) -> bool:
    """Whether a group's backbone, shots and training set are those of the published figures."""
    identity, published = group.conditions["identity"], figures.conditions
    architecture = str(identity.get("architecture", "")).removesuffix("-quickgelu")
    return (
        (architecture, identity.get("pretrained")) == (published["backbone"].replace("/", "-"), "openai")
        and group.conditions.get("shots") == published.get("shots")
        and group.conditions.get("source", published.get("source")) == published.get("source")
        and not {"limit", "templates", "own_split"} & group.conditions.keys()
        and group.conditions.get("split", "published") == "published"
    )


def published_tables(groups: Sequence[Group], methods: Sequence[str] | None, protocol: str | None) -> list[Table]:
    """Return one table per protocol with published figures beside ours.

    Args:
        groups: as ``collect`` returns them.
        methods: the methods to show; None for all.
        protocol: the protocol to show; None for those that there are results of, or all if there are no results.
    """
    ours = {group.protocol for group in groups}
    chosen = [name for name in PROTOCOLS_WITH_FIGURES if name in ours] or list(PROTOCOLS_WITH_FIGURES)
    if protocol is not None:
        chosen = [name for name in PROTOCOLS_WITH_FIGURES if name == protocol]
    return [_compare(name, [g for g in groups if g.protocol == name], methods) for name in chosen]


def _compare(protocol: str, groups: Sequence[Group], methods: Sequence[str] | None) -> Table:
    figures = load_published(protocol)
    rows = [row for row in figures.rows if not methods or row.method in methods]
    fitting = [group for group in groups if comparable(group, figures)]
    sections = [
        Section(heading, tuple(lines))
        for heading, name, keys, rule in _measures(protocol, figures)
        if (lines := list(_rows(rows, fitting, name, keys, rule)))
    ]
    columns = tuple(Column(name, ranked=False) for name in ("ours", "published", "difference"))
    c = figures.conditions
    where = [f"{c['backbone']} (openai)", say_shots(c["shots"]) if "shots" in c else ""]
    where += [f"from {c['source']}" if "source" in c else "", c["average"]]
    caption = f"{ACCURACY.title}; published: {', '.join(filter(None, where))}."
    title = f"{protocol.replace('_', ' ')} beside the published figures"
    table = Table(title, "published", caption, columns, tuple(sections), conditions={"backbone": c["backbone"]})
    for group in groups:
        if group not in fitting:
            table.notes.append(
                f"our results ({say_conditions(group)}) were obtained under other conditions than the published ones, "
                "so they are not compared"
            )
    table.notes += incomplete(table)
    table.caption += say_spread(table)
    return table


Measure = tuple[str, str | Key, Sequence[Key], Rule]


def _measures(protocol: str, figures: Figures) -> Iterator[Measure]:
    """What is compared: the heading, the name in the published row, our tests and the rule that combines them."""
    keys = figures.keys
    if protocol == "base_to_new":
        for i, side in enumerate(SIDES):
            yield f"{side}, mean over datasets", side, keys[i::2], statistics.fmean
        yield "harmonic mean", "harmonic_mean", keys, h_of_averages
    elif protocol == STUDY:
        for k in dict.fromkeys(key[2] for key in keys):
            over = [key for key in keys if key[2] == k]
            yield f"mean of {len(over)} datasets, {say_shots(k)}", say_shots(k), over, statistics.fmean
    else:
        targets = [key for key in keys if key[1] != "source"]
        yield f"mean of {len(targets)} targets", "average", targets, statistics.fmean
    for key in keys:
        if protocol == STUDY:
            heading = f"{key[0]}, {say_shots(key[2])}"
        else:
            heading = f"{key[0]}: {key[1]}" if protocol == "base_to_new" or key[1] == "source" else key[1]
        yield heading, key, [key], first


def _rows(
    rows: Sequence[Published], groups: Sequence[Group], name: str | Key, keys: Sequence[Key], rule: Rule
) -> Iterator[Line]:
    """The lines of one measure; of single tests only those that we have results of."""
    for row in rows:
        value = row.averages.get(name) if isinstance(name, str) else row.figures.get(name)
        if value is None:
            continue
        own_rule = mean_of_h if name == "harmonic_mean" and row.mean_of_h else rule
        for label, ours in _ours(row, groups, keys, own_rule):
            if ours.value is None and not isinstance(name, str):
                continue
            gap = Cell(ours.value - value, signed=True) if ours.value is not None else Cell()
            yield Line(f"{label} · {row.origin}", (ours, Cell(value), gap))


def _ours(row: Published, groups: Sequence[Group], keys: Sequence[Key], rule: Rule) -> list[tuple[str, Cell]]:
    """Our labels and numbers that a published row is compared with; one cell "not run" if there are none."""
    if row.n_datasets and row.n_datasets * 2 != len(keys) and row.n_datasets != len(keys):
        return [(row.name, Cell(text="not run", missing=f"over {row.n_datasets} datasets that are not all named"))]
    cells = [
        (label, combine([tested(group, label, key, ACCURACY) for key in keys], rule, group.seeds))
        for group in groups
        for label in labels(group)
        if group.predicts(label) == row.predicts
        and (label == row.method or (row.method != ZERO_SHOT and label.startswith(f"{row.method} (")))
    ]
    return cells or [(row.name, Cell(text="not run"))]
