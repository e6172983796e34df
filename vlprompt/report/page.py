"""The report as one self-contained HTML page: no network access, light and dark, any width."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader, Template
from markupsafe import Markup

from vlprompt.base.sanitizing import printable
from vlprompt.evaluation.averages import SIDES, sides_of
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.evaluation.statistics import SPREAD
from vlprompt.report.cells import METRICS
from vlprompt.report.charts import (
    Styles,
    base_new_chart,
    few_shot_chart,
    gains_chart,
    reliability_chart,
    robin_hood_chart,
    style_classes,
)
from vlprompt.report.class_gains import robin_hood_tables
from vlprompt.report.failures import failure_table
from vlprompt.report.groups import STUDY, ZERO_SHOT, Group, Key, Measured, Run, say_shots
from vlprompt.report.pairs import changes
from vlprompt.report.render import heading, interval, number, seeds
from vlprompt.report.summaries import pooled_reliability, shot_positions, style_index
from vlprompt.report.tables import PLAIN, Table, labels
from vlprompt.version import __version__

if TYPE_CHECKING:
    from vlprompt.report import Report

# settings of a run that are shown elsewhere, or of no interest
OWN = ("seed", "held_out", "output", "name", "resume", "restart", "quiet", "device", "workers")
ABREAST = 3  # charts that fit in a row of a wide page
SHOWN_OF_ROWS = ("target", "accuracy", "zero_shot", "n_images", "split")


@dataclass(frozen=True)
class Figure:
    """A chart and its title."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Panel:
    """The charts of one test, which is chosen from a menu."""

    name: str
    changes: list[Figure]
    gains: list[Figure]
    calibration: list[Figure]

    @property
    def rows(self) -> list[list[Figure]]:
        """One row per kind of chart, or a single row if all charts fit in it."""
        rows = [row for row in (self.changes, self.gains, self.calibration) if row]
        return [list(itertools.chain(*rows))] if 0 < sum(map(len, rows)) <= ABREAST else rows


@dataclass(frozen=True)
class Part:
    """A group of results on the page: its tables, charts of the protocol, and charts of single tests."""

    title: str
    methods: list[tuple[str, str]]
    tables: list[Table]
    figures: list[Figure]
    panels: list[Panel]


def make_page(report: Report) -> str:
    """Return the page as HTML."""
    runs = Runs()
    styles = style_index(label for g in report.groups for label in labels(g) if label != ZERO_SHOT)
    failed = failure_table(report.failures)
    results = [test.run.result for g in report.groups for test in _tests(g)]
    extra = [
        ("Beside published figures", report.published),
        ("Pairs of methods", report.pair),
        ("Who gains", report.classes or robin_hood_tables(report.groups)),
        ("Runs without a result", [failed] if failed else []),
    ]
    return template("page.html.jinja").render(
        parts=[_part(group, tables, styles) for group, tables in zip(report.groups, report.tables_of, strict=True)],
        extra=[(title, tables) for title, tables in extra if tables],
        metric=METRICS[report.metric].title,
        n_results=len({id(result) for result in results}),
        latest=max(result.created for result in results)[:10],
        version=__version__,
        style=Markup(asset("page.css")),
        script=Markup(asset("page.js")),
        runs=runs,
        counter=itertools.count(1),
        number=number,
        plain=PLAIN,
        interval=interval,
        spread=SPREAD,
        seeds=seeds,
        heading=heading,
        data=lambda: Markup(runs.as_json()),
    )


def _tests(group: Group) -> list[Measured]:
    return [test for cells in group.values.values() for tests in cells.values() for test in tests]


def asset(name: str) -> str:
    """The text of a file in this package, such as the page's style sheet."""
    return resources.files("vlprompt.report").joinpath(name).read_text(encoding="utf-8")


