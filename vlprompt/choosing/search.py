"""The choice of a method: candidates in turn, fold by fold, as long as the time allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vlprompt.base.reporter import Reporter, duration
from vlprompt.base.settings import ChoiceOptions
from vlprompt.choosing.budget import Budget, OutOfBudget, seconds_of
from vlprompt.choosing.choice import Choice, Outcome, decide, mean_of
from vlprompt.choosing.folds import Folds, Split, make_folds
from vlprompt.choosing.options import Candidate
from vlprompt.data.splits import Item
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.scoring import finite
from vlprompt.learner.contract import PromptLearner
from vlprompt.training.feed import ImageFeed
from vlprompt.training.recipes import Learning
from vlprompt.training.trainer import Trainer

MARGIN = 1.2  # by which a fit to all images may take longer than its share of them says


@dataclass(frozen=True)
class Source:
    """Training images, and how whoever has them makes a learner and its feed.

    Attributes:
        items: N labelled images.
        class_names: C, by label.
        learning: from a method's name and settings to how it learns.
        learner: from how it learns to a new learner.
        feed: what a learner learns from, all images.
        counts: how often each image counts (N,); None once each.
    """

    items: Sequence[Item]
    class_names: Sequence[str]
    learning: Callable[[str, Mapping[str, Any]], Learning]
    learner: Callable[[Learning], PromptLearner]
    feed: Callable[[PromptLearner, Learning], ImageFeed]
    counts: np.ndarray | None = None


@dataclass
class Trial:
    """A candidate that is being tried.

    Attributes:
        candidate: it.
        scores: by finished repeat, what it was right about of N images; nan for those that were not held out.
        fits: that were finished.
        fit_seconds: that these took.
        seconds: in all.
        reason: why it has no finished repeat, or no more of them.
        late: whether that is the time.
    """

    candidate: Candidate
    scores: list[np.ndarray] = field(default_factory=list)
    fits: int = 0
    fit_seconds: float = 0.0
    seconds: float = 0.0
    reason: str | None = None
    late: bool = False

    @property
    def a_fit(self) -> float:
        """Seconds of a fit in the mean; 0 while nothing tells."""
        return self.fit_seconds / max(1, self.fits)

    def outcome(self, counts: np.ndarray | None) -> Outcome:
        """What became of it."""
        mean, low, high = mean_of(np.mean(self.scores, axis=0), counts) if self.scores else (None, None, None)
        one, of = (round(self.a_fit, 4) if self.fits else None), self.candidate
        repeats, spent = len(self.scores), round(self.seconds, 3)
        return Outcome(of.text, of.method, of.settings, mean, low, high, repeats, spent, one, self.reason)


def choose(
    source: Source,
    options: ChoiceOptions,
    seed: int,
    reporter: Reporter | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Choice:
    """Choose a method by repeated stratified cross-validation on training images alone.

    All candidates go through the first division of the images before any goes through the second, and one is left as
    soon as its own pace tells that it cannot finish and then learn from all images within the budget. The candidates
    that are tried depend on the machine where the budget cuts, and nothing else does.

    Args:
        source: the images.
        options: what is chosen among, and how long.
        seed: of the divisions.
        reporter: tells how it gets on.
        clock: seconds.

    Raises:
        VlpromptError: no candidate can be tried.
    """
    budget, reporter = Budget(seconds_of(options.budget), clock), reporter or Reporter(quiet=True)
    folds = make_folds(source.items, source.class_names, options.folds, options.repeats, seed)
    trials = [Trial(Candidate.of(text)) for text in options.candidates] if folds.repeats else []
    encoding = _encode(source, trials)
    encoded = budget.spent
    for repeat, splits in enumerate(folds.repeats):
        for trial in trials:
            if trial.reason is None:
                _try(trial, source, splits, budget, _reserve(trials, folds))
                if repeat == 0:
                    reporter.say(_say(trial))
    chosen, why = _decide(trials, source.counts, options.alone)
    return Choice(
        chosen.text,
        chosen.method,
        chosen.settings,
        why,
        [trial.outcome(source.counts) for trial in trials],
        images=len(source.items),
        folds=folds.count,
        repeats=options.repeats,
        seed=seed,
        budget=budget.seconds,
        seconds=round(budget.spent, 3),
        encode_seconds=round(encoded, 3) if encoding else 0.0,
        notes=folds.notes,
    )


def _encode(source: Source, trials: Sequence[Trial]) -> bool:
    """Compute the features of all images, which no single candidate is to be charged with; tell whether any asks."""
    every = list(range(len(source.items)))
    for trial in trials:
        try:
            learning = source.learning(trial.candidate.method, trial.candidate.settings)
            learner = source.learner(learning)
            if learner.facts.cacheable_images:
                source.feed(learner, learning).part(every, every, source.items).bank("val")
                return True
        except VlpromptError as error:
            trial.reason = str(error)  # so that it is not tried
    return False


def _reserve(trials: Sequence[Trial], folds: Folds) -> float:
    """Seconds that a fit to all images may take, of whichever candidate is chosen."""
    tried = [trial.a_fit for trial in trials if trial.scores]
    return MARGIN * max(tried, default=0.0) * folds.count / (folds.count - 1)


def _try(trial: Trial, source: Source, splits: Sequence[Split], budget: Budget, reserve: float) -> None:
    """Go through one division of the images, unless the time that is left does not do for it."""
    begun, scores = budget.spent, np.full(len(source.items), np.nan)
    try:
        for done, (train, held) in enumerate(splits):
            more = len(splits) - done
            needed = trial.a_fit * more + max(reserve, MARGIN * trial.a_fit)
            if needed > budget.left:
                raise OutOfBudget(trial.a_fit)
            before = budget.spent
            scores[held] = _fitted(trial.candidate, source, train, held, budget, more + MARGIN)
            trial.fits, trial.fit_seconds = trial.fits + 1, trial.fit_seconds + budget.spent - before
        trial.scores.append(scores)
    except OutOfBudget as late:
        trial.late, trial.reason = True, _late(trial, late.seconds, len(splits), budget)
    except VlpromptError as error:
        trial.reason = str(error)
    trial.seconds += budget.spent - begun


def _fitted(
    candidate: Candidate, source: Source, train: np.ndarray, held: np.ndarray, budget: Budget, fits: float
) -> np.ndarray:
    """What a learner of some images is right about (M,) of others.

    Raises:
        OutOfBudget: so many fits would not end in time.
    """
    learning = source.learning(candidate.method, candidate.settings)
    learner = source.learner(learning)
    feed = source.feed(learner, learning).part(train.tolist(), held.tolist(), source.items)
    deadline = budget.deadline(fits)
    trainer = Trainer(learning.config, {"seed": learning.config.seed}, deadline.epoch, on_steps=deadline.steps)
    trainer.fit(learner, feed)
    logits = finite(torch.cat([part.cpu() for part in learner.predict_all(feed.in_order("val"))]), learner)
    right: np.ndarray = logits.argmax(dim=1).numpy() == [source.items[i].label for i in held]
    return right


def _late(trial: Trial, fit: float, folds: int, budget: Budget) -> str:
    """Why a candidate is not gone on with."""
    if trial.scores:
        return f"out of budget after {len(trial.scores)} of the divisions"
    left = duration(budget.left) if budget.left > 0 else "no time"
    if not fit:
        return f"out of budget: {left} left"
    return f"out of budget: {folds + 1} fits of about {duration(fit)} each, and {left} left"


def _say(trial: Trial) -> str:
    text = trial.candidate.text
    if not trial.scores:
        return f"{text}: {trial.reason}"
    return f"{text}: {100 * np.nanmean(trial.scores[0]):.1f}% in {trial.seconds:.1f} s"


def _decide(trials: Sequence[Trial], counts: np.ndarray | None, alone: str) -> tuple[Candidate, str]:
    """The candidate that is chosen, and why."""
    if not trials:
        return Candidate.of(alone), f"{alone} is taken, which starts from zero-shot and was compared with nothing."
    first = trials[0].candidate
    if not any(trial.scores for trial in trials):
        if any(trial.late for trial in trials):
            why = "the simplest, since the budget was spent before anything was compared"
            return first, f"{first.text} is taken, {why}."
        raise VlpromptError(f"no candidate can be tried: {first.text}: {trials[0].reason}")
    place, why = decide([trial.candidate.text for trial in trials], [trial.scores for trial in trials], counts)
    return trials[place].candidate, why
