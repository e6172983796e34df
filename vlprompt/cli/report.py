"""Make tables, comparisons, figures and a page from result files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.base.reporter import Reporter, make_console
from vlprompt.cli._shared import check_keys, command, parse
from vlprompt.errors import VlpromptError, nearest

if TYPE_CHECKING:
    from vlprompt.report import Layout, Report

USAGE = """vlprompt report [FOLDER …] [format=terminal|markdown|latex|csv|html] [output=FILE] [methods=[…]] [protocol=…]
                [metric=accuracy|macro_accuracy|top5|ece|aurc] [compare=published] [pair=A,B]
                [analysis=robin_hood]
                [layout=paper] [columns=all|average] [decimals=N] [spread=none|std|interval] [gain=METHOD]
                [significance=METHOD]
                [figures=DIR] [figure_format=pdf|png|svg] [--quiet]

Reads every result.json under the folders (runs by default) and nothing else. What differs in protocol, backbone, split,
shots, selection, limit or templates stands in tables of its own. Numbers are means over seeds with the population
standard deviation and the 95% interval (Student's t on the logit scale); what is incomplete is marked, and runs that
failed are listed.

format=html makes one self-contained page; without output= a text goes to the terminal, the page to report.html.
compare=published sets the published figures beside ours. pair=A,B compares two methods image by image, over the same
seeds. analysis=robin_hood tells how classes' gains go with their zero-shot accuracies: whether a method gives to the
poor. layout=paper puts methods in rows and datasets in columns, as papers print them, the best in bold and the second
underlined; with compare=published the published figures are rows of it, and without any run it is made of them alone.
columns=average leaves single datasets out, spread= says what stands beside a number, gain= sets arrows over a method's
numbers, significance= marks what differs from a method on the same images and seeds (paired bootstrap, Holm's
correction).

figures=DIR draws few-shot curves, base against new, calibration, confusion, who gains, a radar of datasets and the
critical-difference diagram with matplotlib."""
PAPER = ("columns", "decimals", "spread", "gain", "significance")  # of layout=paper
KEYS = (
    *("format", "output", "methods", "protocol", "metric", "compare", "pair", "analysis"),
    *("figures", "figure_format", "layout", *PAPER),
)


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Print or write the report."""
    arguments = parse(argv, words=len(argv))
    settings = arguments.settings
    check_keys(settings, KEYS)
    from vlprompt.report import FORMATS, make_report

    format = settings.get("format")
    if format not in (None, *FORMATS):
        raise VlpromptError(f"unknown format '{format}': {nearest(str(format), FORMATS)}")
    if format == "terminal" and "output" in settings:
        raise VlpromptError(f"format=terminal goes to no file: leave output out, or say {', '.join(FORMATS[1:])}")
    folders = [os.path.expanduser(word) for word in arguments.words]
    if not folders and not (settings.get("compare") and not os.path.exists("runs")):
        folders = ["runs"]
    report = make_report(
        folders,
        methods=_names(settings.get("methods")),
        protocol=settings.get("protocol"),
        metric=str(settings.get("metric", "accuracy")),
        compare=settings.get("compare"),
        pair=_names(settings.get("pair")),
        analysis=settings.get("analysis"),
        layout=_layout(settings),
    )
    reporter = Reporter("--quiet" in arguments.flags)
    _show(report, format, settings.get("output"), reporter)
    if "figures" in settings:
        from vlprompt.report.saved_figures import save_figures  # matplotlib takes a second to load

        folder = Path(str(settings["figures"])).expanduser()
        for path in save_figures(report.groups, folder, str(settings.get("figure_format", "pdf")), report.metric):
            reporter.say(f"figure  {path}")
    return 0


def _show(report: Report, format: str | None, output: Any, reporter: Reporter) -> None:
    from vlprompt.report.render import print_terminal

    if output is None and format == "html":
        output = "report.html"
    if output is not None:
        reporter.say(f"report  {report.write(str(output), format)}")
    elif format in (None, "terminal"):
        print_terminal(report.all_tables, make_console())
    else:
        print(report.text(format), end="")


def _layout(settings: Mapping[str, Any]) -> Layout | None:
    """The layout of papers, or None for the long tables, to which its settings do not belong."""
    from vlprompt.report import LAYOUTS, NO_PAPER_PAGE, Layout

    name = settings.get("layout", "long")
    if name not in LAYOUTS:
        raise VlpromptError(f"unknown layout '{name}': {nearest(str(name), LAYOUTS)}")
    given = {key: settings[key] for key in PAPER if key in settings}
    if name == "long" and given:
        raise VlpromptError(f"{', '.join(given)} belong to layout=paper")
    if settings.get("format") == "html" and name == "paper":
        raise VlpromptError(NO_PAPER_PAGE)
    return Layout(**given) if name == "paper" else None


def _names(given: Any) -> list[str] | None:
    """A list, or names with commas between them."""
    if given is None:
        return None
    names = given if isinstance(given, list) else str(given).split(",")
    return [str(name).strip() for name in names]
