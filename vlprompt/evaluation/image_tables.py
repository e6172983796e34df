"""The predictions of a test as a table, with one line per image."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlprompt.base.files import atomic_write
from vlprompt.base.sanitizing import csv_cell
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.scores import Evaluation


def check_predictions_file(path: Path) -> None:
    """Raise a ``VlpromptError``, before any image is scored, for a file type that ``save_predictions`` cannot write."""
    if path.suffix not in (".csv", ".parquet"):
        raise VlpromptError(f"predictions are written as .csv or .parquet, not to {path.name}")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise VlpromptError('Parquet needs pyarrow: pip install "vlprompt[parquet]", or write .csv')


def save_predictions(evaluations: Iterable[Evaluation], path: Path) -> None:
    """Write a line per image to ``.csv`` or ``.parquet``: path, true and predicted class, confidence, zero-shot CLIP's.

    Args:
        evaluations: the evaluations of the tests.
        path: ends in ``.csv`` or ``.parquet``.

    Raises:
        VlpromptError: the file type is unknown, or pyarrow is not installed.
    """
    check_predictions_file(path)
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("target", "path", "label", "class", "predicted", "predicted_class", "confidence", "correct",
                     "zero_shot", "zero_shot_class", "predicts")
    }  # fmt: skip
    for each in evaluations:
        names, made = each.class_names, each.predictions
        label, predicted, zero_shot = (x.tolist() for x in (made.label, made.predicted, made.zero_shot))
        for name, values in {
            "target": [each.row.target] * len(label),
            "path": [item.path for item in each.items],
            "label": label,
            "class": [names[i] for i in label],
            "predicted": predicted,
            "predicted_class": [names[i] for i in predicted],
            "confidence": [round(value, 6) for value in made.confidence.tolist()],
            "correct": [a == b for a, b in zip(label, predicted, strict=True)],
            "zero_shot": zero_shot,
            "zero_shot_class": [names[i] for i in zero_shot],
            "predicts": [each.row.predicts] * len(label),
        }.items():
            columns[name] += values
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        with atomic_write(path) as temporary:
            parquet.write_table(pyarrow.table(columns), temporary)
    else:
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(map(csv_cell, row) for row in zip(*columns.values(), strict=True))
