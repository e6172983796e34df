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
from vlprompt.estimator.inputs import check_alike, check_one_label_each
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
        places = {label: i for i, label in enumerate(self.classes_.tolist())}
        return accuracy_coverage(self.predict_proba(X), [places.get(label, -1) for label in truth.tolist()])

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
    """Labels (N,) of the kind that the classes have, so that none is wrong for being written otherwise.

    Raises:
        VlpromptError: there are none, they are names where classes are numbers or the reverse, or not one an image.
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
    """Refuse settings that are not known, are out of their range, or contradict each other."""
    if setting not in CALIBRATIONS:
        raise VlpromptError(f"unknown calibrate '{setting}': {nearest(str(setting), CALIBRATIONS)}")
    if coverage is not None and min_probability is None:
        check_share("coverage", coverage)
    else:
        threshold_of(None, min_probability, coverage)


def asks_to_calibrate(setting: str, coverage: float | None) -> bool:
    """Whether a classifier is to look at its probabilities on images that are held out."""
    return setting != NO_CALIBRATION or coverage is not None


def settings_of_answers(learner: PromptLearner) -> dict[str, Any]:
    """The settings of a classifier that answers the images that a saved learner does."""
    found = learner.calibration
    if found is None:
        return {}
    return {"calibrate": NO_CALIBRATION if found.temperature == 1 else TEMPERATURE, "coverage": found.coverage}


def check_calibration(method: str, facts: Facts, feed: ImageFeed, seed: int, make: Make | None) -> None:
    """Refuse, before anything is trained, what no held-out image can say something of.

    Args:
        method: its name.
        facts: what the learner is.
        feed: what it learns from.
        seed: of the parting of labelled images.
        make: others like it; None if it goes on from what it has learnt.
    """
    asked = "calibrate or coverage"
    refuse_facts(asked, method, facts)
    if make is None:
        raise VlpromptError(f"{asked} looks at all images that were learnt from: use fit, without warm_start")
    if not feed.splits.val:
        folds(feed.splits.train, seed)


def calibration_of(
    learner: PromptLearner, feed: ImageFeed, make: Make, config: LearnOptions, setting: str, coverage: float | None
) -> Calibration:
    """What the images say that a classifier held out or, where it held out none, training images by cross-fitting.

    Args:
        learner: trained.
        feed: that it learnt from.
        make: others like it, not trained yet.
        config: how it learns.
        setting: ``temperature`` or ``none``.
        coverage: share of images to answer.
    """

    def fit(other: PromptLearner, part: ImageFeed) -> None:
        Trainer(config, {"seed": config.seed}).fit(other, part)

    on, logits, labels = held_out_logits(learner, feed, make, fit, config.seed)
    return calibrate(logits, labels, on, temperature=setting == TEMPERATURE, coverage=coverage)


def with_unsure(labels: np.ndarray, answered: np.ndarray, unsure: Any) -> np.ndarray:
    """Labels (N,) with a word, or None, in the place of those that are not answered.

    The array has the labels' own type where the word is of their kind, and else holds objects.

    Args:
        labels: (N,).
        answered: (N,), whether each is.
        unsure: the word.

    >>> with_unsure(np.array(["cat", "dog"]), np.array([True, False]), "unsure").tolist()
    ['cat', 'unsure']
    >>> with_unsure(np.array([3, 5]), np.array([True, False]), None).tolist()
    [3, None]
    """
    if labels.dtype.kind == "U" and isinstance(unsure, str):
        kind: Any = np.promote_types(labels.dtype, np.asarray(unsure).dtype)  # no letter is cut off
    elif labels.dtype.kind in "iu" and isinstance(unsure, (int, np.integer)) and not isinstance(unsure, bool):
        kind = np.int64
    else:
        kind = object
    found = labels.astype(kind)
    found[~answered] = unsure
    return found
