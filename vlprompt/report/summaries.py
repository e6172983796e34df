"""What figures and the page's charts both show of a group: calibration, selective accuracy, confusion, colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vlprompt.errors import VlpromptError
from vlprompt.evaluation.abstention import POINTS
from vlprompt.evaluation.metrics import Reliability, confusion_matrix
from vlprompt.evaluation.rows import Row
from vlprompt.evaluation.saved_predictions import read_predictions
from vlprompt.report.cells import Cell
from vlprompt.report.groups import Group, Key
from vlprompt.report.tables import Table

# Okabe and Ito's colours, which colour-blind readers can tell apart; zero-shot is grey
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f3c8d")
SHAPES = ("circle", "square", "diamond")  # distinguish methods of the same colour

WIDEST = 18  # columns of a class name beside a chart

Style = tuple[int, int]  # of a method: indices of COLOURS and SHAPES


def style_index(names: Iterable[str]) -> dict[str, Style]:
    """Give each name its own colour and shape, in order; after 24 names they repeat."""
    n = len(COLOURS)
    return {name: (i % n, i // n % len(SHAPES)) for i, name in enumerate(dict.fromkeys(names))}


def within_percent(low: float, high: float) -> tuple[float, float]:
    """Clip the ends of an axis to [0, 100], since percentages are drawn even where an interval exceeds them."""
    return max(low, 0.0), min(high, 100.0)


def reach(cell: Cell) -> tuple[float, float]:
    """A cell's number minus and plus its deviation, clipped to [0, 100]."""
    return within_percent(cell.number - (cell.std or 0), cell.number + (cell.std or 0))


def pooled_reliability(group: Group, label: str, keys: Sequence[Key] | None = None) -> Reliability | None:
    """Pool a method's calibration over tests and seeds, each image counting once a seed; None for results of schema 1.

    Args:
        group: as ``collect`` returns it.
        label: a method of the group.
        keys: the tests; by default all of the group's at the largest number of shots.
    """
    curves = [row.reliability for row in _rows(group, label, keys) if row.reliability is not None]
    if not curves:
        return None
    images = np.array([each["images"] for each in curves])  # (tests, bins)
    total = images.sum(axis=0)

    def mean(values: Iterable[list[float]]) -> list[float]:
        means: list[float] = ((images * np.array([*values])).sum(axis=0) / np.maximum(total, 1)).tolist()
        return means

    confidence, accuracy = mean(each["confidence"] for each in curves), mean(each["accuracy"] for each in curves)
    return Reliability(total.tolist(), confidence, accuracy)


def mean_selective(
    group: Group, label: str, keys: Sequence[Key] | None = None
) -> tuple[list[float], list[float]] | None:
    """A method's accuracy by coverage, both in percent: the mean over tests and seeds; None for earlier results.

    Args:
        group: as ``collect`` returns it.
        label: a method of the group.
        keys: the tests; by default all of the group's at the largest number of shots.
    """
    saved = [row.selective for row in _rows(group, label, keys) if row.selective is not None]
    if not saved:
        return None
    shares = (np.arange(POINTS) + 1) / POINTS
    curves = [np.interp(shares, each["coverage"], each["accuracy"]) for each in saved]
    return (100 * shares).tolist(), (100 * np.mean(curves, axis=0)).tolist()


def _rows(group: Group, label: str, keys: Sequence[Key] | None) -> list[Row]:
    return [test.row for key in keys or group.telling_keys for test in group.values[label].get(key, ())]


def confusion_counts(group: Group, label: str, key: Key) -> tuple[list[str], np.ndarray]:
    """Return the class names and the counts (C, C) of true by predicted class, summed over a method's seeds.

    Raises:
        VlpromptError: the method was not run on that test, or its predictions or class names were not saved.
    """
    tests = group.values.get(label, {}).get(key, [])
    if not tests or tests[0].row.per_class is None:
        raise VlpromptError(
            f"there are no predictions of {label} for {key[0]}, {key[1]}: run it, or choose another test"
        )
    names = list(tests[0].row.per_class["class"])
    counts = np.zeros((len(names), len(names)), dtype=int)
    for test in tests:
        predictions = read_predictions(test.run.path.parent)[key[1]]
        counts += confusion_matrix(predictions.label, predictions.predicted, len(names)).numpy()
    return names, counts


def shot_positions(table: Table) -> dict[str, float]:
    """The position of each few-shot column on the axis of shots, by its label there; ``all`` comes last."""
    numbers = [column.heading.split()[0] for column in table.columns]
    last = max((int(n) for n in numbers if n.isdigit()), default=1)
    return {n: float(n) if n.isdigit() else 2.0 * last for n in numbers}
