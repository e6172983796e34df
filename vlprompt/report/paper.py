"""The tables as papers print them: methods in rows, datasets in columns, the best in bold and the second underlined.

Base-to-new has three columns per dataset (base, new and harmonic mean), few-shot one per dataset and number of shots,
each after the average over datasets. Cross-dataset and domain generalization have one column per target, then their
average.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets_registry.catalog import list_collections
from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.averages import SIDES, sides_of
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.evaluation.significance import LEVEL
from vlprompt.report.cells import METRICS, Cell, Metric, Rule, check_metric, combine, first, h_of_averages, tested
from vlprompt.report.groups import STUDY, Group, Key, say_shots, shots_order
from vlprompt.report.marks import with_gains, with_marks, with_second
from vlprompt.report.names import display_dataset, display_method
from vlprompt.report.published import Figures, Published, comparable, load_published
from vlprompt.report.tables import Column, Line, Section, Style, Table, incomplete, labels, mark_best, say_conditions

SPREADS = ("none", "std", "interval")
COLUMNS = ("all", "average")
BEST_EVIDENCE = ("released", "rerun", "second-hand", "recalled")


@dataclass(frozen=True)
class Layout:
    """Options of tables in the layout of papers.

    Attributes:
        metric: one of ``METRICS``.
        decimals: of every number.
        spread: what stands beside a number: ``none``, ``std`` (population, over seeds) or ``interval`` (95%).
        gain: the method that all others' gains are over, shown as arrows with points; empty for no gains.
        significance: the method that all others are tested against on the same images and seeds; empty for no test.
        published: add rows of published figures, marked as such.
        columns: ``all``, or ``average`` for the averages over datasets or targets alone.

    Raises:
        VlpromptError: a value is not one of these, or ``significance`` is asked for with another metric than accuracy.
    """

    metric: str = "accuracy"
    decimals: int = 2
    spread: str = "none"
    gain: str = ""
    significance: str = ""
    published: bool = False
    columns: str = "all"

    def __post_init__(self) -> None:
        check_metric(self.metric)
        if self.spread not in SPREADS:
            raise VlpromptError(f"spread takes {', '.join(SPREADS)}, not '{self.spread}'")
        if self.columns not in COLUMNS:
            raise VlpromptError(f"columns takes {', '.join(COLUMNS)}, not '{self.columns}'")
        if isinstance(self.decimals, bool) or self.decimals not in range(5):
            raise VlpromptError(f"decimals takes a number from 0 to 4, not {self.decimals!r}")
        if self.significance and self.metric != "accuracy":
            raise VlpromptError(f"significance is of accuracy, not of {self.metric}: leave metric out")

    @property
    def measure(self) -> Metric:
        """The metric that ``metric`` names."""
        return METRICS[self.metric]


@dataclass(frozen=True)
class Block:
    """Columns under one heading: of each its name, the tests it is computed from, and the rule that combines them."""

    heading: str
    columns: tuple[tuple[str, tuple[Key, ...], Rule], ...]


def paper_tables(
    groups: Sequence[Group], layout: Layout, chosen: Sequence[str] | None, protocol: str | None
) -> list[Table]:
    """Return one table per group and, if published figures are asked for, one per protocol without comparable results.

    Args:
        groups: as ``collect`` returns them.
        layout: the options.
        chosen: the published rows' methods; None for all.
        protocol: the protocol of tables with published figures alone; None for those of the groups.

    Raises:
        VlpromptError: there are no results of the method that ``gain`` or ``significance`` names.
    """
    known = {label for group in groups for label in labels(group)}
    for name, setting in ((layout.gain, "gain"), (layout.significance, "significance")):
        if name and name not in known and not (layout.published and setting == "gain"):
            raise VlpromptError(f"{setting}={name}: there are no results of '{name}': {nearest(name, known)}")
    tables, compared = [], set()  # protocols whose published figures stand beside ours
    for group in groups:
        figures = _figures(group.protocol) if layout.published else None
        fits = figures is not None and comparable(group, figures)
        tables.append(_of_group(group, layout, figures if fits else None, chosen))
        compared |= {group.protocol} if fits else set()
    if layout.published:
        asked = dict.fromkeys(group.protocol for group in groups) or WITH_FIGURES
        for name in [protocol] if protocol else asked:
            figures = _figures(name) if name not in compared else None
            if figures is not None:
                tables.append(_of_figures(name, figures, layout, chosen))
    return tables


WITH_FIGURES = ("base_to_new", "few_shot", "cross_dataset", "domain_generalization")


def _figures(protocol: str) -> Figures | None:
    return load_published(protocol) if protocol in WITH_FIGURES else None


def _of_group(group: Group, layout: Layout, figures: Figures | None, chosen: Sequence[str] | None) -> Table:
    blocks = shown(make_blocks(group.protocol, group.keys), layout)
    lines = [(label, _cells(group, label, blocks, layout.measure)) for label in labels(group)]
    lines = [(label, cells) for label, cells in lines if any(cell.value is not None for cell in cells)]
    if layout.significance:
        lines = with_marks(
            group, [column[1:] for block in blocks for column in block.columns], lines, layout.significance
        )
    rows = {label: Line(display_method(label), tuple(cells)) for label, cells in lines}
    if figures:
        rows |= _published_rows(figures, blocks, chosen)
    table = _table(group.protocol, blocks, rows, layout, f"{_named(group)}, {say_conditions(group)}")
    table.conditions = group.shown_conditions
    table.notes = [*group.notes, *incomplete(table), *_sources(figures, chosen)]
    if layout.significance:
        table.notes.append(
            f"∗ differs from {display_method(layout.significance)} at {LEVEL:.0%} by a paired bootstrap over images "
            "and seeds, with Holm's correction over the table"
        )
    return table


def _named(group: Group) -> str:
    source = group.conditions.get("source")
    return group.protocol.replace("_", " ") + (f" from {display_dataset(source)}" if source else "")


def _of_figures(protocol: str, figures: Figures, layout: Layout, chosen: Sequence[str] | None) -> Table:
    blocks = shown(make_blocks(protocol, figures.keys), layout)
    c = figures.conditions
    conditions = ", ".join(filter(None, [c["backbone"], say_shots(c["shots"]) if "shots" in c else ""]))
    rows = _published_rows(figures, blocks, chosen, alone=True)
    table = _table(protocol, blocks, rows, layout, f"{protocol.replace('_', ' ')}, published figures, {conditions}")
    table.conditions = {"backbone": c["backbone"]}
    table.notes = _sources(figures, chosen)
    return table


def make_blocks(protocol: str, keys: Sequence[Key]) -> list[Block]:
    """Return the blocks of columns for a protocol's tests; the average over several datasets comes first."""
    datasets = _in_order(dict.fromkeys(key[0] for key in keys))
    if protocol == STUDY:
        shots = sorted({key[2] for key in keys}, key=shots_order)

        def of(chosen: Sequence[str]) -> tuple[tuple[str, tuple[Key, ...], Rule], ...]:
            return tuple((str(k), tuple((d, "all", k) for d in chosen), _mean(chosen)) for k in shots)

        return [Block(heading, of(chosen)) for heading, chosen in _headed(datasets)]
    if PROTOCOLS.get(protocol).average == "harmonic_mean":
        sides = sides_of(key[1] for key in keys) or SIDES[0]
        return [Block(heading, _sided(sides, chosen)) for heading, chosen in _headed(datasets)]
    sources = [key for key in keys if key[1] == "source"]
    targets = sorted((key for key in keys if key[1] != "source"), key=lambda key: _rank(key[1]))
    blocks = [Block("source", tuple((display_dataset(key[0]), (key,), first) for key in sources))] if sources else []
    columns = [(display_dataset(key[0] if key[1] in ("all", "test") else key[1]), (key,), first) for key in targets]
    average = [("average", tuple(targets), statistics.fmean)] if len(targets) > 1 else []
    return [*blocks, Block("target" if sources else "", (*columns, *average))] if targets else blocks


