"""Labels that are probably wrong, by a classifier that has not seen the image it is asked about."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from vlprompt.base.checks import at_least, checked
from vlprompt.errors import VlpromptError

FOLDS, NEIGHBOURS = 5, 5


@dataclass(frozen=True)
class LabelErrors:
    """Images whose label is probably wrong, the surest first.

    Attributes:
        places: (M,) of the images.
        suggested: (M,) the label that each seems to have.
        margins: (M,) probability of that label less that of the given one, in (0, 1].
        accuracy: how often the cross-fitted classifier agrees with the labels as they are given, in percent.
        n_images: that were looked at; those of a class with a single image are not.
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

    A linear classifier is fitted to all folds but one and asked about that one. An image is told if the probability of
    another class reaches what images of that class have on average, and is larger than that of its own label
    (Northcutt et al., JAIR 2021, arXiv:1911.00068, eq. 1 and 2), and if none of its five nearest images has the label
    that it was given. The second condition is ours: where the classifier is weak, the first alone tells most of what it
    is wrong about.

    Args:
        features: (N, D) image features.
        labels: (N,) whole numbers, as they are given.
        folds: parts of the images.
        seed: of what is in which fold.

    Returns:
        What was found; None where no two classes have two images.

    Raises:
        VlpromptError: features and labels differ in number, or there are fewer than two folds.
    """
    folds = at_least("folds", folds, 2)
    if features.ndim != 2 or labels.shape != (len(features),):
        raise VlpromptError(f"a label is needed for each row of features, not {labels.shape} for {features.shape}")
    classes, given, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = np.flatnonzero(counts[given] > 1)
    known, y = np.unique(given[kept], return_inverse=True)
    if len(known) < 2:
        return None
    probabilities = _cross_fitted(features[kept], y, min(folds, int(np.bincount(y).max())), seed)
    rows = np.arange(len(y))
    usual = np.array([probabilities[y == label, label].mean() for label in range(len(known))])  # t_j
    reached = np.where(probabilities >= usual, probabilities, 0)
    best = reached.argmax(axis=1)
    margins = reached[rows, best] - probabilities[rows, y]
    found = np.flatnonzero((best != y) & (margins > 0) & ~_has_its_like(features[kept], y))
    found = found[np.argsort(-margins[found], kind="stable")]
    right = 100 * float((probabilities.argmax(axis=1) == y).mean())
    return LabelErrors(kept[found], classes[known[best[found]]], margins[found], right, len(kept))


def _has_its_like(features: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether one of the nearest other images has the same label: (N,)."""
    from sklearn.neighbors import NearestNeighbors

    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(y) - 1), algorithm="brute").fit(rows)
    found: np.ndarray = (y[near.kneighbors(return_distance=False)] == y[:, None]).any(axis=1)
    return found


def _cross_fitted(features: np.ndarray, y: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Probabilities (N, C) of each image by a classifier that was fitted to the other folds."""
    from sklearn.model_selection import StratifiedKFold

    found = np.zeros((len(y), y.max() + 1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # of whose images some folds have none
        for fitted, asked in StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, y):
            found[asked] = _discriminant(features[fitted], y[fitted], features[asked], found.shape[1])
    return found


def _discriminant(x: np.ndarray, y: np.ndarray, asked: np.ndarray, n_classes: int) -> np.ndarray:
    """Probabilities (M, C) by Gaussians of one covariance, which is shrunk (Ledoit & Wolf 2004), with equal priors.

    In closed form, so that a thousand classes take seconds.
    """
    from scipy.linalg import solve
    from scipy.special import softmax
    from sklearn.covariance import ledoit_wolf

    counts = np.bincount(y, minlength=n_classes)
    means = np.zeros((n_classes, x.shape[1]))
    np.add.at(means, y, x)
    means /= np.maximum(counts, 1)[:, None]
    spread = x - means[y]
    spread = spread if spread.any() else x - x.mean(axis=0)  # of single images there is none within the classes
    covariance, _ = ledoit_wolf(spread, assume_centered=True)
    w = solve(covariance, means.T, assume_a="pos").T  # (C, D)
    logits = asked @ w.T - 0.5 * (w * means).sum(axis=1)
    logits[:, counts == 0] = -np.inf
    found: np.ndarray = softmax(logits, axis=1)
    return found
