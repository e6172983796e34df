"""Logits of images that a learner was not trained on, by cross-fitting if there are only training images."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vlprompt.data.splits import Item
from vlprompt.errors import VlpromptError
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.held_out import Selection
from vlprompt.training.feed import ImageFeed

FOLDS = 3  # at most; each training is on two thirds of the images
Make = Callable[[], PromptLearner]
Fit = Callable[[PromptLearner, ImageFeed], Any]


def held_out_logits(
    learner: PromptLearner, feed: ImageFeed, make: Make, fit: Fit, seed: int
) -> tuple[Literal["val", "cross_fit"], Tensor, Tensor]:
    """Return logits (N, C) and labels (N,) of labelled images, scored by learners that were not trained on them.

    These are the feed's validation images if it has any. Otherwise its labelled images are split into up to three
    parts, and each part is scored by a learner that was trained in the same way on the other parts (cross-fitting).

    Args:
        learner: the learner, trained on the feed.
        feed: what it was trained on; its validation images must not be test images.
        make: creates a learner as this one was before training.
        fit: trains a learner on a feed.
        seed: seed of the split.

    Returns:
        ``val`` or ``cross_fit``, the logits and the labels.

    Raises:
        VlpromptError: without validation images, the feed has no labelled images, or a class has only one.
    """
    if feed.splits.val:
        return "val", *scored(learner, replace(feed, selection=Selection()))
    found = [_cross_fitted(part, make, fit) for part in split_feed(feed, seed)]
    logits, labels = (torch.cat(each) for each in zip(*found, strict=True))
    return "cross_fit", logits, labels


def _cross_fitted(part: ImageFeed, make: Make, fit: Fit) -> tuple[Tensor, Tensor]:
    """Train a new learner on a part's training images, and score its validation images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same warnings as for the learner itself
        other = make()
        fit(other, part)
    return scored(other, part)


def scored(learner: PromptLearner, feed: ImageFeed) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of a feed's validation images, and their labels (N,), both on the CPU."""
    learner.eval()
    logits = torch.cat([part.float().cpu() for part in learner.predict_all(feed.in_order("val"))])
    return logits, torch.tensor([item.label for item in feed.splits.val])


def split_feed(feed: ImageFeed, seed: int) -> Iterator[ImageFeed]:
    """For each part of a feed's labelled images, a feed with this part for validation and the others for training."""
    items = list(feed.splits.train)
    for held in folds(items, seed):
        others = np.setdiff1d(np.arange(len(items)), held)
        yield feed.part(others.tolist(), held.tolist(), items)


def folds(items: Sequence[Item], seed: int) -> list[np.ndarray[Any, Any]]:
    """Split labelled images into up to three stratified parts, and return the indices of each.

    Copies of an image are in the same part.

    Raises:
        VlpromptError: there are no images, or a class has only one.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels = [item.label for item in items]
    images = Counter(item.label for item in set(items))
    if not images or min(images.values()) < 2:
        lone = next((item.class_name or str(item.label) for item in items if images[item.label] < 2), "")
        raise VlpromptError(
            f"'{lone}' has a single training image, and calibration learns from other images than it looks at: give "
            "two of each class, or validation images"
            if images
            else "calibration looks at labelled images, and there are none"
        )
    parts = StratifiedGroupKFold(min(FOLDS, *images.values()), shuffle=True, random_state=seed)
    return [held for _, held in parts.split(labels, labels, [item.path for item in items])]
