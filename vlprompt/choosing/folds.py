"""Training images divided into folds, again and again: what is learnt from, and what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import RepeatedStratifiedKFold

from vlprompt.data.splits import Item

Split = tuple[np.ndarray, np.ndarray]  # places that are learnt from, and places that are held out
SHOWN = 3  # class names in a note


@dataclass(frozen=True)
class Folds:
    """Divisions of N images.

    Attributes:
        repeats: the splits of each division; empty where nothing can be held out.
        count: splits of a division.
        notes: what is not as it was asked for, a sentence each.
    """

    repeats: list[list[Split]]
    count: int
    notes: list[str]


def make_folds(items: Sequence[Item], class_names: Sequence[str], folds: int, repeats: int, seed: int) -> Folds:
    """Divide images by scikit-learn's ``RepeatedStratifiedKFold``.

    No division has more folds than the smallest class has images. A class with a single image is learnt from in every
    fold and held out in none; an image that is there twice is on one side.

    Args:
        items: N labelled images.
        class_names: C, by label.
        folds, repeats: that are asked for.
        seed: of the divisions.
    """
    places: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        places.setdefault(item.path, []).append(i)
    labels = np.array([items[own[0]].label for own in places.values()])
    counts = np.bincount(labels, minlength=len(class_names))
    several = np.flatnonzero(counts[labels] > 1)
    notes = _singles([class_names[c] for c in np.flatnonzero(counts == 1).tolist()])
    if len(set(labels[several].tolist())) < 2:
        return Folds([], 0, ["fewer than two classes have two images, so that nothing can be held out"])
    least = min((int(counts[label]), int(label)) for label in set(labels[several].tolist()))
    if least[0] < folds:
        notes.append(f"{least[0]} folds and not {folds}, since {class_names[least[1]]!r} has {least[0]} images")
        folds = least[0]
    dividing = RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=seed)
    every, own = np.arange(len(items)), list(places.values())
    splits: list[Split] = []
    for _, held in dividing.split(several, labels[several]):
        out = np.array(sorted(i for k in several[held] for i in own[k]))
        splits.append((np.setdiff1d(every, out), out))
    return Folds([splits[i : i + folds] for i in range(0, len(splits), folds)], folds, notes)


def _singles(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return [f"a single image is learnt from in every fold and held out in none: {shown}"]
