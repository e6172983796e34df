"""Predictions of ``PromptClassifier``: calibrated probabilities, and images that it leaves unanswered."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor

from vlprompt.base.settings import LearnOptions
from vlprompt.errors import VlpromptError, nearest
from vlprompt.estimator.checks import check_alike, check_one_label_each
from vlprompt.evaluation.abstention import AccuracyCoverage, accuracy_coverage
from vlprompt.evaluation.calibration import calibrate, check_share, refuse_facts, threshold_for, threshold_of
from vlprompt.learner.calibration import CALIBRATIONS, NO_CALIBRATION, TEMPERATURE, Calibration
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.facts import Facts
from vlprompt.training.cross_fitting import Make, folds, held_out_logits
from vlprompt.training.feed import ImageFeed
from vlprompt.training.trainer import Trainer


class Answers:
    """The predictions of ``PromptClassifier``, from its learner's logits."""

    learner_: PromptLearner
    classes_: np.ndarray
    min_probability: float | None
    coverage: float | None
    unsure: Any

    def _logits(self, X: Any) -> Tensor:
        """Logits (N, C) of images or features."""
        raise NotImplementedError

    def predict(self, X: Any) -> np.ndarray:
        """Return the label (N,) of each image; ``unsure`` if its probability is below the threshold."""
        logits, threshold = self._logits(X), self._threshold()
        labels: np.ndarray = self.classes_[logits.argmax(dim=1).numpy()]
        if threshold is None:
            return labels
        sure = self.learner_.probabilities(logits).amax(dim=1) >= threshold
        return with_unsure(labels, sure.numpy(), self.unsure)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities (N, C) of the classes, in the order of ``classes_``."""
        logits = self._logits(X)
        return self.learner_.probabilities(logits).numpy()

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy of the most likely class, also for images that ``predict`` leaves unanswered."""
        truth = labels_to_compare(y, self._classes())
        likeliest = self.classes_[self._logits(X).argmax(dim=1).numpy()]
        return float(accuracy_score(truth, likeliest, sample_weight=sample_weight))

    def accuracy_coverage(self, X: Any, y: ArrayLike) -> AccuracyCoverage:
        """Return the accuracy at each coverage, see ``vlprompt.evaluation.abstention``.

        As in ``score``, images of classes that were not learnt count as errors.
        """
        truth = labels_to_compare(y, self._classes())
        positions = {label: i for i, label in enumerate(self.classes_.tolist())}
        return accuracy_coverage(self.predict_proba(X), [positions.get(label, -1) for label in truth.tolist()])

    def _classes(self) -> np.ndarray:
        check_is_fitted(self, "learner_")
        return self.classes_

    @property
    def calibration_(self) -> Calibration | None:
        """The temperature and threshold found on held-out images; None if neither was asked for."""
        check_is_fitted(self, "learner_")
        return self.learner_.calibration

    def _threshold(self) -> float | None:
        """The probability from which images are answered, with the current settings; None answers all."""
        if self.min_probability is None and self.coverage is None:
            return None
        return threshold_for(self.learner_, self.min_probability, self.coverage)


def labels_to_compare(y: Any, classes: np.ndarray) -> np.ndarray:
    """Return the true labels as an array (N,), of the same kind (names or numbers) as the classes (C,).

    Raises:
        VlpromptError: labels are missing or of the other kind, or there is not exactly one per image.
    """
    if y is None:
        raise VlpromptError("y is None: give the label of each image")
    check_one_label_each(y)
    check_alike(y)
    labels: np.ndarray = column_or_1d(y)
    named = [isinstance(values[0], str) for values in (labels.tolist(), classes.tolist()) if values]
    if len(set(named)) > 1:
        kinds = ("names", "numbers") if named[0] else ("numbers", "names")
        raise VlpromptError(f"labels are {kinds[0]}, as {labels.tolist()[0]!r}, and the classes are {kinds[1]}")
    return labels


def check_answering(setting: str, min_probability: float | None, coverage: float | None) -> None:
    """Raise a ``VlpromptError`` if a setting is unknown, out of its range, or contradicts another."""
    if setting not in CALIBRATIONS:
        raise VlpromptError(f"unknown calibrate '{setting}': {nearest(str(setting), CALIBRATIONS)}")
    if coverage is not None and min_probability is None:
        check_share("coverage", coverage)
    else:
        threshold_of(None, min_probability, coverage)


def asks_to_calibrate(setting: str, coverage: float | None) -> bool:
    """Whether the settings ask for a temperature or a threshold, which are found on held-out images."""
    return setting != NO_CALIBRATION or coverage is not None


def settings_of_answers(learner: PromptLearner) -> dict[str, Any]:
    """The settings with which a classifier would be calibrated as a saved learner was; empty if it was not."""
    calibration = learner.calibration
    if calibration is None:
        return {}
    return {
        "calibrate": NO_CALIBRATION if calibration.temperature == 1 else TEMPERATURE,
        "coverage": calibration.coverage,
    }


def check_calibration(method: str, facts: Facts, feed: ImageFeed, seed: int, make: Make | None) -> None:
    """Raise a ``VlpromptError``, before training, if a learner cannot be calibrated.

    Args:
        method: its name.
        facts: the learner's facts.
        feed: what it learns from.
        seed: the seed of the division of labelled images into folds.
        make: makes untrained copies of the learner; None if it continues earlier training.
    """
    settings = "calibrate or coverage"
    refuse_facts(settings, method, facts)
    if make is None:
        raise VlpromptError(f"{settings} looks at all images that were learnt from: use fit, without warm_start")
    if not feed.splits.val:
        folds(feed.splits.train, seed)


def calibration_of(
    learner: PromptLearner, feed: ImageFeed, make: Make, config: LearnOptions, setting: str, coverage: float | None
) -> Calibration:
    """Calibrate on held-out images, or by cross-fitting on the training images if none were held out.

    Args:
        learner: trained.
        feed: what it was trained on.
        make: makes untrained copies of the learner.
        config: settings of training.
        setting: ``temperature`` or ``none``.
        coverage: share of images to answer, in (0, 1]; None finds no threshold.
    """

    def fit(other: PromptLearner, part: ImageFeed) -> None:
        Trainer(config, {"seed": config.seed}).fit(other, part)

    on, logits, labels = held_out_logits(learner, feed, make, fit, config.seed)
    return calibrate(logits, labels, on, temperature=setting == TEMPERATURE, coverage=coverage)


def with_unsure(labels: np.ndarray, answered: np.ndarray, unsure: Any) -> np.ndarray:
    """Replace the labels of unanswered images.

    The array keeps the labels' type if the replacement is of the same kind, and otherwise contains objects.

    Args:
        labels: (N,).
        answered: (N,), false for the labels to replace.
        unsure: what replaces them: a text, a number or None.

    >>> with_unsure(np.array(["cat", "dog"]), np.array([True, False]), "unsure").tolist()
    ['cat', 'unsure']
    >>> with_unsure(np.array([3, 5]), np.array([True, False]), None).tolist()
    [3, None]
    """
    if labels.dtype.kind == "U" and isinstance(unsure, str):
        dtype: Any = np.promote_types(labels.dtype, np.asarray(unsure).dtype)  # long enough for both
    elif labels.dtype.kind in "iu" and isinstance(unsure, (int, np.integer)) and not isinstance(unsure, bool):
        dtype = np.int64
    else:
        dtype = object
    answers = labels.astype(dtype)
    answers[~answered] = unsure
    return answers
