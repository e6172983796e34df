"""Metrics against scikit-learn and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from vlprompt.errors import VlpromptError
from vlprompt.evaluation.abstention import AccuracyCoverage, accuracy_coverage
from vlprompt.evaluation.metrics import Reliability, confusion_matrix, count_per_class, macro_accuracy, top_k_accuracy

generator = torch.Generator().manual_seed(0)
LABELS = torch.randint(7, (200,), generator=generator)
LOGITS = torch.randn(200, 7, generator=generator) + 1.5 * torch.nn.functional.one_hot(LABELS, 7)
PREDICTED = LOGITS.argmax(dim=1)


def test_accuracies_equal_scikit_learns() -> None:
    assert top_k_accuracy(LABELS, LOGITS) == pytest.approx(sk.accuracy_score(LABELS, PREDICTED))
    assert top_k_accuracy(LABELS, LOGITS, 5) == pytest.approx(sk.top_k_accuracy_score(LABELS, LOGITS, k=5))
    assert macro_accuracy(LABELS, PREDICTED, 7) == pytest.approx(sk.balanced_accuracy_score(LABELS, PREDICTED))


def test_counts_and_confusion_agree() -> None:
    images, correct = count_per_class(LABELS, PREDICTED, 7)
    confusion = confusion_matrix(LABELS, PREDICTED, 7)
    assert torch.equal(confusion.sum(1), images)
    assert torch.equal(confusion.diagonal(), correct)


def test_a_class_without_images_does_not_count() -> None:
    assert macro_accuracy(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2]), 4) == pytest.approx(0.75)
    assert confusion_matrix(torch.tensor([0, 2]), torch.tensor([0, 2]), 4).shape == (4, 4)


def test_calibration_error_worked_by_hand() -> None:
    # two images with confidence 0.95, one of them right, and one with 0.65 that is right
    logits = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65]]).log()
    reliability = Reliability.of(torch.tensor([0, 1, 1]), logits, bins=10)
    assert reliability.images == [0] * 6 + [1, 0, 0, 2]
    assert reliability.expected_calibration_error == pytest.approx((2 * abs(0.5 - 0.95) + 1 * abs(1 - 0.65)) / 3)


def test_a_sure_and_right_classifier_is_calibrated() -> None:
    reliability = Reliability.of(torch.tensor([0, 1]), torch.tensor([[100.0, 0], [0, 100]]))
    assert reliability.expected_calibration_error == pytest.approx(0, abs=1e-9)
    assert reliability.images[-1] == 2


def test_the_accuracy_coverage_curve_worked_by_hand() -> None:
    # confidences 0.9 right, 0.8 wrong, 0.8 right, 0.6 wrong
    curve = accuracy_coverage([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8], [0.6, 0.4]], [0, 0, 1, 1])
    assert curve.threshold.tolist() == [0.9, 0.8, 0.6]
    assert curve.coverage.tolist() == [0.25, 0.75, 1.0]
    assert curve.accuracy == pytest.approx([1, 2 / 3, 1 / 2])
    assert [curve.threshold_for(share) for share in (0.25, 0.26, 0.75, 1)] == [0.9, 0.8, 0.8, 0.6]
    assert curve.at(0.85) == (0.25, 1.0)
    assert curve.at(0.95) == (0.0, None)
    assert curve.aurc == pytest.approx(0.25 * 0 + 0.5 / 3 + 0.25 / 2)


def test_a_curve_that_is_kept_has_its_thresholds_and_ends_with_all_images() -> None:
    probabilities = LOGITS.softmax(dim=1)
    curve = accuracy_coverage(probabilities, LABELS)
    assert len(curve.threshold) == len(LABELS)
    assert curve.accuracy[-1] == pytest.approx(sk.accuracy_score(LABELS, PREDICTED))
    errors = (PREDICTED != LABELS)[probabilities.amax(dim=1).argsort(descending=True)].double().numpy()
    assert curve.aurc == pytest.approx((errors.cumsum() / np.arange(1, 201)).mean())
    kept = AccuracyCoverage.from_lists(curve.to_lists())
    assert kept.coverage == pytest.approx(np.arange(1, 21) / 20)
    for share, threshold in zip(kept.coverage, kept.threshold, strict=True):
        assert curve.at(threshold)[0] == pytest.approx(share)
        assert kept.threshold_for(share) == threshold


@pytest.mark.parametrize(
    ("probabilities", "labels", "sentence"),
    [
        ([[3.0, -1.0]], [0], "take the softmax of logits first"),
        ([[float("nan"), 0.5]], [0], "take the softmax of logits first"),
        ([[0.5, 0.5]], [0, 1], r"have shapes \(1, 2\) and \(2,\)"),
        (np.empty((0, 2)), [], r"have shapes \(0, 2\)"),
    ],
)
def test_what_is_no_probability_is_told(probabilities: list, labels: list, sentence: str) -> None:
    with pytest.raises(VlpromptError, match=sentence):
        accuracy_coverage(probabilities, labels)
    with pytest.raises(VlpromptError, match="above 0 and at most 1"):
        AccuracyCoverage.of([0.5], [True]).threshold_for(0)
