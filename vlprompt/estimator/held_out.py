"""``selection=fewshot_val`` of a classifier: images held out of X, to choose hyper-parameters and the epoch on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vlprompt.data import DatasetSplits
from vlprompt.data.sampling import hold_out
from vlprompt.errors import VlpromptError, nearest
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.facts import Facts
from vlprompt.learner.held_out import (
    FEWSHOT_VAL,
    OTHER_NAMES,
    PAPER,
    SELECTIONS,
    Selection,
    check_choice,
    make_selection,
)
from vlprompt.training.feed import ImageFeed


def selection_of(setting: str, method: str, config: Any, facts: Facts, once: bool = False) -> Selection:
    """Return what may be chosen, and on which images.

    Args:
        setting: ``fixed`` or ``fewshot_val``.
        method: its name.
        config: its settings, possibly among others.
        facts: the learner's facts.
        once: whether a single epoch is trained, as in ``partial_fit``.

    Raises:
        VlpromptError: the setting is unknown, or there is nothing to choose on or among.
    """
    rule = OTHER_NAMES.get(setting, setting)
    if rule == PAPER:
        raise VlpromptError(
            "selection=paper chooses on a published dataset's validation or test images, and X has none: use fixed or "
            "fewshot_val"
        )
    if rule not in SELECTIONS:
        raise VlpromptError(f"unknown selection '{rule}': {nearest(str(rule), (*OTHER_NAMES, FEWSHOT_VAL))}")
    selection = make_selection(rule, method, facts)
    if selection.sources and once:
        raise VlpromptError(f"partial_fit trains one epoch and chooses nothing: use fit for selection={setting}")
    if selection.sources and facts.labels == "none":
        raise VlpromptError(
            f"{method} does not learn from labelled images, so none can be held out: use selection=fixed"
        )
    check_choice(rule, selection, config, facts, method)
    return selection


def held_out(data: DatasetSplits, seed: int) -> DatasetSplits:
    """Move some training images of each class to validation; all copies of an image go together.

    Raises:
        VlpromptError: a class has too few images.
    """
    val = {data.train[i]: None for i in hold_out([item.label for item in data.train], seed)}
    train = [item for item in data.train if item not in val]
    left = {item.label for item in train}
    lone = next((item for item in sorted(val, key=lambda item: item.label) if item.label not in left), None)
    if lone or not val:
        lacking = f"'{lone.class_name}' has but one image" if lone else "no class has two images"
        raise VlpromptError(
            f"selection=fewshot_val needs separate images to learn from and to choose on, and {lacking}"
        )
    return replace(data, train=train, val=list(val))


def accuracy_on_held_out(learner: PromptLearner, feed: ImageFeed) -> float:
    """Accuracy in [0, 1] on the validation images of a feed."""
    logits = torch.cat(list(learner.predict_all(feed.in_order("val"))))
    labels = torch.tensor([item.label for item in feed.splits.val], device=logits.device)
    return float((logits.argmax(dim=1) == labels).double().mean())
