"""Checks of what ``PromptClassifier`` is called with: images or features, and one label for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, validate_data
from torch.utils.data import Dataset

from vlprompt.base.checks import brief
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data.other_libraries import as_torch
from vlprompt.data.pairs import labels_of
from vlprompt.data.streaming import is_preprocessed
from vlprompt.errors import VlpromptError
from vlprompt.estimator.inputs import PATHS, as_images, holds_images
from vlprompt.learner.facts import Facts

if TYPE_CHECKING:
    from vlprompt.estimator.classifier import PromptClassifier


def check_training_input(estimator: PromptClassifier, X: Any, y: Any, reset: bool) -> tuple[Any, np.ndarray]:
    """Return images as a sequence, or features (N, D) in fp32, and labels (N,), checked as scikit-learn does.

    Args:
        estimator: it remembers the number of features.
        X: images or features, or a ``Dataset`` of (image, label) pairs.
        y: labels; None takes those of the dataset.
        reset: whether these are the first images that it sees.
    """
    X = as_torch(X)
    if isinstance(X, Dataset) and y is None:
        y = labels_of(X)
    check_one_label_each(y)
    check_alike(y)
    if holds_images(X):
        X, y = check_input(estimator, X, reset), validate_data(estimator, y=y, reset=reset)
        check_consistent_length(X, y)
    else:
        X, y = validate_data(estimator, X, y, dtype=np.float32, reset=reset)
        X = _writable(X)
    check_classification_targets(y)
    return X, y


def check_input(estimator: PromptClassifier, X: Any, reset: bool) -> Any:
    """Return images as a sequence, or features (N, D) in fp32; see ``check_training_input``."""
    X = as_torch(X)
    if holds_images(X):
        if reset:
            estimator.__dict__.pop("n_features_in_", None)
        return as_images(X)
    return _writable(validate_data(estimator, X, dtype=np.float32, reset=reset))


def _writable(rows: np.ndarray) -> np.ndarray:
    """Rows that torch may share memory with; those of a data frame may be read-only."""
    return rows if rows.flags.writeable else rows.copy()


def _count(label: Any) -> int:
    """How many labels an element of y contains."""
    if isinstance(label, np.ndarray):
        return int(label.size)
    return len(label) if isinstance(label, (list, tuple, set, frozenset)) else 1


def check_one_label_each(labels: Any) -> None:
    """Raise a ``VlpromptError`` for multi-label targets: an indicator matrix, or a list of labels per image."""
    shape: tuple[int, ...] = getattr(labels, "shape", ())
    if len(shape) == 2 and shape[1] > 1:
        given = f"y of shape {tuple(shape)}"
    else:
        values = labels.tolist() if str(getattr(labels, "dtype", "")) == "object" and len(shape) == 1 else labels
        if not isinstance(values, (list, tuple)) or all(_count(value) == 1 for value in values):
            return
        given = "y of several labels an image"
    raise VlpromptError(
        f"{given} is multi-label, and here each image has one class: give one label per image, or fit a classifier for "
        "each label, as sklearn.multioutput does"
    )


def check_alike(labels: Any) -> None:
    """Raise a ``VlpromptError`` if labels mix texts, numbers or None, which NumPy would turn into texts."""
    values = labels.tolist() if str(getattr(labels, "dtype", "")) == "object" else labels
    if not isinstance(values, (list, tuple)) or not values:
        return
    odd = next((i for i, value in enumerate(values) if isinstance(value, str) != isinstance(values[0], str)), None)
    odd = next((i for i, value in enumerate(values) if value is None), odd)
    if odd is not None:
        raise VlpromptError(f"labels must be all names or all numbers, and y[{odd}] is {brief(values[odd])}")


def check_fits(X: Any, method: str, facts: Facts, clip: FrozenCLIP, training: bool = False) -> None:
    """Raise a ``VlpromptError`` if a method cannot use these images or features.

    Args:
        X: a sequence of images, or features (N, D).
        method: its name.
        facts: the learner's facts.
        clip: the frozen model.
        training: whether X is trained on; image towers are trained with augmentation, so not on preprocessed tensors.
    """
    features = isinstance(X, np.ndarray)
    if features and X.shape[1] != clip.embed_dim:
        raise VlpromptError(
            f"X has {X.shape[1]} columns, and image features of {clip.name} have {clip.embed_dim}: "
            "vlprompt.image_features makes them"
        )
    if "mask" in facts.inputs and not features and not isinstance(X[0], PATHS):
        raise VlpromptError(f"{method} looks for the mask of a region beside each image: give paths instead of images")
    if not facts.cacheable_images and (features or (training and is_preprocessed(X[0]))):
        given = "features of them" if features else "tensors that were cropped already"
        raise VlpromptError(f"{method} prompts the image tower, so it needs images and not {given}")
