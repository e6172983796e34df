"""The logits of a learner and of zero-shot CLIP for test images, and the metrics computed from them."""

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
from vlprompt.evaluation.rows import Row
from vlprompt.evaluation.saved_predictions import Predictions
from vlprompt.learner.facts import Familiar, Predicts


@dataclass(frozen=True)
class Scores:
    """A learner's logits for N test images.

    Attributes:
        labels: (N,) true labels.
        logits: (N, C).
        parts: the logits (N, C) that were fused into them, by name; empty if none were.
        temperature: divides the logits before the softmax.
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
        """Top-1 accuracy in [0, 1] of each part alone."""
        return {name: Scores(self.labels, logits).accuracy for name, logits in self.parts.items()}

    @property
    def macro_accuracy(self) -> float:
        """Mean accuracy in [0, 1] over the classes that have test images."""
        return macro_accuracy(self.labels, self.predicted, self.logits.shape[1])

    @property
    def top5(self) -> float | None:
        """Share in [0, 1] of images whose label is among the five most likely; None below six classes."""
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
        """The accuracy–coverage curve."""
        return AccuracyCoverage.of(self.confidence.numpy(), (self.predicted == self.labels).numpy())


@dataclass(frozen=True)
class Evaluation:
    """A learner and zero-shot CLIP on the same test images.

    Attributes:
        row: all metrics, as in a result.
        class_names: C names, in label order.
        items: the N images.
        learnt, frozen: scores of the learner and of zero-shot CLIP.
    """

    row: Row
    class_names: tuple[str, ...]
    items: Sequence[Item]
    learnt: Scores
    frozen: Scores

    @property
    def predictions(self) -> Predictions:
        """Both predictions for each image, as they are saved."""
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
    """Compute the metrics of a test.

    Args:
        target: its name in the protocol.
        part: the dataset that was tested on.
        learnt, frozen: scores of the learner and of zero-shot CLIP.
        predicts, familiar: as in ``Row``.
        min_probability: images whose largest probability is below it are not answered; None answers all.
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
    """The fields of a row on probabilities: by coverage, without the temperature, and of the answered images."""
    fields: dict[str, Any] = {
        "aurc": 100 * learnt.by_coverage.aurc,
        "zero_shot_aurc": 100 * frozen.by_coverage.aurc,
        "selective": learnt.by_coverage.to_lists(),
    }
    if learnt.temperature != 1:
        fields["uncalibrated_ece"] = 100 * replace(learnt, temperature=1.0).reliability.expected_calibration_error
    if min_probability is not None:
        coverage, accuracy = learnt.by_coverage.at(min_probability)
        fields["answered"] = {"min_probability": min_probability, "coverage": coverage, "accuracy": accuracy}
    return fields
