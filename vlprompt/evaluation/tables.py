"""Results as tables for terminals and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from vlprompt.base.sanitizing import printable
from vlprompt.evaluation.averages import spread_over_draws
from vlprompt.evaluation.rows import Row
from vlprompt.learner.facts import NOTES, RECONSTRUCTION, Fidelity, mark_of, marked

if TYPE_CHECKING:
    from vlprompt.evaluation.results import Result

FROZEN = "the frozen model"
FEW = 100  # test images; with fewer, a difference of some points may be due to chance


@dataclass(frozen=True)
class TableContent:
    """The texts of a result's table.

    Attributes:
        title, caption: texts above and below it.
        headings: the headings of the columns.
        lines: one per test, and one per part of its logits.
        averages: lines with the protocol's averages.
    """

    title: str
    caption: str
    headings: list[str]
    lines: list[list[str]]
    averages: list[list[str]]


def conditions(result: Result) -> str:
    """The conditions of a run, without its method: ``emoji: base_to_new, 16 shots, seed 1``."""
    shots = {"all": "all training images", "none": "no labels", 1: "1 shot"}.get(result.shots, f"{result.shots} shots")
    return f"{result.dataset}: {result.protocol}, {shots}, seed {result.seed}"


def _content(result: Result) -> TableContent:
    """The table of a result, with columns for the learner unless it is plain zero-shot CLIP."""
    plain = result.method == "zero_shot" and not any(result.config.get(key) for key in ("template", "descriptions"))
    learnt = not plain or any(row.accuracy != row.zero_shot for row in result.rows)

    def numbers(zero_shot: float, accuracy: float) -> list[str]:
        return [f"{zero_shot:.2f}"] + ([f"{accuracy:.2f}", f"{accuracy - zero_shot:+.2f}"] if learnt else [])

    lines = []
    for row in result.rows:
        name = row.target if row.dataset == result.dataset else f"{row.target} ({row.dataset})"
        lines.append([name, str(row.n_classes), f"{row.n_images:,}", *numbers(row.zero_shot, row.accuracy)])
        for part, accuracy in (row.parts or {}).items():
            lines.append([f"  {part} alone", "", "", *numbers(row.zero_shot, accuracy)])
    return TableContent(
        f"{result.marked_method} on {conditions(result)}",
        _caption(result),
        ["tested on", "classes", "images", "zero-shot", *([result.marked_method, "gain"] if learnt else [])],
        lines,
        [
            [name.replace("_", " "), "", "", *numbers(result.averages[f"zero_shot_{name}"], value)]
            for name, value in result.averages.items()
            if not name.startswith("zero_shot_")
        ],
    )


def _caption(result: Result) -> str:
    """What a reader must know of a result's numbers, as phrases with semicolons between."""
    backbone = " ".join(str(result.backbone[k]) for k in ("architecture", "pretrained") if result.backbone[k])
    phrases = [
        f"{backbone}; top-1 accuracy in percent",
        f"at most {result.limit} images" if result.limit else "",
        "generated split" if result.config.get("split") == "generated" else "",
        NOTES[result.predicts],
        RECONSTRUCTION if result.fidelity == "reconstruction" else "",
        spread_over_draws(result.rows),
        *_probabilities(result),
    ]
    return "; ".join(filter(None, phrases))


def result_table(result: Result) -> Group:
    """Return the table of a result for a terminal: each test with its accuracies, and the protocol's average."""
    content = _content(result)
    table = Table()
    for heading in content.headings:
        table.add_column(_text(heading), justify="right" if table.columns else "left")
    for line in content.lines:
        table.add_row(*map(_text, line))
    if content.averages:
        table.add_section()
    for line in content.averages:
        table.add_row(*map(_text, line))
    return Group(_text(content.title), table, _text(content.caption))


def _text(text: str) -> Text:
    """Text that a console shows literally: names may contain what rich would interpret as markup."""
    return Text(printable(text))


def result_html(result: Result) -> str:
    """Return the table of a result as HTML, for a notebook."""
    content = _content(result)
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in content.headings)
    bodies = "".join(f"<tbody>{''.join(map(_html_line, lines))}</tbody>" for lines in (content.lines, content.averages))
    caption = f"<caption>{escape(content.title)}<br><small>{escape(content.caption)}</small></caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead>{bodies}</table>"


def _html_line(line: Sequence[str]) -> str:
    """A line of a table as HTML."""
    name, *numbers = map(escape, line)
    cells = "".join(f'<td style="text-align: right">{number}</td>' for number in numbers)
    return f'<tr><th scope="row" style="text-align: left">{name}</th>{cells}</tr>'


