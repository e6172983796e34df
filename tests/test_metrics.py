"""Metrics against scikit-learn and against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from sklearn import metrics as sk

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
