"""Figures for papers: each function returns a matplotlib ``Figure``, which ``savefig`` writes as PDF, PNG or SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlprompt.base.fonts import legible, shorten
from vlprompt.base.sanitizing import figure_text
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.averages import harmonic_mean
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.report.cells import METRICS, Cell
from vlprompt.report.class_gains import robin_hoods
from vlprompt.report.groups import STUDY, ZERO_SHOT, Group, Key, say_shots
from vlprompt.report.pairs import changes
from vlprompt.report.summaries import (
    COLOURS,
    WIDEST,
    confusion_counts,
    mean_selective,
    pooled_reliability,
    reach,
    shot_positions,
    style_index,
    within_percent,
)
from vlprompt.report.tables import Line, make_tables

FORMATS = ("pdf", "png", "svg")
GREY = "#767676"
MARKERS = ("o", "s", "D")  # of summaries.SHAPES
LINES = ("-", (0, (6, 1.5)), (0, (1.5, 1.5)))
NAMED = 30  # largest number of classes whose names fit on an axis
ROW = 4  # largest number of panels side by side
MANY = 6  # largest number of few-shot curves whose bands can be told apart


@legible
def few_shot_curves(group: Group, metric: str = "accuracy") -> Figure:
    """Draw accuracy by shots with 95% intervals over seeds, in a panel for their mean and one per dataset.

    Args:
        group: of protocol ``few_shot``, as ``make_report(…).group("few_shot")`` returns it.
        metric: one of ``vlprompt.report.cells.METRICS``.

    Raises:
        VlpromptError: the group is of another protocol.
    """
    if group.protocol != STUDY:
        raise VlpromptError(f"few-shot curves need protocol={STUDY}, not {group.protocol}")
    [table] = make_tables(group, metric)
    shots = shot_positions(table)
    alone = len(table.sections) == 1
    figure, panels = _panels(len(table.sections), size=4 if alone else 2.8)
    styles = method_styles(group)
    for axes, section in zip(panels, table.sections, strict=False):
        opacity = 0.15 if len(section.lines) <= MANY else 0.06  # bands of many curves would hide one another
        for line in section.lines:
            _curve(axes, list(shots.values()), line, styles[line.label], opacity)
        axes.set_ylim(*within_percent(*axes.get_ylim()))
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(shots.values()), list(shots), minor=False)
        axes.minorticks_off()
        axes.set_title(figure_text(section.heading), fontsize=9)
        axes.set_xlabel("training images per class")
    panels[0].set_ylabel(METRICS[metric].title)
    return _with_legend(figure, panels[0])


def _curve(axes: Axes, shots: Sequence[float], line: Line, style: dict[str, Any], opacity: float) -> None:
    """Draw the curve of a method with its intervals as a band."""
    points = [(x, cell) for x, cell in zip(shots, line.cells, strict=True) if cell.value is not None]
    xs, ys = [x for x, _ in points], [cell.number for _, cell in points]
    if line.label == ZERO_SHOT:
        axes.plot(xs, ys, color=GREY, linestyle="--", label="zero-shot")
        return
    axes.plot(xs, ys, **style | {"markersize": 3.5}, label=figure_text(line.label))
    banded = [(x, *cell.interval) for x, cell in points if cell.interval]
    if banded:
        axes.fill_between(*np.array(banded).T, color=style["color"], alpha=opacity, linewidth=0)


@legible
def base_new(group: Group, metric: str = "accuracy") -> Figure:
    """Draw new against base accuracy, with deviations over seeds and lines of equal harmonic mean.

    Each point is a method, and a mean over the datasets if there are several.

    Args:
        group: of protocol ``base_to_new`` or ``generalized``.
        metric: one of ``vlprompt.report.cells.METRICS``.

    Raises:
        VlpromptError: the group is of another protocol.
    """
    if PROTOCOLS.get(group.protocol).average != "harmonic_mean":
        raise VlpromptError(f"base against new needs protocol=base_to_new or generalized, not {group.protocol}")
    table = make_tables(group, metric)[0]
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    axes = figure.subplots()
    styles = method_styles(group)
    for line in table.sections[0].lines:
        base, new = line.cells[:2]
        if base.value is not None and new.value is not None:
            style = styles[line.label] | {"linestyle": ""}
            if base.std or new.std:
                bars = {"capsize": 2, "elinewidth": 1, "linestyle": "", "color": style["color"]}
                axes.errorbar(base.value, new.value, xerr=_arms(base), yerr=_arms(new), **bars)
            named = "zero-shot" if line.label == ZERO_SHOT else figure_text(line.label)
            axes.plot(base.value, new.value, label=named, **style)
    axes.set_xlabel(f"{table.columns[0].heading} classes, {METRICS[metric].title}")
    axes.set_ylabel(f"{table.columns[1].heading} classes, {METRICS[metric].title}")
    axes.set_title(figure_text(table.title if len(table.sections) == 1 else group.title), fontsize=9)
    axes.margins(0.15)
    _equal_harmonic_means(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _arms(cell: Cell) -> list[list[float]]:
    """The lengths of a number's error bars down and up, cut off at 0 and 100."""
    low, high = reach(cell)
    return [[cell.number - low], [high - cell.number]]


