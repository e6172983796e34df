"""Make tables, comparisons, figures and an HTML page from result files."""

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

Reads every result.json in the given folders (default: runs), and nothing else. Results with different protocols,
backbones, splits, shots, selection, limit or templates go into separate tables. Numbers are means over seeds, with the
population standard deviation and the 95% confidence interval (Student's t on the logit scale). Incomplete rows are
marked, and failed runs are listed.

  format=html                      one self-contained page, report.html by default; text formats print to the terminal
  compare=published                adds the published figures next to ours
  pair=A,B                         compares two methods image by image, over the same seeds
  analysis=robin_hood              relates the gains of classes to their zero-shot accuracy: does a method help the
                                   weak classes?
  layout=paper                     methods in rows and datasets in columns, as in papers, the best in bold and the
                                   second best underlined; with compare=published the published figures are rows too
                                   (and can be shown without any runs of your own)
  columns=average                  leaves out the single datasets
  spread=, gain=, significance=    what is printed next to a number; arrows for the change from a method; marks where
                                   the difference from a method is significant, on the same images and seeds (paired
                                   bootstrap, Holm's correction)
  figures=DIR                      draws few-shot curves, base against new accuracy, calibration, confusion, class
                                   gains, a radar chart of datasets and the critical-difference diagram"""
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
        raise VlpromptError(
            f"format=terminal is not written to a file: leave output out, or use {', '.join(FORMATS[1:])}"
        )
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
    """The options of the layout of papers, or None for the long tables, which do not take them."""
    from vlprompt.report import LAYOUTS, NO_PAPER_PAGE, Layout

    name = settings.get("layout", "long")
    if name not in LAYOUTS:
        raise VlpromptError(f"unknown layout '{name}': {nearest(str(name), LAYOUTS)}")
    options = {key: settings[key] for key in PAPER if key in settings}
    if name == "long" and options:
        raise VlpromptError(f"{', '.join(options)} belong to layout=paper")
    if settings.get("format") == "html" and name == "paper":
        raise VlpromptError(NO_PAPER_PAGE)
    return Layout(**options) if name == "paper" else None


def _names(given: Any) -> list[str] | None:
    """Names from a list, or from a text with commas between them; None if not given."""
    if given is None:
        return None
    names = given if isinstance(given, list) else str(given).split(",")
    return [str(name).strip() for name in names]
