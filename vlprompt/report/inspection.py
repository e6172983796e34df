"""``vlprompt inspect``: an HTML page on a classifier and its images: accuracies, mistakes and flaws of the data."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from vlprompt.analysis.data_findings import DataFindings
from vlprompt.analysis.inspection import ClassPredictions, Inspection
from vlprompt.analysis.mistakes import plot_mistakes
from vlprompt.base.checks import at_least
from vlprompt.base.files import atomic_write
from vlprompt.base.sanitizing import csv_cell
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.statistics import ClassChange
from vlprompt.learner.facts import NOTES
from vlprompt.report.cells import Cell
from vlprompt.report.charts import confusion_chart, coverage_chart, gains_chart, reliability_chart, robin_hood_chart
from vlprompt.report.page import Figure, Runs, asset, template
from vlprompt.report.render import heading, interval, number, seeds
from vlprompt.report.tables import PLAIN, Column, Line, Section, Table
from vlprompt.report.thumbnails import BUDGET, Thumbnails
from vlprompt.version import __version__

PAGE, SHEET = "inspect.html", "mistakes.png"
IMAGES = 24  # default number of mistakes, label errors and pairs that are shown, each
DRAWN = 25  # largest number of classes of a legible confusion matrix
CONFUSIONS = 12  # rows of the table of confusions
DATA_TABLES = ("label_errors", "near_duplicates")


@dataclass(frozen=True)
class Picture:
    """An image on the page.

    Attributes:
        address: a ``data:`` URL; empty if the image is not shown.
        alt: a description of the image.
        title: its caption.
        about: a second line of the caption.
        name: its path.
    """

    address: str
    alt: str
    title: str
    about: str
    name: str


@dataclass(frozen=True)
class Found:
    """The flaws of the data on the page: sentences, probable label errors, and near-duplicates."""

    lines: list[str]
    errors: list[Picture]
    pairs: list[tuple[Picture, Picture]]


@dataclass(frozen=True)
class Part:
    """An inspection on the page."""

    inspection: Inspection
    numbers: list[tuple[str, str, str]]
    note: str
    mistakes: list[Picture]
    figures: list[Figure]
    tables: list[Table]
    found: Found | None


def save_inspections(inspections: Sequence[Inspection], folder: str | Path, images: int | None = None) -> Path:
    """Write the page, contact sheets and tables of inspections into a folder.

    Args:
        inspections: at least one, such as those of a run's tests.
        folder: created if needed; other files in it are kept.
        images: largest number of mistakes, of label errors and of pairs that are shown; None means 24.

    Returns:
        The path of the page.

    Raises:
        VlpromptError: the folder is a file, or cannot be written to.
    """
    most, folder = IMAGES if images is None else at_least("images", images, 1), _folder(folder)
    several = len(inspections) > 1
    for place, each in enumerate(inspections):
        prefix = f"{place + 1}-" if several else ""
        if each.open_image is not None and each.mistakes(1):
            figure = plot_mistakes(each, most)
            with atomic_write(folder / f"{prefix}{SHEET}") as temporary:
                figure.savefig(temporary, format="png", dpi=160)
        else:
            (folder / f"{prefix}{SHEET}").unlink(missing_ok=True)  # of an earlier inspection
        for name in ("images", "classes", "confusions"):
            _write_csv(folder / f"{prefix}{name}.csv", each.table(name))
        if each.findings is not None:
            _write_findings(folder, prefix, each.findings)
    return _write(folder, inspection_page(inspections, most))


def save_findings(
    title: str, facts: Mapping[str, str], findings: DataFindings, folder: str | Path, images: int | None = None
) -> Path:
    """Write the page and tables of a dataset's flaws into a folder, and return the path of the page.

    Args:
        title: the page's title.
        facts: other information for its head, by name.
        findings: the flaws.
        folder, images: as in ``save_inspections``.
    """
    most, folder = IMAGES if images is None else at_least("images", images, 1), _folder(folder)
    _write_findings(folder, "", findings)
    return _write(folder, _page(title, facts, [], _found(findings, most, [BUDGET])))


def inspection_page(inspections: Sequence[Inspection], most: int = IMAGES) -> str:
    """Return the page of inspections as HTML, with at most ``most`` images of each kind."""
    left = [BUDGET]
    first = inspections[0]
    title = first.title if len(inspections) == 1 else first.title.rpartition(":")[0]
    return _page(title, first.facts, [_part(each, most, left) for each in inspections], None)


def _page(title: str, facts: Mapping[str, str], parts: Sequence[Part], found: Found | None) -> str:
    return template("inspection.html.jinja").render(
        title=title,
        facts={key: value for key, value in facts.items() if value},
        parts=parts,
        found=found,
        style=Markup(asset("page.css") + asset("inspection.css")),
        script=Markup(asset("page.js")),
        version=__version__,
        counter=itertools.count(1),
        runs=Runs(),
        number=number,
        plain=PLAIN,
        interval=interval,
        seeds=seeds,
        heading=heading,
    )


def _part(each: Inspection, most: int, left: list[int]) -> Part:
    found = None if each.findings is None else _found(each.findings, most, left)
    pictures = _mistakes(each, most, left)
    return Part(each, _numbers(each), NOTES[each.predicts], pictures, _figures(each), _tables(each), found)


def _numbers(each: Inspection) -> list[tuple[str, str, str]]:
    """The numbers at the top of the page: name, value and remark."""
    low, high = each.interval
    wrong = int((~each.right).sum())
    numbers = [
        ("right", f"{each.accuracy:.1f}%", f"95% interval {low:.1f} to {high:.1f}"),
        ("mistakes", f"{wrong:,}", f"of {each.n_images:,} images"),
        ("zero-shot", f"{each.zero_shot:.1f}%", f"{each.accuracy - each.zero_shot:+.1f} points learnt"),
        ("mean over classes", f"{each.macro_accuracy:.1f}%", f"{len(each.class_names):,} classes"),
        ("calibration error", f"{each.ece:.1f}%", _say_confidence(each)),
    ]
    if each.min_probability is not None:
        share, answered = each.coverage.at(each.min_probability)
        right = "none" if answered is None else f"{100 * answered:.1f}% of them right"
        numbers.append(("answered", f"{100 * share:.1f}%", f"from {100 * each.min_probability:.0f}% sure on, {right}"))
    apart = without_leaks(each)
    if apart is not None:
        accuracy, images = apart
        numbers.append(("right without leaks", f"{accuracy:.1f}%", f"{images:,} images without a near-duplicate"))
    return numbers


def _say_confidence(each: Inspection) -> str:
    gap = 100 * float(each.said.confidence.double().mean()) - each.accuracy
    if abs(gap) < 1:
        return "neither too sure nor too unsure"
    return f"{abs(gap):.1f} points too {'sure' if gap > 0 else 'unsure'}"


def without_leaks(each: Inspection) -> tuple[float, int] | None:
    """Accuracy in percent on the test images without a near-duplicate among the training images, and their number.

    None if no image has one, if all have one, or if duplicates were not searched for.
    """
    if each.findings is None or not each.findings.leaks:
        return None
    first = len(each.findings.names) - each.n_images  # the test images are last
    kept = np.ones(each.n_images, bool)
    kept[[place - first for place in each.findings.leaks]] = False
    return (100 * float(each.right.numpy()[kept].mean()), int(kept.sum())) if kept.any() else None


def _mistakes(each: Inspection, most: int, left: list[int]) -> list[Picture]:
    thumbnails = Thumbnails(each.open_image, left)
    pictures = []
    for place in each.mistakes(most):
        said, true = (each.class_names[int(of[place])] for of in (each.said.predicted, each.said.label))
        sure = f"{float(each.said.confidence[place]):.0%}"
        alt = f"{true}, taken for {said}, {sure} sure"
        pictures.append(Picture(thumbnails.of(place), alt, f"{said} {sure}", f"is {true}", str(each.names[place])))
    return pictures


def _figures(each: Inspection) -> list[Figure]:
    """The charts of an inspection."""
    drawn = [
        (_title_of_confusion(each), _confusion(each)),
        (f"Calibration: accuracy by confidence, error {each.ece:.1f}%", reliability_chart(each.reliability, "c0")),
        (
            "Accuracy by the share of images answered, the most confident first",
            coverage_chart(each.coverage, "c0", each.min_probability),
        ),
        ("Classes against zero-shot", gains_chart(each.changes)),
        ("Who gains: each class by its zero-shot accuracy", robin_hood_chart(each.changes, "c0")),
    ]
    return [Figure(title, Markup(svg)) for title, svg in drawn if svg]


def _title_of_confusion(each: Inspection) -> str:
    shown = "" if len(each.class_names) <= DRAWN else f", the {DRAWN} classes with the most mistakes"
    return f"True classes in rows, predicted classes in columns{shown}"


def _confusion(each: Inspection) -> str:
    """The confusion matrix; if there are many classes, of those with the most mistakes."""
    counts = each.confusion.numpy()
    wrong = counts - np.diag(np.diag(counts))
    rank = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")
    shown = np.sort(rank[:DRAWN])
    names, totals = [each.class_names[i] for i in shown], counts.sum(axis=1)[shown].tolist()
    return confusion_chart(names, counts[np.ix_(shown, shown)].tolist(), totals)


def _tables(each: Inspection) -> list[Table]:
    names, wrong = each.class_names, each.confusions()
    lines = tuple(
        Line(names[c.label], (Cell(text=names[c.predicted]), Cell(text=f"{c.images:,}"), Cell(c.share)))
        for c in wrong[:CONFUSIONS]
    )
    columns = tuple(Column(name, ranked=False) for name in ("taken for", "images", "% of the class"))
    more = f", the {CONFUSIONS} most frequent of {len(wrong):,}" if len(wrong) > CONFUSIONS else ""
    made = [Table(f"what is taken for what{more}", "confusions", "", columns, (Section("", lines),), seeds=False)]
    columns = tuple(
        Column(name, ranked=False) for name in ("accuracy", "zero-shot", "gain", "images", "most often taken for")
    )
    changes = {change.name: change for change in each.changes}
    lines = tuple(_class_line(c, changes[c.name]) for c in each.classes if c.images)
    caption = "Accuracy in percent with its 95% interval over images (Wilson), against zero-shot."
    made.append(Table("classes", "classes", caption, columns, (Section("", lines),), seeds=False))
    return [table for table in made if table.sections[0].lines]


def _class_line(c: ClassPredictions, change: ClassChange) -> Line:
    taken = f"{c.taken_for} ({c.taken:,})" if c.taken else "–"
    numbers = (Cell(change.accuracy, interval=c.interval), Cell(change.zero_shot), Cell(change.gain, signed=True))
    return Line(c.name, (*numbers, Cell(text=f"{c.images:,}"), Cell(text=taken)))


def _found(findings: DataFindings, most: int, left: list[int]) -> Found:
    thumbnails, names = Thumbnails(findings.open_image, left), findings.class_names

    def picture(place: int, title: str, about: str) -> Picture:
        part, label = findings.parts[place], names[findings.labels[place]]
        alt = f"an image labelled {label}, of {part}"
        return Picture(thumbnails.of(place), alt, title, about, str(findings.names[place]))

    errors = []
    if findings.errors is not None:
        places = zip(findings.errors.places[:most].tolist(), findings.errors.suggested.tolist(), strict=False)
        errors = [
            picture(place, f"{names[suggested]}?", f"labelled {names[findings.labels[place]]}, {findings.parts[place]}")
            for place, suggested in places
        ]
    pairs = []
    for pair in findings.duplicates.pairs[:most].tolist():
        one, other = (picture(i, names[findings.labels[i]], str(findings.parts[i])) for i in pair)
        pairs.append((one, other))
    return Found(findings.lines(), errors, pairs)


# Files


def _folder(folder: str | Path) -> Path:
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise VlpromptError(f"{folder} is a file: give a folder for the page and its tables")
    return folder


def _write(folder: Path, page: str) -> Path:
    with atomic_write(folder / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / PAGE


def _write_findings(folder: Path, prefix: str, findings: DataFindings) -> None:
    for name in DATA_TABLES:
        _write_csv(folder / f"{prefix}{name}.csv", findings.table(name))


def _write_csv(path: Path, columns: Mapping[str, Iterable[Any]]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(map(csv_cell, row) for row in zip(*columns.values(), strict=True))
