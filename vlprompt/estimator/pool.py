"""Images without labels beside labelled ones: scikit-learn's label -1, a second X, and what was made of them."""

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


class Both(Sequence[Any]):
    """Two sequences of images, one after the other; none is opened before it is asked for."""

    def __init__(self, first: Sequence[Any], second: Sequence[Any]):
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: Any) -> Any:
        here = index - len(self.first)
        return self.first[index] if here < 0 else self.second[here]

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))


def joined(X: Any, unlabelled: Any) -> Any:
    """Images or features, with those that have no label behind them."""
    features = isinstance(X, np.ndarray)
    if features != isinstance(unlabelled, np.ndarray):
        raise VlpromptError("X and X_unlabelled must both be images, or both be features")
    if features:
        return np.concatenate([X, unlabelled])
    if isinstance(X, list) and isinstance(unlabelled, list):
        return X + unlabelled
    return Both(X, unlabelled)


def marked_unlabelled(
    y: Any, labels: str, class_names: Sequence[str] | Mapping[Any, str] | None
) -> tuple[Any, np.ndarray | None]:
    """Labels with something in the place of every -1, and where those were (N,); None where -1 is a class.

    Args:
        y: labels, of which -1 means none for methods that learn from a pool, as in scikit-learn.
        labels: what the method needs of labels, ``Facts.labels``.
        class_names: of the estimator, which tell the classes where no image has a label.
    """
    if y is None or labels == "needed":
        return y, None
    values = list(y)
    missing = np.array([isinstance(value, Integral) and value == NO_LABEL for value in values], dtype=bool)
    if not missing.any() or (labels == "none" and not missing.all()):  # which takes but the classes from y
        return y, None
    known: list[Any] = [value for value, none in zip(values, missing, strict=True) if not none]
    if not known and class_names is None:
        raise VlpromptError("no image has a label, so class_names must say what the classes are")
    stand_in = known[0] if known else classes_of(class_names)[0]
    return np.array([stand_in if none else v for v, none in zip(values, missing, strict=True)]), missing


def classes_of(class_names: Sequence[str] | Mapping[Any, str] | None) -> list[Any]:
    """The labels that an estimator's ``class_names`` are of: a dictionary's keys, or places in a list."""
    return list(class_names) if isinstance(class_names, Mapping) else list(range(len(class_names or ())))


def divided(data: DatasetSplits, items: Sequence[Item], facts: Facts) -> DatasetSplits:
    """A dataset whose labelled images and pool are these items, as far as a method may look at labels."""
    labelled = [] if facts.labels == "none" else [item for item in items if item.label >= 0]
    pool = items if facts.labels == "none" else [item for item in items if item.label < 0]
    if not pool and facts.labels in ("some", "any"):
        raise VlpromptError("this method also needs unlabelled images: give X_unlabelled, or label them -1")
    lacking = sorted(set(range(len(data.class_names))) - {item.label for item in labelled})
    if labelled and lacking and pool:
        of = ", ".join(repr(data.class_names[label]) for label in lacking[:SHOWN])
        more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        warn(f"no image with a label is of {of}{more}, which the pool alone can teach")
    return DatasetSplits(**{**vars(data), "train": labelled, "val": (), "pool": without_labels(pool)})


def told_labels(made: Labelling, places: Mapping[str, int], classes: np.ndarray) -> dict[str, np.ndarray]:
    """A labelling in the estimator's terms: ``index`` in X, with X_unlabelled behind it, ``label``, ``confidence``."""
    index = np.array([places[path] for path in made.paths])
    return {"index": index, "label": classes[list(made.labels)], "confidence": np.array(made.confidence)}
