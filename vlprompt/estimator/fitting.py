"""How a ``PromptClassifier`` learns: settings to a recipe, images to a feed, and one loop for all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlprompt.base.modes import default_modes
from vlprompt.base.reporter import Reporter
from vlprompt.base.settings import AUTO, TrainOptions
from vlprompt.base.threads import computing_with, threads_for
from vlprompt.data import resolve_templates
from vlprompt.data.splits import NO_LABEL
from vlprompt.errors import VlpromptError
from vlprompt.estimator.answers import asks_to_calibrate, calibration_of, check_answering, check_calibration
from vlprompt.estimator.auto import choice_of, choose_for, new_learner
from vlprompt.estimator.checks import check_fits
from vlprompt.estimator.continuing import check_continues
from vlprompt.estimator.held_out import accuracy_on_held_out, selection_of
from vlprompt.estimator.inputs import names_of, names_of_dataset, training_set
from vlprompt.estimator.pool import as_pseudo_labels
from vlprompt.estimator.settings import clip_of, learning_of, options_of, seed_of
from vlprompt.estimator.training_data import TrainingData
from vlprompt.estimator.weights import refuse_weights
from vlprompt.learner.facts import Facts
from vlprompt.learner.held_out import Selection
from vlprompt.learner.registration import method_facts
from vlprompt.training.cross_fitting import Make
from vlprompt.training.recipes import Learning
from vlprompt.training.trainer import BestEpoch, Trainer, progress_text

if TYPE_CHECKING:
    from vlprompt.estimator.classifier import PromptClassifier


@default_modes()
def learn(
    estimator: PromptClassifier,
    X: Any,
    y: np.ndarray,
    classes: np.ndarray | None = None,
    once: bool = False,
    missing: np.ndarray | None = None,
    counts: np.ndarray | None = None,
) -> None:
    """Train on checked images or features, and set the estimator's fitted attributes.

    Args:
        estimator: what is fitted.
        X: a sequence of N images, or features (N, D).
        y: labels (N,).
        classes: all labels (C,), sorted, to train from scratch; None continues from what was learnt.
        once: train for one epoch, as ``partial_fit`` does.
        missing: (N,), true for images without a label, whose entry in y means nothing; None if all have one.
        counts: weight (N,) of each image; None if all weigh the same.

    Raises:
        VlpromptError: a setting, an image or a label is invalid; raised before training starts.
    """
    known = estimator.classes_ if classes is None else classes
    _check_labels(y, known, new=classes is not None)
    names = estimator.learner_.class_names if classes is None else _class_names(estimator, X, classes)
    labels = np.searchsorted(known, y)
    if missing is not None:
        labels[missing] = NO_LABEL
    images = () if isinstance(X, np.ndarray) else X
    data = training_set(images, labels.tolist() if len(images) else (), names, mirror=estimator.mirror)
    templates = resolve_templates(estimator.templates, data)
    check_answering(estimator.calibrate, estimator.min_probability, estimator.coverage)
    seed, weighted = seed_of(estimator), labels if counts is None else labels[counts > 0]
    gather = partial(TrainingData.of, X, labels, data, counts, estimator.on_unreadable, estimator.workers)
    gathered = None
    if estimator.method == AUTO and classes is not None:
        options = choice_of(estimator.selection, estimator.budget, options_of(estimator))
        gathered, learning_with = gather(), partial(learning_of, estimator, weighted, seed)
        estimator.choice_ = choose_for(
            gathered, options, clip_of(estimator), (names, templates), learning_with, seed, estimator.verbose
        )
    learning, facts = _learning(estimator, weighted, seed)
    method = learning.config.method
    selection = selection_of(estimator.selection, method, learning.config, facts, once)
    if counts is not None and not (estimator.method == AUTO and facts.labels == "none"):
        refuse_weights(method, facts)
    clip, make = clip_of(estimator), None
    check_fits(X, method, facts, clip, training=True)
    gathered = gathered or gather(masks="mask" in facts.inputs)
    if classes is None:
        check_continues(estimator, learning, clip, templates)
    else:
        make = partial(new_learner, learning, clip, names, templates)
        learner = make()
        check_fits(X, method, learner.facts, clip, training=True)  # a saved learner below it may change them
        estimator.learner_, estimator.classes_, estimator.history_ = learner, classes, []
        estimator.searches_, estimator.pseudo_labels_ = [], []  # even if this training is interrupted
    if once:
        seed = learning.config.seed + len(estimator.history_)  # each epoch draws anew
        learning = replace(learning, config=replace(learning.config, epochs=1, warmup_epochs=0, seed=seed))
    _train(estimator, gathered, learning, selection, None if once else make)


def _check_labels(y: np.ndarray, classes: np.ndarray, new: bool) -> None:
    """Refuse a single class, and labels (N,) that are not among the classes (C,), which are ``new`` or known."""
    if len(classes) < 2:
        raise VlpromptError(f"there is only 1 class, {classes.tolist()[0]!r}, and a classifier needs at least two")
    unknown = np.setdiff1d(y, classes)
    if len(unknown):
        hint = "class_names or classes lack it" if new else "add it with add_class"
        raise VlpromptError(f"the label {unknown.tolist()[0]!r} is not one of the classes: {hint}")


def _class_names(estimator: PromptClassifier, X: Any, classes: np.ndarray) -> Sequence[str]:
    """The name of each class (C,): the estimator's, else the dataset's, else the labels themselves."""
    named = estimator.class_names
    return names_of(classes, names_of_dataset(X, classes) if named is None else named)


def _learning(estimator: PromptClassifier, labels: np.ndarray, seed: int) -> tuple[Learning, Facts]:
    """The recipe and the facts of the estimator's method, or of the one that ``auto`` chose."""
    if estimator.method == AUTO:
        choice = estimator.choice_
        learning = learning_of(estimator, labels, seed, choice.method, choice.settings)
    else:
        learning = learning_of(estimator, labels, seed)
    return learning, method_facts(learning.config.method, learning.method_settings)


