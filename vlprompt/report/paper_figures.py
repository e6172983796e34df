"""The figures over many datasets that papers print: a radar of harmonic means, and the critical-difference diagram."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlprompt.base.fonts import legible
from vlprompt.base.sanitizing import figure_text
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.evaluation.significance import Ranks, rank_methods
from vlprompt.report.cells import METRICS, Rule, check_metric, combine, first, h_of_averages, tested
from vlprompt.report.figures import method_styles
from vlprompt.report.groups import STUDY, ZERO_SHOT, Group, Key
from vlprompt.report.names import display_dataset, display_method
from vlprompt.report.tables import labels

FEWEST = 3  # datasets that a radar needs


def dataset_scores(group: Group, metric: str = "accuracy") -> tuple[list[str], dict[str, list[float]]]:
    """Return the datasets and, for each method that was run on all of them, its number on each.

    That is the harmonic mean in base-to-new, the metric at the most shots in few-shot, and each target's elsewhere.

    Args:
        group: as ``collect`` returns it.
        metric: one of ``METRICS``.
    """
    measure = check_metric(metric)
    harmonic = PROTOCOLS.get(group.protocol).average == "harmonic_mean"
    by_name: dict[str, list[Key]] = {}
    for key in group.telling_keys:
        name = key[0] if harmonic or group.protocol == STUDY else key[1]
        if name != "source":
            by_name.setdefault(name, []).append(key)
    rule: Rule = h_of_averages if harmonic else first
    scores: dict[str, list[float]] = {}
    for label in labels(group):
        cells = [
            combine([tested(group, label, key, measure) for key in keys], rule, group.seeds)
            for keys in by_name.values()
        ]
        if all(cell.value is not None for cell in cells):
            scores[label] = [cell.number for cell in cells]
    return list(by_name), scores


@legible
def radar(group: Group, metric: str = "accuracy") -> Figure:
    """Draw each method over datasets as a closed line; each axis runs from the worst method's number to the best's.

    The best number is written at the rim and the worst near the centre, so that every axis shows its span.

    Args:
        group: as ``make_report(…).group(protocol)`` returns it, with three datasets or more.
        metric: one of ``METRICS``.

    Raises:
        VlpromptError: there are fewer datasets, or no method was run on all of them.
    """
    datasets, scores = dataset_scores(group, metric)
    if len(datasets) < FEWEST or not scores:
        raise VlpromptError(f"a radar is of {FEWEST} datasets or more that a method was run on, not of {len(datasets)}")
    low, high = (np.array([*scores.values()]).min(0), np.array([*scores.values()]).max(0))
    span = np.maximum(high - low, 1e-9)
    angles = np.linspace(0, 2 * math.pi, len(datasets), endpoint=False)
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    axes = figure.add_subplot(projection="polar")
    styles = method_styles(group)
    for label, values in scores.items():
        heights = 0.25 + 0.75 * (np.array(values) - low) / span
        style = {key: value for key, value in styles[label].items() if key != "markersize"} | {"markersize": 4}
        style |= {"label": figure_text(display_method(label)), "linewidth": 1.3}
        axes.plot(np.append(angles, angles[0]), np.append(heights, heights[0]), **style)
    for angle, worst in zip(angles, low, strict=True):
        axes.text(angle, 0.17, f"{worst:.1f}", ha="center", va="center", fontsize=6, color="#555555")
    names = [f"{figure_text(display_dataset(name))}\n{best:.1f}" for name, best in zip(datasets, high, strict=True)]
    axes.set_xticks(angles, names, fontsize=8)
    axes.tick_params(axis="x", pad=12)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], [""] * 4)
    axes.set_ylim(0, 1.0)
    axes.spines["polar"].set_visible(False)
    figure.suptitle(figure_text(f"{group.title}: {_what(group, metric)}"), fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _what(group: Group, metric: str) -> str:
    harmonic = PROTOCOLS.get(group.protocol).average == "harmonic_mean"
    return f"harmonic mean of {METRICS[metric].title}" if harmonic else METRICS[metric].title


@legible
def critical_difference(group: Group, metric: str = "accuracy") -> Figure:
    """Draw the methods' mean ranks over datasets; a bar joins those that do not differ at 5% (Demšar, JMLR 2006).

    Args:
        group: as ``make_report(…).group(protocol)`` returns it, with two methods and two datasets or more.
        metric: one of ``METRICS``.

    Raises:
        VlpromptError: there are fewer methods or datasets.
    """
    _, scores = dataset_scores(group, metric)
    higher = METRICS[metric].higher
    ranks = rank_methods({label: [v if higher else -v for v in values] for label, values in scores.items()})
    order = sorted(ranks.mean, key=lambda label: ranks.mean[label])
    rows = math.ceil(len(order) / 2)
    figure = Figure(figsize=(7.0, 1.5 + 0.26 * rows), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0.2, len(order) + 0.8), ylim=(-rows - 1.6, 1.6))
    axes.axis("off")
    axes.plot([1, len(order)], [0, 0], color="black", linewidth=1)
    for rank in range(1, len(order) + 1):
        axes.plot([rank, rank], [0, 0.15], color="black", linewidth=1)
        axes.text(rank, 0.3, str(rank), ha="center", fontsize=8)
    for i, label in enumerate(order):
        _name_rank(axes, label, ranks.mean[label], i if i < rows else len(order) - 1 - i, i < rows, len(order))
    for j, (start, end) in enumerate(_alike(order, ranks)):
        y = -0.25 - 0.16 * j
        axes.plot([start - 0.04, end + 0.04], [y, y], color="black", linewidth=3, solid_capstyle="butt")
    axes.plot([1, 1 + ranks.critical], [1.15, 1.15], color="black", linewidth=1.5)
    caption = f"critical difference {ranks.critical:.2f}, {ranks.n_datasets} datasets, Friedman p = {ranks.p:.2g}"
    axes.text(1, 1.3, caption, fontsize=8)
    return figure


def _name_rank(axes: Axes, label: str, rank: float, row: int, left: bool, n: int) -> None:
    """Draw a line from a rank on the axis down to the method's name at the figure's edge."""
    y, edge = -1.3 - row, 0.9 if left else n + 0.1
    axes.plot([rank, rank, edge], [0, y, y], color="#767676", linewidth=0.8)
    name = "zero-shot" if label == ZERO_SHOT else display_method(label)
    side = "right" if left else "left"
    axes.text(
        edge - 0.05 if left else edge + 0.05, y, f"{figure_text(name)} ({rank:.2f})", ha=side, va="center", fontsize=8
    )


def _alike(order: Sequence[str], ranks: Ranks) -> list[tuple[float, float]]:
    """The first and last rank of each longest run of methods within the critical difference of each other."""
    found: list[tuple[float, float]] = []
    for i, label in enumerate(order):
        start = ranks.mean[label]
        within = [ranks.mean[other] for other in order[i + 1 :] if ranks.mean[other] - start <= ranks.critical]
        if within and (not found or within[-1] > found[-1][1]):
            found.append((start, within[-1]))
    return found
