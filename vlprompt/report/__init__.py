"""``vlprompt report``: tables, comparisons, figures and a page from result files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vlprompt.base.files import atomic_write
from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.results import Result, find_results
from vlprompt.report.cells import check_metric
from vlprompt.report.class_gains import robin_hood_tables
from vlprompt.report.failures import Failure, failure_table, find_failures
from vlprompt.report.groups import Group, collect
from vlprompt.report.latex import as_latex
from vlprompt.report.pairs import pair_tables
from vlprompt.report.paper import Layout, paper_tables
from vlprompt.report.published import published_tables
from vlprompt.report.render import as_csv, as_markdown
from vlprompt.report.tables import Table, make_tables, say_conditions

__all__ = ["FORMATS", "LAYOUTS", "Layout", "Report", "make_report"]

FORMATS = ("terminal", "markdown", "latex", "csv", "html")
LAYOUTS = ("long", "paper")
ANALYSES = ("robin_hood",)
NO_PAPER_PAGE = "the page has a layout of its own: leave layout=paper out, or choose another format"
SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html", ".htm": "html"}


@dataclass
class Report:
    """The tables made from result files.

    Attributes:
        groups: the results, in groups of comparable ones.
        tables_of: the tables of each group.
        published: tables with the published figures, if requested.
        pair: the comparison of two methods, if requested.
        classes: the gains of classes by their zero-shot accuracy, if requested; the page always has them.
        failures: runs without a result.
        metric: the metric of the tables.
    """

    groups: list[Group]
    tables_of: list[list[Table]]
    published: list[Table] = field(default_factory=list)
    pair: list[Table] = field(default_factory=list)
    classes: list[Table] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    metric: str = "accuracy"

    @property
    def tables(self) -> list[Table]:
        """The tables of all groups."""
        return [table for tables in self.tables_of for table in tables]

    def group(self, protocol: str) -> Group:
        """Return the results of a protocol, for a figure.

        Raises:
            VlpromptError: there are none, or several groups that are not comparable.
        """
        groups = [group for group in self.groups if group.protocol == protocol]
        if len(groups) != 1:
            titles = "; ".join(f"{group.title} with {say_conditions(group)}" for group in groups)
            raise VlpromptError(
                f"{len(groups)} groups of results are of protocol={protocol}" + (f" ({titles})" if titles else "")
            )
        return groups[0]

    @property
    def all_tables(self) -> list[Table]:
        """All tables; the one of runs without a result is last."""
        failed = failure_table(self.failures)
        return [*self.tables, *self.published, *self.pair, *self.classes, *([failed] if failed else [])]

    def text(self, format: str) -> str:
        """Return the report as text, in one of ``FORMATS`` except ``terminal``.

        Raises:
            VlpromptError: the format is unknown, or cannot have the layout of papers.
        """
        if format == "html":
            if any(table.kind == "paper" for table in self.all_tables):
                raise VlpromptError(NO_PAPER_PAGE)
            from vlprompt.report.page import make_page  # imported here, since it loads templates

            return make_page(self)
        writers = {"markdown": as_markdown, "latex": as_latex, "csv": as_csv}
        if format not in writers:
            raise VlpromptError(f"unknown format '{format}': {nearest(format, FORMATS)}")
        return writers[format](self.all_tables)

    def write(self, path: str | Path, format: str | None = None) -> Path:
        """Write the report to a file.

        Args:
            path: the file.
            format: one of ``FORMATS`` except ``terminal``; None infers it from the suffix.

        Raises:
            VlpromptError: the suffix belongs to no format, or as ``text``.
        """
        path = Path(path).expanduser()
        chosen = format or SUFFIXES.get(path.suffix.lower())
        if chosen is None:
            raise VlpromptError(f"the suffix of {path.name} names no format: say format=, of {', '.join(FORMATS[1:])}")
        with atomic_write(path) as temporary:
            temporary.write_text(self.text(chosen), encoding="utf-8")
        return path


def _groups(
    results: Sequence[tuple[Path, Result]], methods: Sequence[str] | None, protocol: str | None, published: bool
) -> list[Group]:
    """The groups of results; with published figures there may be none, and methods may be only in those."""
    if published and protocol is not None:
        results = [each for each in results if each[1].protocol == protocol]
    if published and methods:
        results = [each for each in results if each[1].method in methods]
        methods = [name for name in methods if name in {result.method for _, result in results}]
    return collect(results, methods, protocol) if results or not published else []


def make_report(
    folders: Iterable[str | Path] = ("runs",),
    *,
    methods: Sequence[str] | None = None,
    protocol: str | None = None,
    metric: str = "accuracy",
    compare: str | None = None,
    pair: Sequence[str] | None = None,
    analysis: str | None = None,
    layout: Layout | None = None,
) -> Report:
    """Read result files and make their tables.

    Args:
        folders: folders that contain runs at any depth, or result files; empty for the published figures only.
        methods: include only these; None includes all.
        protocol: include only this one; None includes all.
        metric: ``accuracy``, ``macro_accuracy``, ``top5``, ``ece`` or ``aurc``.
        compare: ``published`` adds the published figures.
        pair: two methods to compare image by image.
        analysis: ``robin_hood`` adds tables that relate the gains of classes to their zero-shot accuracies.
        layout: methods in rows and datasets in columns, as in papers; None makes the long tables.

    Raises:
        VlpromptError: there is nothing to report, a file is no result, or a name is unknown.

    >>> make_report(["runs"], methods=["coop", "kgcoop"]).write("report.html")  # doctest: +SKIP
    """
    folders = list(folders)
    check_metric(metric)
    if compare not in (None, "published"):
        raise VlpromptError(f"compare takes published, not {compare!r}")
    if analysis not in (None, *ANALYSES):
        raise VlpromptError(f"unknown analysis '{analysis}': {nearest(str(analysis), ANALYSES)}")
    results, failures = find_results(folders), find_failures(folders)
    if not results and failures:
        first = failures[0]
        raise VlpromptError(f"none of the {len(failures)} runs has a result; the first, {first.run}: {first.reason}")
    groups = _groups(results, methods, protocol, compare is not None)
    paired = pair_tables(groups, pair) if pair else []
    classes = robin_hood_tables(groups) if analysis else []
    if layout is not None:
        layout = replace(layout, metric=metric, published=compare is not None)
        return Report(groups, [paper_tables(groups, layout, methods, protocol)], [], paired, classes, failures, metric)
    tables = [make_tables(group, metric) for group in groups]
    beside = published_tables(groups, methods, protocol) if compare else []
    return Report(groups, tables, beside, paired, classes, failures, metric)
