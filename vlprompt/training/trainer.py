"""Trains any learner on any batches, with checkpoints from which training resumes bit-identically."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlprompt.base.environment import Clock
from vlprompt.base.files import atomic_write, writing
from vlprompt.base.layout import CHECKPOINT, LOG
from vlprompt.base.modes import default_modes
from vlprompt.base.settings import TrainOptions
from vlprompt.errors import VlpromptError, nearest
from vlprompt.learner.aggregation import load_aggregation_state
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.held_out import Point, Search
from vlprompt.learner.learning import Batches, EpochBatches, Feed, History, ParameterGroup, Source
from vlprompt.learner.selection import training_points
from vlprompt.training.checkpoint import Checkpoint, CheckpointWriter, as_mapping
from vlprompt.training.feed import ImageFeed
from vlprompt.training.loop import Loop, OnSteps
from vlprompt.training.options import learning_rate as learning_rate
from vlprompt.training.options import make_optimizer


@dataclass
class BestEpoch:
    """Keeps the learnables of the epoch with the highest score, of the latest one in a tie.

    Attributes:
        score: scores the learner in its present state.
        best: highest score so far.
        state: the learnables with that score.
    """

    score: Callable[[], float]
    best: float = -math.inf
    state: dict[str, Tensor] = field(default_factory=dict)

    def update(self, learner: nn.Module) -> float:
        """Score the learner after an epoch, keep its learnables if no epoch was better, and return the score."""
        learner.eval()
        score = self.score()
        learner.train()
        if score >= self.best:
            self.best, self.state = score, _copied(learner)
        return score

    def restore(self, state: dict[str, Tensor], history: list[dict[str, Any]]) -> None:
        """Restore the state from a checkpoint."""
        self.state, self.best = state, max((record["selection"] for record in history), default=-math.inf)

    def choose(self, learner: nn.Module) -> None:
        """Load the best learnables; a learner keeps those of the last epoch as ``last_state``."""
        if not isinstance(learner, PromptLearner):
            learner.load_state_dict(self.state)
            return
        learner.last_state = _copied(learner)
        learner.load_learnables(self.state, "the best epoch's tensors")


@default_modes()
def train(
    learner: nn.Module,
    batches: Batches,
    options: TrainOptions,
    *,
    seed: int = 1,
    folder: Path | None = None,
    resume: bool = False,
    identity: str | Mapping[str, str] = "",
    stage: str = "",
    attempt: str = "",
    selection: BestEpoch | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_steps: OnSteps | None = None,
) -> History:
    """Train a learner in place and leave it in evaluation mode; without learnables, return at once.

    A run that was interrupted at any moment, even by ``kill -9``, and resumed ends with the same weights as an
    uninterrupted one, bit-identical on a CPU: all randomness depends only on ``seed``, the stage and the epoch.

    Args:
        learner: a ``PromptLearner``, or any module with a method ``loss(batch)``.
        batches: maps an epoch's index to its batches, as ``learner.loss`` takes them.
        options: the recipe.
        seed: seed of random numbers in training.
        folder: folder of the checkpoint and ``train.jsonl``; None writes no files.
        resume: continue from the folder's checkpoint, if there is one.
        identity: identifies the run that a checkpoint belongs to, by a text for its settings, or by ``settings``,
            ``backbone`` and ``data``; checkpoints of other runs are refused.
        stage: name of this training, if a run has several.
        attempt: name of this training among several of one stage, which use the same random numbers.
        selection: chooses among the epochs' learnables; None keeps the last.
        on_epoch: called with each epoch's record, including restored ones.
        on_steps: called at most once a second within an epoch, with the number of epochs done (a float) and the mean
            losses so far.

    Returns:
        One record per epoch: ``epoch`` (0-based), ``lr``, ``seconds``, the mean of each part of the loss, ``accuracy``
        on training batches with labels in percent, and with a selection the epoch's score as ``selection``.

    Raises:
        VlpromptError: a loss or parameter is not finite, or the checkpoint is damaged or belongs to another run.
    """
    groups = parameter_groups(learner)
    if not groups:
        learner.eval()
        return []
    optimizer = make_optimizer(groups, options)
    load_aggregation_state(learner, {})
    name = f"{attempt} {stage}".strip()
    path = folder / stage_file(CHECKPOINT, name) if folder else None
    identity = as_mapping(identity) | ({"stage": name} if name else {})
    checkpoint = Checkpoint.load(path, identity) if path and resume else None
    history = checkpoint.restore(learner, optimizer) if checkpoint else []
    if selection and checkpoint:
        selection.restore(checkpoint.part("selection"), history)
    log = Log(folder / stage_file(LOG, name) if folder else None, history)
    for record in history:
        if on_epoch:
            on_epoch(record)
    loop = Loop(learner, optimizer, batches, options, f"{seed}/{stage}" if stage else seed, on_steps)
    writer = CheckpointWriter(path, options.checkpoint_seconds)
    learner.train()
    try:
        for epoch in loop.epochs_after(history):
            record = loop.run(epoch, tested=selection is not None or loop.is_last(epoch))
            history.append(record | ({"selection": selection.update(learner)} if selection else {}))
            log.write(history[-1])
            if path:
                selected = selection.state if selection else {}
                state = Checkpoint.of(learner, optimizer, history, identity, selected)
                writer.update(state, loop.is_last(epoch))
            if on_epoch:
                on_epoch(history[-1])
    except KeyboardInterrupt:
        writer.flush()
        raise
    finally:  # whoever goes on with what an interrupted or failed training left scores as in a test
        learner.eval()
    if selection:
        selection.choose(learner)
    return history


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def parameter_groups(module: nn.Module) -> list[ParameterGroup]:
    """The module's own groups of learnables, or else a single group; without empty groups."""
    given = getattr(module, "parameter_groups", None)
    groups = given() if given else [ParameterGroup([p for p in module.parameters() if p.requires_grad])]
    return [group for group in groups if len(group.parameters)]


