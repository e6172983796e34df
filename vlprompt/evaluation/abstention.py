"""Abstention: the accuracy of a learner that answers only the images on which it is most confident.

A learner that answers only if its largest probability is high enough is a selective classifier (Geifman & El-Yaniv,
NeurIPS 2017, arXiv:1705.08500). The accuracy–coverage curve shows the effect of each threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vlprompt.errors import VlpromptError

POINTS = 20  # of a curve in a result: one for each twentieth of the images
ROUND_OFF = 1e-5  # of fp32 probabilities
Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class AccuracyCoverage:
    """Accuracy and coverage of a learner for each threshold on its confidence, the highest threshold first.

    Images of equal confidence are answered together, so K is the number of distinct confidences.

    Attributes:
        threshold: smallest confidence (K,), in [0, 1], of an answered image.
        coverage: share (K,), in (0, 1], of images that are answered; the last is 1.
        accuracy: share (K,), in [0, 1], of the answered images that are correct.
    """

    threshold: Numbers
    coverage: Numbers
    accuracy: Numbers

    @classmethod
    def of(cls, confidence: ArrayLike, right: ArrayLike) -> AccuracyCoverage:
        """Compute the curve of N images.

        Args:
            confidence: largest probability of each image (N,).
            right: whether the most likely class is the true one (N,).

        Raises:
            VlpromptError: there are no images, the shapes differ, or a confidence is not in [0, 1].
        """
        sure, correct = _array(confidence), _array(right)
        if sure.ndim != 1 or sure.shape != correct.shape or not len(sure):
            raise VlpromptError(
                f"confidence and right must be one number an image, and have shapes {sure.shape} and {correct.shape}"
            )
        _check_probabilities(sure)
        order = np.argsort(-sure, kind="stable")
        ordered, answered = sure[order], np.arange(1, len(sure) + 1)
        last = np.r_[ordered[1:] != ordered[:-1], True]  # the last of the images with equal confidence
        accuracy = np.cumsum(correct[order]) / answered
        return cls(ordered[last], (answered / len(sure))[last], accuracy[last])

    def threshold_for(self, coverage: float) -> float:
        """The highest threshold at which at least this share, in (0, 1], of the images is answered."""
        return float(self.threshold[self._index_of(coverage)])

    def at(self, min_probability: float) -> tuple[float, float | None]:
        """Coverage and accuracy at a threshold; the accuracy is None if no image is answered."""
        answered = int((self.threshold >= min_probability).sum())
        return (float(self.coverage[answered - 1]), float(self.accuracy[answered - 1])) if answered else (0.0, None)

    @property
    def aurc(self) -> float:
        """Area under the risk–coverage curve, in [0, 1]: the mean error over all coverages; smaller is better.

        With images in order of decreasing confidence, it is the mean over n of the error on the first n (Geifman, Uziel
        & El-Yaniv, ICLR 2019, arXiv:1805.08206, eq. 2), where images of equal confidence are answered together.
        """
        return float(((1 - self.accuracy) * np.diff(self.coverage, prepend=0)).sum())

    def to_lists(self, points: int = POINTS) -> dict[str, list[float]]:
        """At most ``points`` of the curve, at evenly spaced coverages: ``threshold``, ``coverage`` and ``accuracy``."""
        shares = (np.arange(points) + 1) / points
        indices = sorted({self._index_of(share) for share in shares})
        lists = {"threshold": self.threshold, "coverage": self.coverage, "accuracy": self.accuracy}
        return {name: values[indices].tolist() for name, values in lists.items()}

    @classmethod
    def from_lists(cls, lists: Mapping[str, list[float]]) -> AccuracyCoverage:
        """The curve from what ``to_lists`` returned."""
        return cls(*(np.array(lists[name], float) for name in ("threshold", "coverage", "accuracy")))

    def _index_of(self, coverage: float) -> int:
        """Index of the smallest coverage that is at least this one."""
        if not 0 < coverage <= 1:
            raise VlpromptError(f"coverage must be a share of the images above 0 and at most 1, not {coverage!r}")
        # coverages are quotients of integers, which may round either way
        return int(np.searchsorted(self.coverage, min(coverage, self.coverage[-1]) - 1e-9))


def accuracy_coverage(probabilities: ArrayLike, labels: ArrayLike) -> AccuracyCoverage:
    """Return the accuracy of a classifier that answers only its most confident images, by the share that it answers.

    Args:
        probabilities: of N images among C classes (N, C).
        labels: indices (N,) of the true classes, from 0 to C - 1.

    Raises:
        VlpromptError: the shapes do not match, or a probability is not in [0, 1].

    >>> curve = accuracy_coverage([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], [0, 1, 1])
    >>> curve.coverage.round(2).tolist(), curve.accuracy.round(2).tolist()
    ([0.33, 0.67, 1.0], [1.0, 1.0, 0.67])
    >>> curve.threshold_for(coverage=0.5)
    0.8
    """
    rows, truth = _array(probabilities), np.asarray(labels)
    if rows.ndim != 2 or rows.shape[:1] != truth.shape or not rows.size:
        raise VlpromptError(
            f"probabilities must be (N, C) and labels (N,), and they have shapes {rows.shape} and {truth.shape}"
        )
    _check_probabilities(rows)
    return AccuracyCoverage.of(rows.max(axis=1), rows.argmax(axis=1) == truth)


def _array(values: ArrayLike) -> Numbers:
    return np.asarray(values, dtype=np.float64)


def _check_probabilities(values: Numbers) -> None:
    if not ((values >= -ROUND_OFF) & (values <= 1 + ROUND_OFF)).all():  # NaN fails both
        raise VlpromptError("probabilities must be numbers from 0 to 1: take the softmax of logits first")
