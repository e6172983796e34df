"""The predictions for every test image, saved beside a run's result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from torch import Tensor

from vlprompt.base.layout import PREDICTIONS, RESULT
from vlprompt.base.sealed import read_tensors, write_tensors
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.results import read_result
from vlprompt.evaluation.rows import Row


@dataclass(frozen=True)
class Predictions:
    """The predictions for N test images, in the order of the test list.

    Attributes:
        label: true classes (N,).
        predicted: the learner's predictions (N,).
        zero_shot: the frozen model's predictions (N,).
        confidence: the learner's largest softmax probabilities (N,).
    """

    label: Tensor
    predicted: Tensor
    zero_shot: Tensor
    confidence: Tensor


def write_predictions(folder: Path, predictions: Mapping[str, Predictions]) -> str:
    """Write the predictions of each target beside a run's result, and return the file's hash."""
    tensors = {
        f"{target}/{f.name}": getattr(each, f.name) for target, each in predictions.items() for f in fields(each)
    }
    return write_tensors(folder / PREDICTIONS, tensors)


def read_predictions(folder: str | Path) -> dict[str, Predictions]:
    """Read the predictions in a run's folder, by target.

    Raises:
        VlpromptError: there are none, they were changed, or they do not belong to ``result.json`` beside them.
    """
    path, result_path = Path(folder) / PREDICTIONS, Path(folder) / RESULT
    if not path.exists():
        raise VlpromptError(f"no predictions at {path}: the run has not finished, or is of an older version")
    result = read_result(result_path) if result_path.exists() else None
    remedy = "restore it, or delete the run's folder and run it again"
    tensors, _ = read_tensors(path, "the file", remedy, result.files.get(PREDICTIONS) if result else None)
    targets = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
    try:
        predictions = {t: Predictions(*(tensors[f"{t}/{f.name}"] for f in fields(Predictions))) for t in targets}
    except KeyError as error:
        raise VlpromptError(f"{path} is not a run's predictions: {error} is missing") from error
    for row in result.rows if result else ():
        if row.target not in predictions or not _fit(predictions[row.target], row):
            raise VlpromptError(
                f"{path} is of another run than {RESULT} beside it: {row.target} does not fit; {remedy}"
            )
    return predictions


def _fit(made: Predictions, row: Row) -> bool:
    """Whether predictions have the number of images, the classes and the accuracy of a row."""
    classes = (made.label, made.predicted, made.zero_shot)
    if any(t.shape != (row.n_images,) or t.is_floating_point() or t.is_complex() for t in classes):
        return False
    if made.confidence.shape != (row.n_images,) or any(t.min() < 0 or t.max() >= row.n_classes for t in classes):
        return False
    right = int((made.label == made.predicted).sum())
    return abs(right - row.accuracy / 100 * row.n_images) < 0.51  # allows for a rounded accuracy