def stage_file(name: str, stage: str) -> str:
    """The name of a stage's file, with the stage's name inserted.

    >>> stage_file("train.jsonl", "round 3")
    'train-round-3.jsonl'
    """
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{re.sub(r'[^a-z0-9]+', '-', stage.lower())}{dot}{suffix}" if stage else name


@dataclass(frozen=True)
class Trainer:
    """The training loop that ``PromptLearner.learn`` gets, with a run's recipe, folder and progress.

    Attributes:
        options: the recipe.
        keeping: further arguments of ``train``: seed, folder, resume, identity, selection.
        on_epoch: called with a stage's name, its options and each epoch's record.
        clock: times the training.
        history: records of all stages.
        stages: names of the stages so far.
        attempt: the point of a grid that is tried.
        on_steps: called with a stage's name, its options, the number of epochs done, and mean losses so far.
    """

    options: TrainOptions
    keeping: Mapping[str, Any] = field(default_factory=dict)
    on_epoch: Callable[[str, TrainOptions, dict[str, Any]], None] | None = None
    clock: Clock = field(default_factory=Clock)
    history: History = field(default_factory=list)
    stages: set[str] = field(default_factory=set)
    attempt: str = ""
    on_steps: Callable[[str, TrainOptions, float, Mapping[str, float]], None] | None = None

    @default_modes()
    def fit(self, learner: PromptLearner, feed: Feed) -> History:
        """Have a learner learn from a feed, at each point of its grid if training settings are chosen."""
        points = training_points(learner.config, feed.selection)
        if points:
            self._choose(learner, cast(ImageFeed, feed), points)
        else:
            self._learn(learner, feed)
        learner.eval()
        return self.history

    def _learn(self, learner: PromptLearner, feed: Feed) -> None:
        """Have a learner learn, with random numbers between its stages that depend on the seed too."""
        learner.refuse_subset()
        learner.calibration = None  # the previous one was for the weights before
        device = learner.clip.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.keeping.get("seed", 1))
            learner.learn(feed, self)

    def _choose(self, learner: PromptLearner, feed: ImageFeed, points: Sequence[Point]) -> None:
        """Train at each point from the same initial state with the same random numbers, and keep the most accurate.

        The result, including the record of pseudo-labels, is bit-identical to that of a run with the chosen settings.
        """
        selection = self.keeping["selection"]
        start, before = _copied(learner), len(feed.labellings)
        tried: list[dict[str, float]] = []
        best: tuple[Any, ...] = ()
        for point in points:
            learner.load_state_dict(start)
            settings: dict[str, Any] = {**point}
            name = ", ".join(f"{key}={value:g}" for key, value in point.items())
            attempt = replace(self, options=replace(self.options, **settings), history=[], stages=set(), attempt=name)
            attempt._learn(learner, feed)
            learner.eval()
            tried.append({**point, "accuracy": 100 * selection.score()})
            if tried[-1]["accuracy"] > max((each["accuracy"] for each in tried[:-1]), default=-math.inf):
                best = point, attempt.history, _copied(learner), learner.last_state, feed.labellings[before:]
            del feed.labellings[before:]
        chosen, history, state, learner.last_state, labellings = best
        learner.load_state_dict(state)
        self.history.extend(history)
        feed.labellings.extend(labellings)
        source = cast(Source, feed.selection.settings)
        feed.selection.searches.append(Search(source, feed.count(source), tried, chosen))

    def __call__(
        self,
        module: nn.Module,
        batches: Batches,
        *,
        stage: str = "",
        score: Callable[[], float] | None = None,
        **changes: Any,
    ) -> History:
        """Train a module in place; see ``vlprompt.learner.learning.Train``."""
        known = [f.name for f in fields(TrainOptions)]
        for key in changes:
            if key not in known:
                raise VlpromptError(f"unknown training option '{key}': {nearest(key, known)}")
        if stage in self.stages:
            raise VlpromptError(f"two trainings of one run are called '{stage}': give each its own stage")
        self.stages.add(stage)
        options = replace(self.options, **changes)
        if "batch_size" in changes and isinstance(batches, EpochBatches):
            batches = batches.sized(options.batch_size)
        name = f"{self.attempt} {stage}".strip()
        callbacks = {"on_epoch": self.on_epoch, "on_steps": self.on_steps}
        tell: dict[str, Any] = {key: partial(call, name, options) for key, call in callbacks.items() if call}
        keeping = {"stage": stage, "attempt": self.attempt, **self.keeping, **self._selection(score)}
        with self.clock("train"):
            records = train(module, batches, options, **tell, **keeping)
        self.history.extend({"stage": stage} | record if stage else record for record in records)
        return records

    def _selection(self, score: Callable[[], float] | None) -> dict[str, BestEpoch]:
        """A new selection among a stage's epochs, by its own score or the run's; empty if nothing is selected."""
        selection: BestEpoch | None = self.keeping.get("selection")
        if selection is None:
            return {}
        return {"selection": replace(selection, score=score or selection.score, best=-math.inf, state={})}


def progress_text(record: Mapping[str, Any]) -> str:
    """The text of a progress line for an epoch's record, or for one of a part of an epoch.

    >>> progress_text({"loss": 0.5, "accuracy": 71.25, "lr": 0.002})
    'loss 0.500  training accuracy 71.2%  lr 2.00e-03'
    """
    forms = {"loss": "loss {:.3f}", "accuracy": "training accuracy {:.1f}%", "selection": "held-out accuracy {:.1f}%"}
    return "  ".join(form.format(record[key]) for key, form in (forms | {"lr": "lr {:.2e}"}).items() if key in record)


class Log:
    """A file of JSON lines, one per epoch, that always begins with the first epoch."""

    def __init__(self, path: Path | None, history: list[dict[str, Any]]):
        self.path = path
        if path:
            # a killed run may have logged epochs that its checkpoint does not contain
            with atomic_write(path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append a record."""
        if self.path:
            with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
