"""The weight of each image: ``sample_weight`` and ``class_weight``, as in scikit-learn."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import _check_sample_weight

from vlprompt.base.checks import brief
from vlprompt.data.splits import Item
from vlprompt.errors import VlpromptError, nearest
from vlprompt.learner.facts import Facts

BALANCED = "balanced"


def counts_of(
    sample_weight: Any, class_weight: Any, y: np.ndarray, classes: np.ndarray, once: bool = False
) -> np.ndarray | None:
    """Return the weight of each image (N,), the product of both arguments; None if neither is given.

    Args:
        sample_weight: (N,), at least 0; 0 leaves an image out.
        class_weight: None, ``balanced`` (N / (C n_c)), or a weight by label, where labels left out weigh 1.
        y: labels (N,).
        classes: all labels (C,); y may lack some.
        once: whether y is only a part of the images, so that classes cannot be balanced.

    Raises:
        VlpromptError: a weight is invalid, or all images weigh 0.
    """
    if sample_weight is None and class_weight is None:
        return None
    try:
        counts: np.ndarray = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
    except (ValueError, TypeError) as error:
        raise VlpromptError(f"sample_weight must be {len(y)} numbers of 0 or more: {error}") from None
    _check_class_weight(class_weight, classes.tolist(), once)
    if isinstance(class_weight, Mapping):  # scikit-learn refuses one that neither covers y nor is covered by it
        counts = counts * [class_weight.get(label, 1.0) for label in y.tolist()]
    else:
        counts = counts * compute_sample_weight(class_weight, y)
    if not counts.any():
        raise VlpromptError("all images have a weight of 0, so there is none to learn from")
    return counts


def _check_class_weight(class_weight: Any, labels: list[Any], once: bool) -> None:
    if class_weight is None:
        return
    if not isinstance(class_weight, Mapping):
        if not (isinstance(class_weight, str) and class_weight == BALANCED):
            raise VlpromptError(f"class_weight must be None, 'balanced' or a dictionary, not {brief(class_weight)}")
        if once:
            raise VlpromptError(
                "class_weight='balanced' needs all images, and partial_fit sees only some: give a dictionary"
            )
        return
    for label, weight in class_weight.items():
        if not isinstance(weight, (int, float, np.number)) or not 0 <= weight < np.inf:
            raise VlpromptError(f"class_weight[{label!r}] must be a number of 0 or more, not {brief(weight)}")
        if label not in labels:
            raise VlpromptError(
                f"class_weight has the label {label!r}, which does not occur: {nearest(str(label), map(str, labels))}"
            )


def refuse_weights(method: str, facts: Facts) -> None:
    """Raise a ``VlpromptError`` if a method cannot use weights."""
    if not facts.weighs:
        why = "learns from no labelled images" if facts.labels == "none" else "takes all labelled images alike"
        raise VlpromptError(
            f"{method} with these settings {why}, so it cannot use sample_weight and class_weight: leave them out, "
            "or use a method that can, such as coop, gda or linear_probe"
        )


class Counts:
    """Weights of images, looked up by path; an image that occurs twice has two weights, in their order.

    Args:
        items: N images.
        counts: weight (N,) of each.
    """

    def __init__(self, items: Sequence[Item], counts: Sequence[float]):
        self._counts: dict[str, list[float]] = defaultdict(list)
        for item, count in zip(items, counts, strict=True):
            self._counts[item.path].append(count)

    def of(self, items: Sequence[Item]) -> list[float]:
        """The weights of some of the images, in their order."""
        remaining = {path: deque(counts) for path, counts in self._counts.items()}
        return [remaining[item.path].popleft() for item in items]
