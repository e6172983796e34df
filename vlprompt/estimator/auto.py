"""``PromptClassifier(method="auto")``: a method chosen by cross-validation on what the classifier is fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vlprompt.base.reporter import Reporter
from vlprompt.base.settings import AUTO, ChoiceOptions
from vlprompt.base.threads import computing_with, threads_for
from vlprompt.choosing.choice import Choice
from vlprompt.choosing.options import choice_options
from vlprompt.choosing.search import Source, choose
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.errors import VlpromptError
from vlprompt.estimator.checks import check_fits
from vlprompt.estimator.settings import CHOICES
from vlprompt.estimator.training_data import TrainingData
from vlprompt.estimator.weights import refuse_weights
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.creation import create_learner
from vlprompt.learner.held_out import FIXED, OTHER_NAMES, Selection
from vlprompt.learner.names import check_keys
from vlprompt.training.recipes import Learning, adapt_depths


def choice_of(selection: str, budget: float | str | None, options: Mapping[str, Any]) -> ChoiceOptions:
    """The settings of the choice: the budget, and those of the classifier's options that are for ``auto``.

    Raises:
        VlpromptError: a setting is invalid, or ``selection`` is not ``fixed``.
    """
    if OTHER_NAMES.get(selection, selection) != FIXED:
        raise VlpromptError(f"method={AUTO} cross-validates on all images of X: leave selection={selection} out")
    chosen = {key: value for key, value in options.items() if key in CHOICES}
    return choice_options(chosen if budget is None else chosen | {"budget": budget})


def choose_for(
    data: TrainingData,
    options: ChoiceOptions,
    clip: FrozenCLIP,
    words: tuple[Sequence[str], Sequence[str]],
    learn: Callable[[str, Mapping[str, Any]], Learning],
    seed: int,
    verbose: bool,
) -> Choice:
    """Choose a method by cross-validation on what the classifier is fitted to.

    Args:
        data: images or features, with labels.
        options: candidates, folds and budget.
        clip: the backbone.
        words: class names, and templates.
        learn: returns the recipe of a method with some settings.
        seed: the seed of the division into folds.
        verbose: report progress.
    """
    names, templates = words

    def learner(learning: Learning) -> PromptLearner:
        made = new_learner(learning, clip, names, templates)
        check_fits(data.X, made.method, made.facts, clip, training=True)
        if data.counts is not None and made.facts.labels != "none":
            refuse_weights(made.method, made.facts)
        return made

    quiet = Reporter(quiet=True)
    source = Source(
        data.items,
        names,
        learning=learn,
        learner=learner,
        feed=lambda made, learning: data.feed(made, learning, quiet, Selection()),
        counts=None if data.counts is None else np.array(data.counts.of(data.items)),
    )
    with torch.enable_grad(), computing_with(threads_for(clip.model)):  # even if the caller disabled gradients
        return choose(source, options, seed, Reporter(quiet=not verbose))


def new_learner(learning: Learning, clip: FrozenCLIP, names: Sequence[str], templates: Sequence[str]) -> PromptLearner:
    """An untrained learner; prompts deeper than the backbone are made as deep as it is."""
    settings, seed = learning.method_settings | adapt_depths(learning, clip), learning.config.seed
    made = create_learner(learning.config.method, clip, names, templates=templates, seed=seed, **settings)
    if isinstance(made.config.names, Mapping):
        check_keys(made.config.names, names)
    return made