def shown(blocks: Sequence[Block], layout: Layout) -> Sequence[Block]:
    """The blocks that a layout asks for; all of them where there are no averages."""
    if layout.columns == "all":
        return blocks
    averages = [
        replace(block, columns=tuple(column for column in block.columns if over_all or column[0] == "average"))
        for block in blocks
        for over_all in [block.heading.startswith("average over")]
    ]
    return [block for block in averages if block.columns] or blocks


def _headed(datasets: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """The headings of blocks and their datasets: the average over all, if there are several, then each dataset."""
    average = [(f"average over {len(datasets)} datasets", datasets)] if len(datasets) > 1 else []
    return [*average, *((display_dataset(name), [name]) for name in datasets)]


def _sided(sides: Sequence[str], datasets: Sequence[str]) -> tuple[tuple[str, tuple[Key, ...], Rule], ...]:
    keys: list[list[Key]] = [[(dataset, side, None) for dataset in datasets] for side in sides]
    both = tuple(key for pair in zip(*keys, strict=True) for key in pair)
    rule = _mean(datasets)
    return ((sides[0], tuple(keys[0]), rule), (sides[1], tuple(keys[1]), rule), ("H", both, h_of_averages))


def _mean(datasets: Sequence[str]) -> Rule:
    return statistics.fmean if len(datasets) > 1 else first


def _rank(name: str) -> tuple[int, str]:
    """A sort key: datasets in the order of their collections, all others behind them by name."""
    order = [member for members in list_collections().values() for member in members]
    return (order.index(name) if name in order else len(order), name)


def _in_order(datasets: Any) -> list[str]:
    return sorted(datasets, key=_rank)


def _cells(group: Group, label: str, blocks: Sequence[Block], measure: Metric) -> list[Cell]:
    return [
        combine([tested(group, label, key, measure) for key in keys], rule, group.seeds)
        for block in blocks
        for _, keys, rule in block.columns
    ]


def _table(protocol: str, blocks: Sequence[Block], rows: Mapping[str, Line], layout: Layout, conditions: str) -> Table:
    columns = tuple(Column(name, over=block.heading) for block in blocks for name, _, _ in block.columns)
    higher = layout.measure.higher
    section = with_second(mark_best(Section("", tuple(rows.values())), columns, higher), higher)
    if layout.gain:
        sided = any(column.heading == "H" for column in columns)
        section = with_gains(section, layout.gain, [not sided or column.heading == "H" for column in columns])
    seeds = max((len(cell.seeds) for line in section.lines for cell in line.cells), default=0)
    caption = f"{layout.measure.title}; {conditions}."
    if seeds > 1:
        caption += {
            "none": f" Means over {seeds} seeds.",
            "std": f" Means over {seeds} seeds ± population standard deviation.",
            "interval": f" Means over {seeds} seeds, and their 95% interval (Student's t on the logit scale).",
        }[layout.spread]
    if protocol == "few_shot":
        caption += " Columns: training images per class."
    caption += " Bold: best; underlined: second."
    if layout.gain:
        caption += f" Arrows: points over {display_method(layout.gain)}."
    style = Style(layout.decimals, layout.spread == "std", layout.spread == "interval")
    return Table(f"{protocol.replace('_', ' ')}", "paper", caption, columns, (section,), seeds=False, style=style)


def _published_rows(
    figures: Figures, blocks: Sequence[Block], chosen: Sequence[str] | None, alone: bool = False
) -> dict[str, Line]:
    """One row per published method, each cell from the row with the best evidence that has that figure."""
    rows: dict[str, Line] = {}
    by_method: dict[str, list[Published]] = {}
    for row in figures.rows:
        if not chosen or row.method in chosen:
            by_method.setdefault(row.method, []).append(row)
    for method, known in by_method.items():
        known = sorted(known, key=lambda row: (bool(row.variant), BEST_EVIDENCE.index(row.evidence)))
        cells = [_published_cell(known, block, i) for block in blocks for i in range(len(block.columns))]
        if any(cell.value is not None for cell in cells):
            name = display_method(method) if alone else f"{display_method(method)} (published)"
            rows[f"published {method}"] = Line(name, tuple(cells))
    return rows


def _published_cell(rows: Sequence[Published], block: Block, column: int) -> Cell:
    """The printed average if there is one; otherwise the rule over printed figures, or a dash if one is missing."""
    name, keys, rule = block.columns[column]
    if len(keys) > 1 or name == "H":
        average = say_shots(int(name)) if name.isdigit() else {"H": "harmonic_mean"}.get(name, name)
        for row in rows:
            if average in row.averages and not row.mean_of_h and _is_average(block):
                return Cell(row.averages[average])
    single = [next((row.figures[key] for row in rows if key in row.figures), None) for key in keys]
    known = [value for value in single if value is not None]
    return Cell(rule(known)) if known and len(known) == len(keys) else Cell(text="–")


def _is_average(block: Block) -> bool:
    return len({key[0] for _, keys, _ in block.columns for key in keys}) > 1 or block.heading == "target"


def _sources(figures: Figures | None, chosen: Sequence[str] | None) -> list[str]:
    """Where published rows come from, in one sentence per method."""
    sources: dict[str, dict[str, None]] = {}
    for row in figures.rows if figures else ():
        if not chosen or row.method in chosen:
            origin = row.source or ("by dataset" if row.figures else "")
            sources.setdefault(row.method, {})[", ".join(filter(None, [origin, row.evidence]))] = None
    return [f"{display_method(method)}, published: {'; '.join(origins)}" for method, origins in sources.items()]
