"""What a learner and zero-shot said of test images, and the numbers that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.evaluation.abstention import AccuracyCoverage
from vlprompt.evaluation.metrics import Reliability, count_per_class, macro_accuracy, top_k_accuracy
from vlprompt.evaluation.predicted import Predictions
from vlprompt.evaluation.rows import Row
from vlprompt.learner.facts import Familiar, Predicts


@dataclass(frozen=True)
class Scores:
    """What a learner says of N test images.

    Attributes:
        labels: (N,) true labels.
        logits: (N, C).
        parts: what they were fused of, by name, each (N, C); empty where they are in one piece.
        temperature: what logits are divided by before they become probabilities.
    """

    labels: Tensor
    logits: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    temperature: float = 1.0

    @cached_property
    def predicted(self) -> Tensor:
        """The class of each image's largest logit: (N,)."""
        return self.logits.argmax(dim=1)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in [0, 1]."""
        return int((self.predicted == self.labels).sum()) / len(self.labels)

    @property
    def part_accuracies(self) -> dict[str, float]:
        """Top-1 accuracy in [0, 1] of each part by itself."""
        return {name: Scores(self.labels, logits).accuracy for name, logits in self.parts.items()}

    @property
    def macro_accuracy(self) -> float:
        """Mean over the classes that have test images of their accuracies, in [0, 1]."""
        return macro_accuracy(self.labels, self.predicted, self.logits.shape[1])

    @property
    def top5(self) -> float | None:
        """Share in [0, 1] of images whose label is among the five likeliest; None below six classes."""
        return top_k_accuracy(self.labels, self.logits, 5) if self.logits.shape[1] > 5 else None

    @cached_property
    def reliability(self) -> Reliability:
        """Accuracy by confidence, and the expected calibration error."""
        return Reliability.of(self.labels, self.logits / self.temperature)

    @property
    def confidence(self) -> Tensor:
        """Each image's largest probability: (N,)."""
        return (self.logits / self.temperature).softmax(dim=1).amax(dim=1)

    @cached_property
    def by_coverage(self) -> AccuracyCoverage:
        """Accuracy by the share of images that are answered, the surest first."""
        return AccuracyCoverage.of(self.confidence.numpy(), (self.predicted == self.labels).numpy())


@dataclass(frozen=True)
class Evaluation:
    """A learner and the zero-shot classifier on the same test images.

    Attributes:
        row: all metrics, as a result keeps them.
        class_names: C names, in label order.
        items: the N images.
        learnt, frozen: scores of the learner and of zero-shot.
    """

    row: Row
    class_names: tuple[str, ...]
    items: Sequence[Item]
    learnt: Scores
    frozen: Scores

    @property
    def predictions(self) -> Predictions:
        """What both said of each image, small enough to keep."""
        label, predicted, zero_shot = (
            x.to(torch.int32) for x in (self.learnt.labels, self.learnt.predicted, self.frozen.predicted)
        )
        return Predictions(label, predicted, zero_shot, self.learnt.confidence)


def make_row(
    target: str,
    part: DatasetSplits,
    learnt: Scores,
    frozen: Scores,
    predicts: Predicts,
    familiar: Familiar,
    min_probability: float | None,
) -> Row:
    """Return what a result keeps of a test.

    Args:
        target: its name in the protocol.
        part: what was tested on.
        learnt, frozen: what the learner and zero-shot said.
        predicts, familiar: as ``Row`` has them.
        min_probability: from what probability on the learner answers; None if it answers all.
    """
    n_classes, bins = len(part.class_names), learnt.reliability
    images, correct = count_per_class(learnt.labels, learnt.predicted, n_classes)
    _, frozen_correct = count_per_class(frozen.labels, frozen.predicted, n_classes)
    return Row(
        target=target,
        dataset=part.name,
        n_classes=n_classes,
        n_images=len(learnt.labels),
        accuracy=100 * learnt.accuracy,
        macro_accuracy=100 * learnt.macro_accuracy,
        zero_shot=100 * frozen.accuracy,
        zero_shot_macro=100 * frozen.macro_accuracy,
        split=replace(part, train=(), val=()).fingerprint(),  # the training draw differs between seeds
        top5=None if learnt.top5 is None else 100 * learnt.top5,
        zero_shot_top5=None if frozen.top5 is None else 100 * frozen.top5,
        ece=100 * learnt.reliability.expected_calibration_error,
        zero_shot_ece=100 * frozen.reliability.expected_calibration_error,
        per_class={
            "class": list(part.class_names),
            "images": images.tolist(),
            "correct": correct.tolist(),
            "zero_shot_correct": frozen_correct.tolist(),
        },
        reliability={"images": bins.images, "confidence": bins.confidence, "accuracy": bins.accuracy},
        predicts=predicts,
        familiar=familiar,
        parts={name: 100 * accuracy for name, accuracy in learnt.part_accuracies.items()} or None,
        **_answering(learnt, frozen, min_probability),
    )


def _answering(learnt: Scores, frozen: Scores, min_probability: float | None) -> dict[str, Any]:
    """What a row says of probabilities that are meant: before a temperature, by coverage, and from a threshold on."""
    found: dict[str, Any] = {
        "aurc": 100 * learnt.by_coverage.aurc,
        "zero_shot_aurc": 100 * frozen.by_coverage.aurc,
        "selective": learnt.by_coverage.kept(),
    }
    if learnt.temperature != 1:
        found["uncalibrated_ece"] = 100 * replace(learnt, temperature=1.0).reliability.expected_calibration_error
    if min_probability is not None:
        coverage, accuracy = learnt.by_coverage.at(min_probability)
        found["answered"] = {"min_probability": min_probability, "coverage": coverage, "accuracy": accuracy}
    return found