def _train(
    estimator: PromptClassifier, data: TrainingData, learning: Learning, selection: Selection, make: Make | None
) -> None:
    """Train ``learner_``; ``make`` makes untrained copies of it, and is None if earlier training is continued."""
    learner, config, before = estimator.learner_, learning.config, len(estimator.history_)
    reporter = Reporter(quiet=not estimator.verbose)
    threads = computing_with(threads_for(learner.clip.model))
    with torch.enable_grad(), threads, reporter.bar("epoch", lines=5) as update:  # even if the caller disabled it

        def on_epoch(stage: str, options: TrainOptions, record: dict[str, Any]) -> None:
            update(record["epoch"] + 1, options.epochs, progress_text(record))

        def on_steps(stage: str, options: TrainOptions, done: float, means: Mapping[str, float]) -> None:
            update(done, options.epochs, progress_text(means))

        feed = data.feed(learner, learning, reporter, selection)
        calibrating = asks_to_calibrate(estimator.calibrate, estimator.coverage)
        if calibrating:
            check_calibration(learner.method, learner.facts, feed, config.seed, make)
        best = BestEpoch(lambda: accuracy_on_held_out(learner, feed)) if selection.epoch else None
        trainer = Trainer(config, {"seed": config.seed, "selection": best}, on_epoch, on_steps=on_steps)
        trainer.fit(learner, feed)
        if calibrating and make is not None:
            learner.calibration = calibration_of(learner, feed, make, config, estimator.calibrate, estimator.coverage)
    estimator.searches_ = selection.searches
    estimator.pseudo_labels_ = [as_pseudo_labels(made, data.positions, estimator.classes_) for made in feed.labellings]
    estimator.history_ = estimator.history_ + [
        record | {"epoch": before + record["epoch"]} for record in trainer.history
    ]
