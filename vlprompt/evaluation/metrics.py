"""Metrics of labels (N,) and logits (N, C): accuracy, accuracy per class, calibration error, confusions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15  # of the calibration error, as Guo et al. (ICML 2017) use


def top_k_accuracy(labels: Tensor, logits: Tensor, k: int = 1) -> float:
    """Share in [0, 1] of images whose label is among the k largest logits."""
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1).double().mean().item()


def count_per_class(labels: Tensor, predicted: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of images (C,) and of correct predictions (C,) of each class."""
    return labels.bincount(minlength=n_classes), labels[predicted == labels].bincount(minlength=n_classes)


def macro_accuracy(labels: Tensor, predicted: Tensor, n_classes: int) -> float:
    """Mean accuracy in [0, 1] over the classes that have images."""
    images, correct = count_per_class(labels, predicted, n_classes)
    present = images > 0
    return (correct[present].double() / images[present]).mean().item()


@dataclass(frozen=True)
class Reliability:
    """Accuracy by confidence; lists have one entry per bin, of equal width in [0, 1].

    Attributes:
        images: number of images in the bin.
        confidence: mean of the largest softmax probability, 0 for an empty bin.
        accuracy: share of correct predictions, 0 for an empty bin.
    """

    images: list[int]
    confidence: list[float]
    accuracy: list[float]

    @classmethod
    def of(cls, labels: Tensor, logits: Tensor, bins: int = BINS) -> Reliability:
        """Bin images by the confidence of their predictions, from labels (N,) and logits (N, C)."""
        confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
        return cls.binned(confidence, predicted == labels, bins)

    @classmethod
    def binned(cls, confidence: Tensor, right: Tensor, bins: int = BINS) -> Reliability:
        """Bin images by the confidence (N,) of their predictions, which are correct or not (N,)."""
        index = (confidence.double() * bins).long().clamp(max=bins - 1)
        images = index.bincount(minlength=bins)

        def mean(values: Tensor) -> list[float]:
            return (index.bincount(values.double(), minlength=bins) / images.clamp(min=1)).tolist()

        return cls(images.tolist(), mean(confidence), mean(right))

    @property
    def expected_calibration_error(self) -> float:
        """Mean over images of |accuracy - confidence| of their bin, in [0, 1] (Guo et al., ICML 2017, eq. 3)."""
        gaps = [abs(a - c) for a, c in zip(self.accuracy, self.confidence, strict=True)]
        return sum(n * gap for n, gap in zip(self.images, gaps, strict=True)) / sum(self.images)


def confusion_matrix(labels: Tensor, predicted: Tensor, n_classes: int) -> Tensor:
    """Return the counts (C, C) of images by true class (rows) and predicted class (columns)."""
    from sklearn.metrics import confusion_matrix as count

    return torch.from_numpy(count(labels.numpy(), predicted.numpy(), labels=range(n_classes)))