def _shown(value: Any) -> Any:
    """A template's value with control characters written out; markup stays as it is."""
    return printable(value, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


@lru_cache
def template(name: str) -> Template:
    """A page's template, which escapes text and writes out control characters."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown, loader=FunctionLoader(asset)
    )
    return environment.get_template(name)


def _part(group: Group, tables: list[Table], styles: Styles) -> Part:
    methods = [(label, style_classes(label, styles)) for label in labels(group)]
    panels = [_panel(group, key, styles) for key in group.telling_keys]
    return Part(
        group.title,
        methods,
        tables,
        _protocol_figures(group, tables, styles),
        [panel for panel in panels if panel.rows],
    )


def _protocol_figures(group: Group, tables: Sequence[Table], styles: Styles) -> list[Figure]:
    if group.protocol == STUDY:
        shots = shot_positions(tables[0])
        drawn = [(s.heading, few_shot_chart(s, shots, styles)) for s in tables[0].sections]
    elif PROTOCOLS.get(group.protocol).average == "harmonic_mean":
        sections = [(s.heading or table.title, s) for table in tables for s in table.sections]
        names = sides_of(key[1] for key in group.keys) or SIDES[0]
        drawn = [(name, base_new_chart(section, styles, names)) for name, section in sections]
    else:
        drawn = []
    return [Figure(title, Markup(svg)) for title, svg in drawn if svg]


def _panel(group: Group, key: Key, styles: Styles) -> Panel:
    name = ", ".join([key[0], key[1], *([say_shots(key[2])] if key[2] else [])])
    panel = Panel(name, [], [], [])
    for label in group.values:
        if label == ZERO_SHOT:
            continue
        classes = changes(group, label, key)
        if svg := gains_chart(classes):
            panel.changes.append(Figure(f"{label}: classes against zero-shot", Markup(svg)))
        if svg := robin_hood_chart(classes, style_classes(label, styles)):
            panel.gains.append(Figure(f"{label}: who gains", Markup(svg)))
        if each := pooled_reliability(group, label, [key]):
            title = f"{label}: calibration, ECE {100 * each.expected_calibration_error:.1f}%"
            panel.calibration.append(Figure(title, Markup(reliability_chart(each, style_classes(label, styles)))))
    return panel


class Runs:
    """The runs behind the cells of the page, each stored once in the page's data."""

    def __init__(self) -> None:
        self._runs: dict[str, tuple[int, Run]] = {}

    def numbers(self, runs: Iterable[Run]) -> str:
        """The indices of runs in the page's data, separated by spaces, as a cell's attribute."""
        numbers = (self._runs.setdefault(str(run.path), (len(self._runs), run))[0] for run in runs)
        return " ".join(map(str, dict.fromkeys(numbers)))

    def as_json(self) -> str:
        """The data as JSON that is safe inside a script element."""
        configs: dict[str, int] = {}
        backbones: dict[str, int] = {}

        def place(table: dict[str, int], value: Any) -> int:
            return table.setdefault(json.dumps(value, sort_keys=True), len(table))

        described = [
            _describe(run, place(configs, _config(run)), place(backbones, run.result.backbone))
            for _, run in self._runs.values()
        ]
        lists = {"configs": list(map(json.loads, configs)), "backbones": list(map(json.loads, backbones))}
        text = json.dumps({"runs": described, **lists}, separators=(",", ":"))
        return text.replace("<", "\\u003c")


def _config(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.result.config.items() if key not in OWN}


def _describe(run: Run, config: int, backbone: int) -> dict[str, Any]:
    """What the page shows of a run; ``config`` and ``backbone`` are indices into the page's lists of them."""
    r = run.result
    tests = [{name: getattr(row, name) for name in SHOWN_OF_ROWS} for row in r.rows]
    return {
        "file": str(run.path),
        "method": r.marked_method,
        "dataset": r.dataset if not r.config.get("held_out") else f"{r.dataset}, {r.config['held_out']} held out",
        "seed": r.seed,
        "shots": r.shots,
        "tests": tests,
        "config": config,
        "backbone": backbone,
        "provenance": {
            "id": r.id,
            "recipe": ", ".join(filter(None, [(r.recipe or {}).get("name"), (r.recipe or {}).get("source")])) or "none",
            "adapted to the backbone": ", ".join(f"{k}={v}" for k, v in r.adapted.items()) or "nothing",
            "views": "none" if r.views is None else str(r.views),
            "data": ", ".join(f"{k} {str(v)[:12]}" for k, v in r.data.items()),
            "learnt numbers": f"{r.n_parameters:,}",
            "seconds": ", ".join(f"{k} {v:.1f}" for k, v in r.times.items()),
            "peak memory, MB": ", ".join(f"{k} {v:.0f}" for k, v in r.peak_memory_mb.items()),
            "versions": ", ".join(f"{k} {v}" for k, v in r.versions.items()),
            "git commit": r.git_commit or "none",
            "created": r.created,
        },
    }
