"""How much each image counts: ``sample_weight`` and ``class_weight``, as scikit-learn has them."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import _check_sample_weight

from vlprompt.base.checks import told
from vlprompt.data.splits import Item
from vlprompt.errors import VlpromptError, nearest
from vlprompt.learner.facts import Facts

BALANCED = "balanced"


def counts_of(
    sample_weight: Any, class_weight: Any, y: np.ndarray, classes: np.ndarray, once: bool = False
) -> np.ndarray | None:
    """How often each image counts (N,), the product of both; None where neither is given.

    Args:
        sample_weight: (N,), none below 0; 0 leaves an image out.
        class_weight: None, ``balanced`` (N / (C n_c)), or weights by label, 1 for those that it does not name.
        y: labels (N,).
        classes: all labels that there are (C,), some of which y may lack.
        once: whether y is a part of the images, whose classes cannot be balanced.

    Raises:
        VlpromptError: a weight is none, or nothing is left to learn from.
    """
    if sample_weight is None and class_weight is None:
        return None
    try:
        counts: np.ndarray = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
    except (ValueError, TypeError) as error:
        raise VlpromptError(f"sample_weight must be {len(y)} numbers of 0 or more: {error}") from None
    _check_class_weight(class_weight, classes.tolist(), once)
    if isinstance(class_weight, Mapping):  # which scikit-learn wants of every label of y, or of none but these
        counts = counts * [class_weight.get(label, 1.0) for label in y.tolist()]
    else:
        counts = counts * compute_sample_weight(class_weight, y)
    if not counts.any():  # of classes that weigh nothing
        raise VlpromptError("all images have a weight of 0, so there is none to learn from")
    return counts


def _check_class_weight(class_weight: Any, labels: list[Any], once: bool) -> None:
    if class_weight is None:
        return
    if not isinstance(class_weight, Mapping):
        if not (isinstance(class_weight, str) and class_weight == BALANCED):
            raise VlpromptError(f"class_weight must be None, 'balanced' or a dictionary, not {told(class_weight)}")
        if once:
            raise VlpromptError(
                "class_weight='balanced' needs all images, and partial_fit sees only some: give a dictionary"
            )
        return
    for label, weight in class_weight.items():
        if not isinstance(weight, (int, float, np.number)) or not 0 <= weight < np.inf:
            raise VlpromptError(f"class_weight[{label!r}] must be a number of 0 or more, not {told(weight)}")
        if label not in labels:
            raise VlpromptError(
                f"class_weight has the label {label!r}, which does not occur: {nearest(str(label), map(str, labels))}"
            )


def refuse_weights(method: str, facts: Facts) -> None:
    """Raise a ``VlpromptError`` if a learner cannot let some images count more than others."""
    if not facts.weighs:
        why = "learns from no labelled images" if facts.labels == "none" else "takes all labelled images alike"
        raise VlpromptError(
            f"{method} with these settings {why}, so it cannot use sample_weight and class_weight: leave them out, "
            "or use a method that can, such as coop, gda or linear_probe"
        )


class Counts:
    """How often images count, found again by their paths; one that is there twice has both its counts, in their order.

    Args:
        items: N images.
        counts: (N,).
    """

    def __init__(self, items: Sequence[Item], counts: Sequence[float]):
        self._counts: dict[str, list[float]] = defaultdict(list)
        for item, count in zip(items, counts, strict=True):
            self._counts[item.path].append(count)

    def of(self, items: Sequence[Item]) -> list[float]:
        """The counts of some of the images, in their order."""
        left = {path: deque(counts) for path, counts in self._counts.items()}
        return [left[item.path].popleft() for item in items]
