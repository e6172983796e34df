"""A classifier's predictions of labelled images: accuracy overall and by class, confusions, and confident mistakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from vlprompt.analysis.data_findings import DataFindings
from vlprompt.base.sanitizing import printable
from vlprompt.base.wiring import wired
from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.abstention import AccuracyCoverage
from vlprompt.evaluation.frames import data_frame
from vlprompt.evaluation.metrics import Reliability, confusion_matrix, count_per_class, macro_accuracy
from vlprompt.evaluation.saved_predictions import Predictions
from vlprompt.evaluation.statistics import ClassChange, interval_over_images
from vlprompt.learner.facts import Predicts

if TYPE_CHECKING:
    import pandas

TABLES = ("classes", "confusions", "images")
SHOWN = 8  # rows of the table that a notebook shows


@dataclass(frozen=True)
class ClassPredictions:
    """How the images of one class were predicted.

    Attributes:
        name: the class's name.
        images: the number of its images.
        correct, zero_shot_correct: how many the classifier and the frozen model predicted correctly.
        interval: 95% interval of the accuracy over images, in percent; None without images.
        taken_for: the class that they were most often mistaken for; empty if all are correct.
        taken: how many were mistaken for it.
    """

    name: str
    images: int
    correct: int
    zero_shot_correct: int
    interval: tuple[float, float] | None
    taken_for: str
    taken: int

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the class in percent; None without images."""
        return 100 * self.correct / self.images if self.images else None

    @property
    def zero_shot(self) -> float | None:
        """Accuracy of the frozen model on the class in percent; None without images."""
        return 100 * self.zero_shot_correct / self.images if self.images else None


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were taken for another.

    Attributes:
        label, predicted: the true and the predicted class, as indices into the class names.
        images: how many.
        share: what share of the true class's images that is, in percent.
    """

    label: int
    predicted: int
    images: int
    share: float


@dataclass(frozen=True, repr=False)
class Inspection:
    """A classifier's predictions of N labelled images; accuracies in percent.

    Attributes:
        title: the classifier and the test, such as ``coop on emoji: new``.
        class_names: C names, in label order.
        names: N names of the images, such as their paths.
        said: labels, predictions, zero-shot predictions and confidences, each (N,).
        predicts: whether each image was predicted ``alone``, ``online`` or ``jointly``.
        open_image: opens the image at an index; None if there are features only.
        facts: further facts to show, by name.
        findings: probable label errors and near-duplicates among these images and those learnt from; None if they
            were not looked for.
        min_probability: the confidence, in [0, 1], from which the classifier answers; None if it always answers.
    """

    title: str
    class_names: tuple[str, ...]
    names: Sequence[str]
    said: Predictions
    predicts: Predicts = "alone"
    open_image: Callable[[int], Image.Image] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    findings: DataFindings | None = None
    min_probability: float | None = None

    @cached_property
    def right(self) -> Tensor:
        """Whether each prediction is correct: (N,)."""
        return self.said.predicted == self.said.label

    @property
    def n_images(self) -> int:
        """The number of images, N."""
        return len(self.said.label)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy."""
        return 100 * int(self.right.sum()) / self.n_images

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the accuracy over images, see ``vlprompt.evaluation.statistics.interval_over_images``."""
        return interval_over_images(int(self.right.sum()), self.n_images)

    @property
    def macro_accuracy(self) -> float:
        """Mean of the accuracies of the classes."""
        return 100 * macro_accuracy(self.said.label.long(), self.said.predicted.long(), len(self.class_names))

    @property
    def zero_shot(self) -> float:
        """Top-1 accuracy of the frozen model."""
        return 100 * int((self.said.zero_shot == self.said.label).sum()) / self.n_images

    @cached_property
    def reliability(self) -> Reliability:
        """Accuracy by confidence, in bins."""
        return Reliability.binned(self.said.confidence, self.right)

    @property
    def ece(self) -> float:
        """Expected calibration error in percentage points."""
        return 100 * self.reliability.expected_calibration_error

    @cached_property
    def coverage(self) -> AccuracyCoverage:
        """Accuracy by the share of images that are answered, the most confident first."""
        return AccuracyCoverage.of(self.said.confidence, self.right)

    @cached_property
    def confusion(self) -> Tensor:
        """The number of images by true class (rows) and predicted class (columns): (C, C)."""
        return confusion_matrix(self.said.label, self.said.predicted, len(self.class_names))

    @cached_property
    def classes(self) -> list[ClassPredictions]:
        """How the images of each class were predicted, in label order."""
        labels, n_classes = self.said.label.long(), len(self.class_names)
        images, correct = count_per_class(labels, self.said.predicted.long(), n_classes)
        _, frozen = count_per_class(labels, self.said.zero_shot.long(), n_classes)
        wrong = self.confusion - self.confusion.diag().diag()
        taken, place = wrong.max(dim=1)
        rows = zip(self.class_names, *(x.tolist() for x in (images, correct, frozen, taken, place)), strict=True)
        return [
            ClassPredictions(
                name, n, c, z, interval_over_images(c, n) if n else None, self.class_names[p] if t else "", t
            )
            for name, n, c, z, t, p in rows
        ]

    @property
    def changes(self) -> list[ClassChange]:
        """The classifier's gain over zero-shot on each class, the largest first."""
        changes = [
            ClassChange(c.name, c.images, c.accuracy, c.zero_shot)
            for c in self.classes
            if c.accuracy is not None and c.zero_shot is not None
        ]
        return sorted(changes, key=lambda change: -change.gain)

    def confusions(self, most: int | None = None) -> list[Confusion]:
        """Which classes were mistaken for which, the most frequent first; ``most`` of them, or all."""
        images = self.confusion.sum(dim=1)
        wrong = self.confusion - self.confusion.diag().diag()
        pairs = [(int(wrong[i, j]), i, j) for i, j in wrong.nonzero().tolist()]
        frequent = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:most]
        return [Confusion(i, j, n, 100 * n / int(images[i])) for n, i, j in frequent]

    def mistakes(self, most: int | None = None) -> list[int]:
        """Indices of the misclassified images, the most confident mistake first; ``most`` of them, or all."""
        order = self.said.confidence.argsort(descending=True, stable=True)
        return order[~self.right[order]].tolist()[:most]

    # Tables and files

    def table(self, name: str = "images") -> dict[str, list[Any]]:
        """Return the table ``images``, ``classes`` or ``confusions`` as a list per column.

        Raises:
            VlpromptError: there is no such table.
        """
        if name not in TABLES:
            raise VlpromptError(f"unknown table '{name}': {nearest(str(name), TABLES)}")
        columns: dict[str, list[Any]] = getattr(self, f"_{name}_columns")()
        return columns

    def to_frame(self, table: str = "images") -> pandas.DataFrame:
        """Return a table as a pandas ``DataFrame``.

        Raises:
            VlpromptError: pandas is not installed, or there is no such table.
        """
        columns = self.table(table)
        return data_frame(dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))

    def _images_columns(self) -> dict[str, list[Any]]:
        said, names = self.said, self.class_names
        return {
            "image": list(self.names),
            "class": [names[i] for i in said.label.tolist()],
            "predicted": [names[i] for i in said.predicted.tolist()],
            "confidence": [round(value, 6) for value in said.confidence.tolist()],
            "correct": self.right.tolist(),
            "zero_shot": [names[i] for i in said.zero_shot.tolist()],
        }

    def _classes_columns(self) -> dict[str, list[Any]]:
        gains = {change.name: change.gain for change in self.changes}
        return {
            "class": [c.name for c in self.classes],
            "images": [c.images for c in self.classes],
            "accuracy": [c.accuracy for c in self.classes],
            "low": [c.interval and c.interval[0] for c in self.classes],
            "high": [c.interval and c.interval[1] for c in self.classes],
            "zero_shot": [c.zero_shot for c in self.classes],
            "gain": [gains.get(c.name) for c in self.classes],
            "taken_for": [c.taken_for for c in self.classes],
            "taken": [c.taken for c in self.classes],
        }

    def _confusions_columns(self) -> dict[str, list[Any]]:
        confusions = self.confusions()
        return {
            "class": [self.class_names[c.label] for c in confusions],
            "taken_for": [self.class_names[c.predicted] for c in confusions],
            "images": [c.images for c in confusions],
            "share": [c.share for c in confusions],
        }

    def save(self, folder: str | Path, images: int | None = None) -> Path:
        """Write the page ``inspect.html``, the contact sheet ``mistakes.png`` and every table as CSV into a folder.

        Args:
            folder: created if it does not exist; other files in it stay.
            images: how many mistakes, label errors and pairs to show, each at most; None for the usual number.

        Returns:
            The path of the page.
        """
        page: Path = wired("save_inspections")([self], folder, images)
        return page

    def headline(self) -> str:
        """Accuracy with its interval, number of images, zero-shot accuracy and calibration, in one line."""
        low, high = self.interval
        return (
            f"{self.accuracy:.1f}% [{low:.1f}, {high:.1f}] of {self.n_images:,} images right, zero-shot "
            f"{self.zero_shot:.1f}%, calibration error {self.ece:.1f}%"
        )

    def __repr__(self) -> str:
        return f"Inspection({printable(self.title)}: {self.headline()})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the headline, and the classes with the lowest accuracy."""
        worst = sorted((c for c in self.classes if c.images), key=lambda c: c.correct / c.images)[:SHOWN]
        cells = [
            (
                c.name,
                c.images,
                f"{c.accuracy:.1f}",
                f"{c.zero_shot:.1f}",
                f"{c.taken_for} ({c.taken})" if c.taken else "",
            )
            for c in worst
        ]
        head = "".join(f'<th scope="col">{name}</th>' for name in ("class", "images", "%", "zero-shot", "taken for"))
        rows = "".join(
            f'<tr><th scope="row">{_text(first)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in rest)}</tr>'
            for first, *rest in cells
        )
        title = f"<b>{_text(self.title)}</b>: {_text(self.headline())}"
        return f"<p>{title}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _text(value: Any) -> str:
    return escape(printable(str(value)))


def as_predictions(labels: Tensor, probabilities: Tensor, frozen: Tensor) -> Predictions:
    """Return the predictions by a classifier's probabilities and the frozen model's logits, each (N, C).

    Args:
        labels: (N,) true classes.
        probabilities: (N, C) by the classifier.
        frozen: (N, C) logits of the frozen model.
    """
    confidence, predicted = probabilities.max(dim=1)
    label, predicted, zero_shot = (x.to(torch.int32) for x in (labels, predicted, frozen.argmax(dim=1)))
    return Predictions(label, predicted, zero_shot, confidence)