def _equal_harmonic_means(axes: Axes) -> None:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    x, y = np.meshgrid(np.linspace(max(left, 0.1), right, 80), np.linspace(max(low, 0.1), high, 80))
    lines = axes.contour(x, y, np.vectorize(harmonic_mean)(x, y), levels=6, colors="#bbbbbb", linewidths=0.7)
    axes.clabel(lines, fmt="H %.0f", fontsize=7)


@legible
def reliability(group: Group, keys: Sequence[Key] | None = None) -> Figure:
    """Draw accuracy by confidence, in a panel per method, pooled over tests and seeds.

    More opaque bars have more images.

    Args:
        group: from ``collect``.
        keys: the tests; None means all of the group, with the largest number of shots.

    Raises:
        VlpromptError: no result of the group holds its calibration.
    """
    pooled = {label: pooled_reliability(group, label, keys) for label in group.values}
    available = {label: each for label, each in pooled.items() if each is not None}
    if not available:
        raise VlpromptError(f"the results of {group.title} hold no calibration: run them again")
    figure, panels = _panels(len(available), square=True)
    styles = method_styles(group)
    for axes, (label, each) in zip(panels, available.items(), strict=False):
        bins, images = len(each.images), np.array(each.images)
        centres = (np.arange(bins) + 0.5) / bins
        bars = axes.bar(centres, each.accuracy, width=0.94 / bins, color=styles[label]["color"])
        for bar, fullness in zip(bars, images / max(images.max(), 1), strict=True):
            bar.set_alpha(0.25 + 0.75 * fullness)  # a bin with few images means little
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
        axes.plot(centres, images / max(images.sum(), 1), color="black", linewidth=0.8, label="share of images")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence")
        axes.set_title(f"{figure_text(label)}, ECE {100 * each.expected_calibration_error:.1f}%", fontsize=9)
    panels[0].set_ylabel("accuracy")
    panels[0].legend(frameon=False, fontsize=7, loc="upper left")
    return figure


@legible
def accuracy_coverage(group: Group, keys: Sequence[Key] | None = None) -> Figure:
    """Draw the accuracy–coverage curve of each method, averaged over tests.

    Args:
        group: from ``collect``.
        keys: the tests; None means all of the group, with the largest number of shots.

    Raises:
        VlpromptError: no result of the group holds its curve.
    """
    curves = {label: mean_selective(group, label, keys) for label in group.values}
    saved = {label: curve for label, curve in curves.items() if curve is not None}
    if not saved:
        raise VlpromptError(f"the results of {group.title} hold no accuracy by coverage: run them again")
    figure, [axes] = _panels(1, size=4)
    styles = method_styles(group)
    for label, (coverage, accuracy) in saved.items():
        axes.plot(coverage, accuracy, **styles[label] | {"markersize": 3.5}, label=figure_text(label))
    axes.set_xlim(0, 100)
    axes.set_ylim(*within_percent(*axes.get_ylim()))
    axes.set(xlabel="images answered, the most confident first (%)", ylabel="accuracy of these (%)")
    return _with_legend(figure, axes)


