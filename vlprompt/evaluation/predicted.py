"""What was said of every test image, kept beside a run's result."""

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
    """What was said of N test images, in the order of the test list.

    Attributes:
        label: true classes (N,).
        predicted: the learner's (N,).
        zero_shot: the frozen model's (N,).
        confidence: of the learner, its largest softmax probability (N,).
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
    """Return the predictions that a run left in its folder, by target.

    Raises:
        VlpromptError: there are none, or they were changed or are another run's than ``result.json`` beside them.
    """
    path, beside = Path(folder) / PREDICTIONS, Path(folder) / RESULT
    if not path.exists():
        raise VlpromptError(f"no predictions at {path}: the run has not finished, or is of an older version")
    result = read_result(beside) if beside.exists() else None
    remedy = "restore it, or delete the run's folder and run it again"
    tensors, _ = read_tensors(path, "the file", remedy, result.files.get(PREDICTIONS) if result else None)
    targets = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
    try:
        found = {t: Predictions(*(tensors[f"{t}/{f.name}"] for f in fields(Predictions))) for t in targets}
    except KeyError as error:
        raise VlpromptError(f"{path} is not a run's predictions: {error} is missing") from error
    for row in result.rows if result else ():
        if row.target not in found or not _fit(found[row.target], row):
            raise VlpromptError(
                f"{path} is of another run than {RESULT} beside it: {row.target} does not fit; {remedy}"
            )
    return found


def _fit(said: Predictions, row: Row) -> bool:
    """Whether predictions have a row's images, classes and accuracy."""
    classes = (said.label, said.predicted, said.zero_shot)
    if any(t.shape != (row.n_images,) or t.is_floating_point() or t.is_complex() for t in classes):
        return False
    if said.confidence.shape != (row.n_images,) or any(t.min() < 0 or t.max() >= row.n_classes for t in classes):
        return False
    right = int((said.label == said.predicted).sum())
    return abs(right - row.accuracy / 100 * row.n_images) < 0.51  # tests round to whole images