def _probabilities(result: Result) -> list[str]:
    """Phrases on the calibration errors with and without the temperature, and on the images that were answered."""
    phrases = []
    errors = [(row.target, row.uncalibrated_ece, row.ece) for row in result.rows if row.uncalibrated_ece is not None]
    if errors and result.calibration:
        parts = (f"{target} {before:.1f} → {after:.1f}" for target, before, after in errors)
        phrases.append(f"calibration error at temperature {result.calibration['temperature']:.3g}: {', '.join(parts)}")
    for row in result.rows:
        if row.answered is not None:
            accuracy = row.answered["accuracy"]
            right = "" if accuracy is None else f", {accuracy:.1%} of these right"
            phrases.append(f"{row.target}: {row.answered['coverage']:.1%} of the images answered{right}")
    return phrases


def explain(result: Result) -> str:
    """Return two or three sentences that explain the table of a result."""
    gains = {row.target: row.accuracy - row.zero_shot for row in result.rows}
    if "zero_shot_harmonic_mean" in result.averages:
        (learnt, on_learnt), (other, on_other) = list(gains.items())[:2]
        return (
            f"{result.marked_method} was trained on the {learnt} classes: there it {_change(on_learnt, FROZEN)}, which "
            f"knows all classes by name only. It has seen no image of the {other} classes: there it "
            f"{_change(on_other)}. The harmonic mean is low if either accuracy is."
        )
    targets = {name: gain for name, gain in gains.items() if name != "source"} or gains
    mean = sum(targets.values()) / len(targets)
    change = _change(mean, "it")
    if len(targets) > 1:
        above = sum(gain > 0 for gain in targets.values())
        change += f" on average over {len(targets)} tests, and is above it in {above}"
    few = " So few test images give only a rough estimate." if min(row.n_images for row in result.rows) < FEW else ""
    return f"Zero-shot is the frozen model, which knows the classes by name only. {result.marked_method} {change}.{few}"


def _change(gain: float, than: str = "") -> str:
    """A gain or loss in percentage points, in words."""
    if round(abs(gain), 1) == 0:
        return f"is as accurate as {than}" if than else "neither gains nor loses"
    change, word = (f"gains {gain:.1f} points", "over") if gain >= 0 else (f"loses {-gain:.1f} points", "against")
    return f"{change} {word} {than}" if than else change


def metrics_table(method: str, row: Row, fidelity: Fidelity | None = None) -> Group:
    """Return a table of all metrics of a learner and of zero-shot CLIP on one test."""
    table = Table("metric (%)")
    method = marked(method, row.predicts, mark_of(fidelity))
    for heading in ("zero-shot", method, "gain"):
        table.add_column(heading, justify="right")
    for name, frozen, learnt in (
        ("top-1 accuracy", row.zero_shot, row.accuracy),
        *((f"  {part} alone", row.zero_shot, accuracy) for part, accuracy in (row.parts or {}).items()),
        ("top-5 accuracy", row.zero_shot_top5, row.top5),
        ("macro accuracy", row.zero_shot_macro, row.macro_accuracy),
        ("calibration error (ECE)", row.zero_shot_ece, row.ece),
        ("  without the temperature", row.zero_shot_ece, row.uncalibrated_ece),
        ("error by coverage (AURC)", row.zero_shot_aurc, row.aurc),
    ):
        if frozen is not None and learnt is not None:
            table.add_row(name, f"{frozen:.2f}", f"{learnt:.2f}", f"{learnt - frozen:+.2f}")
    if row.format_spread:
        best, worst = max(row.format_spread.values()), min(row.format_spread.values())
        spread = f"{worst:.2f} to {best:.2f}"
        table.add_row(f"format spread, {len(row.format_spread)} templates", f"{best - worst:.2f}", "", "")
    caption = f"zero-shot with single templates: {spread}" if row.format_spread else ""
    caption = "; ".join(filter(None, [caption, spread_over_draws([row])]))
    title = f"{method} on {row.dataset}: {row.target} classes ({row.n_classes}), {row.n_images:,} images"
    return Group(title, table, *([caption] if caption else []))


def comparison_table(stored: Result, rows: Sequence[Row]) -> Group:
    """Return a table of a result's accuracies and those of its tests when scored again (``rows``)."""
    table = Table("tested on")
    for heading in ("images", "stored", "now", "difference"):
        table.add_column(heading, justify="right")
    for old, new in zip(stored.rows, rows, strict=True):
        numbers = f"{old.accuracy:.2f}", f"{new.accuracy:.2f}", f"{new.accuracy - old.accuracy:+.2f}"
        table.add_row(old.target, f"{new.n_images:,}", *numbers)
    return Group(f"{stored.marked_method} on {stored.dataset}, scored again; top-1 accuracy in percent", table)
