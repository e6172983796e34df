"""Labels that are probably wrong, by classifiers that were not fitted to the image they are asked about."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from vlprompt.base.checks import at_least, checked
from vlprompt.errors import VlpromptError

FOLDS, NEIGHBOURS = 5, 5


@dataclass(frozen=True)
class LabelErrors:
    """Images whose label is probably wrong, the most certain first.

    Attributes:
        places: (M,) indices of the images.
        suggested: (M,) the more probable label of each.
        margins: (M,) probability of that label minus that of the image's own label, in (0, 1].
        accuracy: how often the cross-fitted classifier agrees with the dataset's labels, in percent.
        n_images: how many images were examined; those of a class with a single image are not.
    """

    places: np.ndarray
    suggested: np.ndarray
    margins: np.ndarray
    accuracy: float
    n_images: int

    def __len__(self) -> int:
        return len(self.places)


@checked
def label_errors(features: np.ndarray, labels: np.ndarray, *, folds: int = FOLDS, seed: int = 0) -> LabelErrors | None:
    """Find labels that are probably wrong by confident learning on features of a frozen model.

    A linear classifier is fitted to all folds but one and applied to that one. A label counts as wrong if the
    probability of another class reaches the average among images of that class and is larger than that of the label
    (Northcutt et al., JAIR 2021, arXiv:1911.00068, eq. 1 and 2), and if none of its five nearest images has that label.
    The second condition is ours: with a weak classifier the first alone reports most of the classifier's own
    mistakes.

    Args:
        features: (N, D) image features.
        labels: (N,) the dataset's labels, whole numbers.
        folds: into how many parts the images are split.
        seed: the seed of the random split into folds.

    Returns:
        The findings; None unless at least two classes have two images each.

    Raises:
        VlpromptError: features and labels differ in number, or there are fewer than two folds.
    """
    folds = at_least("folds", folds, 2)
    if features.ndim != 2 or labels.shape != (len(features),):
        raise VlpromptError(f"a label is needed for each row of features, not {labels.shape} for {features.shape}")
    classes, own, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = np.flatnonzero(counts[own] > 1)
    known, y = np.unique(own[kept], return_inverse=True)
    if len(known) < 2:
        return None
    probabilities = _cross_fitted(features[kept], y, min(folds, int(np.bincount(y).max())), seed)
    rows = np.arange(len(y))
    usual = np.array([probabilities[y == label, label].mean() for label in range(len(known))])  # t_j
    reached = np.where(probabilities >= usual, probabilities, 0)
    best = reached.argmax(axis=1)
    margins = reached[rows, best] - probabilities[rows, y]
    wrong = np.flatnonzero((best != y) & (margins > 0) & ~_near_same_label(features[kept], y))
    wrong = wrong[np.argsort(-margins[wrong], kind="stable")]
    right = 100 * float((probabilities.argmax(axis=1) == y).mean())
    return LabelErrors(kept[wrong], classes[known[best[wrong]]], margins[wrong], right, len(kept))


def _near_same_label(features: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether one of the nearest other images has the same label: (N,)."""
    from sklearn.neighbors import NearestNeighbors

    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(y) - 1), algorithm="brute").fit(rows)
    same: np.ndarray = (y[near.kneighbors(return_distance=False)] == y[:, None]).any(axis=1)
    return same


def _cross_fitted(features: np.ndarray, y: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Class probabilities (N, C) of each image by the classifier that was fitted to the other folds."""
    from sklearn.model_selection import StratifiedKFold

    probabilities = np.zeros((len(y), y.max() + 1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # some folds may have none of its images
        for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, y):
            n_classes = probabilities.shape[1]
            probabilities[test] = _discriminant(features[train], y[train], features[test], n_classes)
    return probabilities


def _discriminant(x: np.ndarray, y: np.ndarray, test: np.ndarray, n_classes: int) -> np.ndarray:
    """Class probabilities (M, C) of ``test`` (M, D) by a linear discriminant fitted to ``x`` (N, D) and ``y`` (N,).

    The classes share one covariance, which is shrunk (Ledoit & Wolf 2004), and have equal priors. The solution is in
    closed form, so that a thousand classes take seconds.
    """
    from scipy.linalg import solve
    from scipy.special import softmax
    from sklearn.covariance import ledoit_wolf

    counts = np.bincount(y, minlength=n_classes)
    means = np.zeros((n_classes, x.shape[1]))
    np.add.at(means, y, x)
    means /= np.maximum(counts, 1)[:, None]
    spread = x - means[y]
    spread = spread if spread.any() else x - x.mean(axis=0)  # classes of single images have no spread within
    covariance, _ = ledoit_wolf(spread, assume_centered=True)
    w = solve(covariance, means.T, assume_a="pos").T  # (C, D)
    logits = test @ w.T - 0.5 * (w * means).sum(axis=1)
    logits[:, counts == 0] = -np.inf
    probabilities: np.ndarray = softmax(logits, axis=1)
    return probabilities