@legible
def confusion(group: Group, key: Key, methods: Sequence[str] | None = None) -> Figure:
    """Draw the confusion matrix of each method; rows are true classes and sum to one.

    Args:
        group: from ``collect``.
        key: a test of the group, such as ``("emoji", "new", None)``; see ``group.keys``.
        methods: labels of rows in the group's tables; None means all that were run on the test.

    Raises:
        VlpromptError: a method was not run on the test, or has no predictions.
    """
    chosen = methods or [label for label, cells in group.values.items() if key in cells]
    figure, panels = _panels(len(chosen), square=True, size=3.6)
    for axes, label in zip(panels, chosen, strict=False):
        names, counts = confusion_counts(group, label, key)
        names = [figure_text(shorten(name, WIDEST)) for name in names]
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
        shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(figure_text(label), fontsize=9)
        place = panels.index(axes)
        ticks = range(len(names)) if len(names) <= NAMED else []
        below, left = place + ROW >= len(panels), place % ROW == 0  # only panels at the edge name the classes
        axes.set_xticks(ticks, names if ticks and below else [""] * len(ticks), rotation=90, fontsize=6)
        axes.set_yticks(ticks, names if ticks and left else [""] * len(ticks), fontsize=6)
        axes.set(xlabel="predicted" if below else "", ylabel="true class" if left else "")
    title = ", ".join([*key[:2], *([say_shots(key[2])] if key[2] else [])])
    figure.suptitle(figure_text(title), fontsize=10)
    bar = figure.colorbar(shown, ax=panels, shrink=0.6)
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


@legible
def robin_hood(group: Group, key: Key) -> Figure:
    """Draw the gain of each class against its zero-shot accuracy with the fitted line, in a panel per method.

    The dashed line is the largest possible gain.

    Args:
        group: from ``collect``.
        key: a test of the group, such as ``("emoji", "new", None)``; see ``group.keys``.

    Raises:
        VlpromptError: no method has counts by class on the test, or there are fewer than five classes.
    """
    effects = robin_hoods(group, key)
    if not effects:
        raise VlpromptError(f"no method has counts of five classes or more on {key[0]}, {key[1]}")
    figure, panels = _panels(len(effects))
    styles = method_styles(group)
    for axes, (label, fitted) in zip(panels, effects.items(), strict=False):
        x, y = np.array([(each.zero_shot, each.gain) for each in changes(group, label, key)]).T
        ends, style = np.array([x.min(), x.max()]), styles[label]
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.plot(ends, 100 - ends, color=GREY, linestyle="--", linewidth=0.8)
        axes.plot(x, y, **style | {"linestyle": "", "markersize": 4}, alpha=0.7)
        axes.plot(ends, fitted.intercept + fitted.slope * ends, color=style["color"], linewidth=1.5)
        axes.set_ylim(*_with_margin(np.append(y, 0.0)))
        rho = "" if fitted.rho is None else f", ρ {fitted.rho:+.2f}"
        axes.set_title(f"{figure_text(label)}: slope {fitted.slope:+.2f}{rho}", fontsize=9)
        axes.set_xlabel("zero-shot accuracy of a class (%)")
    panels[0].set_ylabel("gain (points)")
    figure.supxlabel("dashed: the largest possible gain", fontsize=8, color=GREY)
    return figure


def _with_margin(values: np.ndarray) -> tuple[float, float]:
    pad = max(float(np.ptp(values)) * 0.08, 1.0)
    return float(values.min()) - pad, float(values.max()) + pad


def _panels(n: int, square: bool = False, size: float = 2.8) -> tuple[Figure, list[Axes]]:
    """Return a figure and its ``n`` panels, at most ``ROW`` of them side by side."""
    columns = min(n, ROW)
    rows = math.ceil(n / columns)
    figure = Figure(
        figsize=(size * columns + 0.8, (size if square else 0.85 * size) * rows + 0.5), layout="constrained"
    )
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in panels[n:]:
        empty.axis("off")
    return figure, panels[:n]


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    """Add a legend below a figure, with as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    columns = min(
        len(names), max(1, int(width / max(1.2, 0.6 + 0.065 * max(map(len, names))))), 6
    )  # 8 pt: 0.065 in a sign
    figure.set_size_inches(width, height + 0.2 * math.ceil(len(names) / columns))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def method_styles(group: Group) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style of each method, as arguments of matplotlib."""
    styles = style_index(label for label in group.values if label != ZERO_SHOT)
    return {ZERO_SHOT: {"color": GREY, "marker": "*", "markersize": 9}} | {
        label: {"color": COLOURS[colour], "marker": MARKERS[shape], "linestyle": LINES[shape]}
        for label, (colour, shape) in styles.items()
    }
