"""Unlabelled images beside labelled ones: scikit-learn's label -1, ``X_unlabelled``, and pseudo-labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from vlprompt.data import DatasetSplits
from vlprompt.data.splits import NO_LABEL, Item, without_labels
from vlprompt.errors import VlpromptError, warn
from vlprompt.learner.facts import Facts
from vlprompt.training.feed import Labelling

SHOWN = 5  # class names in a warning


class Concatenated(Sequence[Any]):
    """Two sequences of images, one after the other; an image is opened when it is indexed."""

    def __init__(self, first: Sequence[Any], second: Sequence[Any]):
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: Any) -> Any:
        beyond = index - len(self.first)
        return self.first[index] if beyond < 0 else self.second[beyond]

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))


def concatenate(X: Any, unlabelled: Any) -> Any:
    """Labelled images or features, followed by the unlabelled ones."""
    features = isinstance(X, np.ndarray)
    if features != isinstance(unlabelled, np.ndarray):
        raise VlpromptError("X and X_unlabelled must both be images, or both be features")
    if features:
        return np.concatenate([X, unlabelled])
    if isinstance(X, list) and isinstance(unlabelled, list):
        return X + unlabelled
    return Concatenated(X, unlabelled)


def split_off_missing(
    y: Any, needs: str, class_names: Sequence[str] | Mapping[Any, str] | None
) -> tuple[Any, np.ndarray | None]:
    """Tell images without a label, -1 as in scikit-learn, from the others.

    Args:
        y: labels (N,).
        needs: ``Facts.labels`` of the method: where it needs labels, -1 is an ordinary class.
        class_names: the estimator's class names; they define the classes if no image has a label.

    Returns:
        The labels with some class in the place of each -1, and which were -1 (N,), or None if none was.
    """
    if y is None or needs == "needed":
        return y, None
    values = list(y)
    missing = np.array([isinstance(value, Integral) and value == NO_LABEL for value in values], dtype=bool)
    if not missing.any() or (needs == "none" and not missing.all()):  # it only takes the classes from y
        return y, None
    known: list[Any] = [value for value, none in zip(values, missing, strict=True) if not none]
    if not known and class_names is None:
        raise VlpromptError("no image has a label, so class_names must say what the classes are")
    stand_in = known[0] if known else labels_of_names(class_names)[0]
    return np.array([stand_in if none else v for v, none in zip(values, missing, strict=True)]), missing


def labels_of_names(class_names: Sequence[str] | Mapping[Any, str] | None) -> list[Any]:
    """The labels that ``class_names`` are for: the keys of a dictionary, or indices into a list."""
    return list(class_names) if isinstance(class_names, Mapping) else list(range(len(class_names or ())))


def with_pool(data: DatasetSplits, items: Sequence[Item], facts: Facts) -> DatasetSplits:
    """Return a dataset that trains on the labelled items, and has the others as its pool, without labels.

    A method that needs no labels gets all items as a pool, so it cannot see any label.

    Raises:
        VlpromptError: the method needs a pool, and all items are labelled.
    """
    labelled = [] if facts.labels == "none" else [item for item in items if item.label >= 0]
    pool = items if facts.labels == "none" else [item for item in items if item.label < 0]
    if not pool and facts.labels in ("some", "any"):
        raise VlpromptError("this method also needs unlabelled images: give X_unlabelled, or label them -1")
    lacking = sorted(set(range(len(data.class_names))) - {item.label for item in labelled})
    if labelled and lacking and pool:
        named = ", ".join(repr(data.class_names[label]) for label in lacking[:SHOWN])
        more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        warn(f"no labelled image is of {named}{more}: these classes can be learnt from the pool only")
    return DatasetSplits(**{**vars(data), "train": labelled, "val": (), "pool": without_labels(pool)})


def as_pseudo_labels(made: Labelling, positions: Mapping[str, int], classes: np.ndarray) -> dict[str, np.ndarray]:
    """Return pseudo-labels as arrays (M,): ``index`` into X followed by X_unlabelled, ``label`` and ``confidence``.

    Args:
        made: what the method labelled.
        positions: index of each image, by its path.
        classes: all labels (C,).
    """
    index = np.array([positions[path] for path in made.paths])
    return {"index": index, "label": classes[list(made.labels)], "confidence": np.array(made.confidence)}
