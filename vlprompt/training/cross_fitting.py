"""What a learner says of images that it was not trained on, where training images are all there is."""

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

FOLDS = 3  # at most: two trainings more, since each is on two thirds of the images
Make = Callable[[], PromptLearner]
Fit = Callable[[PromptLearner, ImageFeed], Any]


def held_out_logits(
    learner: PromptLearner, feed: ImageFeed, make: Make, fit: Fit, seed: int
) -> tuple[Literal["val", "cross_fit"], Tensor, Tensor]:
    """Return logits (N, C) and labels (N,) of labelled images that the learner that scores them was not trained on.

    They are the feed's validation images where it has any. Else its labelled images are parted in up to three, and each
    part is scored by a learner that was trained like this one on the others (cross-fitting).

    Args:
        learner: trained on all of them.
        feed: that it learnt from; its validation images must be none of those that are tested.
        make: a learner as this one was before training.
        fit: trains a learner on a feed.
        seed: of the parting.

    Raises:
        VlpromptError: the feed has no labelled images, or one image of a class.
    """
    if feed.splits.val:
        return "val", *scored(learner, replace(feed, selection=Selection()))
    found = [_cross_fitted(part, make, fit) for part in parted(feed, seed)]
    logits, labels = (torch.cat(each) for each in zip(*found, strict=True))
    return "cross_fit", logits, labels


def _cross_fitted(part: ImageFeed, make: Make, fit: Fit) -> tuple[Tensor, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the learner itself has told all of them
        other = make()
        fit(other, part)
    return scored(other, part)


def scored(learner: PromptLearner, feed: ImageFeed) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of a feed's validation images, and their labels (N,), both on the CPU."""
    learner.eval()
    logits = torch.cat([part.float().cpu() for part in learner.predict_all(feed.in_order("val"))])
    return logits, torch.tensor([item.label for item in feed.splits.val])


def parted(feed: ImageFeed, seed: int) -> Iterator[ImageFeed]:
    """A feed once for each part of its labelled images, which are then its validation images and not learnt from."""
    items = list(feed.splits.train)
    for held in folds(items, seed):
        others = np.setdiff1d(np.arange(len(items)), held)
        yield feed.part(others.tolist(), held.tolist(), items)


def folds(items: Sequence[Item], seed: int) -> list[np.ndarray[Any, Any]]:
    """Places of each of up to three parts of labelled images, with about the same classes in each.

    An image that is there twice is in one of them.

    Raises:
        VlpromptError: there are none, or a class has a single image.
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
