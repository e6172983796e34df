"""The loop: any learner, any source of batches, the published schedule, and checkpoints that resume bit for bit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlprompt.aggregation import aggregate, load_aggregation_state
from vlprompt.checkpoint import CHECKPOINT, Checkpoint
from vlprompt.errors import VlpromptError, nearest
from vlprompt.files import atomic_write, writing
from vlprompt.learner import PromptLearner

Batches = Callable[[int], Iterable[Mapping[str, Tensor]]]
LOG = "train.jsonl"
SELECTIONS = ("last", "fewshot_val")
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass
class TrainOptions:
    """How to optimise; the defaults are what the recipes of the CoOp lineage share.

    Attributes:
        epochs: passes over the training images.
        lr: learning rate at the start of the cosine.
        batch_size: images a step; a short last batch is dropped unless it is the only one.
        optimizer: sgd, adam or adamw.
        momentum: of SGD, without Nesterov.
        weight_decay: applied to every learnable. The published code takes it from Dassl's defaults; no recipe names it.
        warmup_epochs: first epochs, at the constant rate warmup_lr; the cosine starts counting after them.
        warmup_lr: learning rate of the warm-up.
        checkpoint_seconds: least time between two checkpoints; the last epoch always leaves one.
    """

    epochs: int = 50
    lr: float = 2e-3
    batch_size: int = 32
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: int = 1
    warmup_lr: float = 1e-5
    checkpoint_seconds: float = 5.0


def learning_rate(epoch: int, lr: float, epochs: int, warmup_epochs: int = 1, warmup_lr: float = 1e-5) -> float:
    """Return the learning rate of a 0-based epoch, as the published code (Dassl) steps it.

    The warm-up is constant; after it the cosine starts from zero but keeps its period of all ``epochs``, so that it
    never reaches zero: lr·½(1 + cos(π(e - w)/T)).

    >>> [round(learning_rate(e, 3.5e-3, 5), 6) for e in range(5)]
    [1e-05, 0.0035, 0.003166, 0.002291, 0.001209]
    """
    if epoch < warmup_epochs:
        return warmup_lr
    return lr * 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs))


def make_optimizer(parameters: list[torch.nn.Parameter], options: TrainOptions) -> torch.optim.Optimizer:
    """Return the optimizer that ``options`` names, for fp32 parameters."""
    if options.optimizer not in OPTIMIZERS:
        raise VlpromptError(f"unknown optimizer '{options.optimizer}': {nearest(options.optimizer, OPTIMIZERS)}")
    extra = {"momentum": options.momentum} if options.optimizer == "sgd" else {}
    return OPTIMIZERS[options.optimizer](parameters, lr=options.lr, weight_decay=options.weight_decay, **extra)


@dataclass
class BestEpoch:
    """Keeps the learnables of the epoch that scores best, the latest of equal ones.

    Attributes:
        score: of the learner as it is, never on test data.
        best: highest score so far.
        state: the learnables that got it.
    """

    score: Callable[[], float]
    best: float = -math.inf
    state: dict[str, Tensor] = field(default_factory=dict)

    def update(self, learner: PromptLearner) -> float:
        """Score the learner after an epoch, keep its learnables if none was better, and return the score."""
        learner.eval()
        score = self.score()
        learner.train()
        if score >= self.best:
            self.best, self.state = score, {name: t.detach().clone() for name, t in learner.state_dict().items()}
        return score

    def restore(self, state: dict[str, Tensor], history: list[dict[str, Any]]) -> None:
        """Go on from a checkpoint."""
        self.state, self.best = state, max((record["selection"] for record in history), default=-math.inf)

    def choose(self, learner: PromptLearner) -> None:
        """Put the best learnables in the place of the last, which stay beside them."""
        learner.last_state = {name: t.detach().clone() for name, t in learner.state_dict().items()}
        learner.load_learnables(self.state, "the best epoch's tensors")


def train(
    learner: PromptLearner,
    batches: Batches,
    options: TrainOptions,
    *,
    seed: int = 1,
    folder: Path | None = None,
    resume: bool = False,
    identity: str | Mapping[str, str] = "",
    selection: BestEpoch | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train a learner in place and leave it in evaluation mode; one without learnables returns at once.

    A run that was stopped at any moment, ``kill -9`` included, and resumed ends with the weights of an uninterrupted
    one, bit for bit on a CPU: whatever is random follows from ``seed`` and the epoch alone.

    Args:
        learner: gives ``loss``, ``backward`` and ``after_epoch``.
        batches: from an epoch's index to its batches, as ``learner.loss`` takes them.
        options: the recipe.
        seed: of random numbers that the learner may draw while training.
        folder: where to keep ``checkpoint.safetensors`` and ``train.jsonl``; None keeps nothing.
        resume: go on from the folder's checkpoint, if there is one.
        identity: names the run that a checkpoint belongs to, by its settings, or by ``settings``, ``backbone`` and
            ``data``; another run's checkpoint is refused.
        selection: chooses among the epochs' learnables; None keeps the last.
        on_epoch: called with each epoch's record, restored ones included.

    Returns:
        One record an epoch: ``epoch`` (0-based), ``lr``, ``seconds``, the mean of each part of the loss and, if it
        selects, ``selection``, the epoch's score.

    Raises:
        VlpromptError: a loss or parameter is not finite, or the checkpoint is damaged or another run's.
    """
    parameters = learner.trainable_parameters()
    if not parameters:
        learner.eval()
        return []
    optimizer = make_optimizer(parameters, options)
    load_aggregation_state(learner, {})
    checkpoint = Checkpoint.load(folder / CHECKPOINT, identity) if folder and resume else None
    history = checkpoint.restore(learner, optimizer) if checkpoint else []
    if selection and checkpoint:
        selection.restore(checkpoint.part("selection"), history)
    log = Log(folder / LOG if folder else None, history)
    for record in history:
        if on_epoch:
            on_epoch(record)
    unsaved, saved_at = None, time.monotonic()
    learner.train()
    try:
        for epoch in range(len(history), options.epochs):
            tested = selection is not None or epoch + 1 == options.epochs
            record = _train_epoch(learner, optimizer, batches(epoch), options, seed, epoch, tested)
            history.append(record | ({"selection": selection.update(learner)} if selection else {}))
            log.write(history[-1])
            if folder:
                unsaved = Checkpoint.of(learner, optimizer, history, identity, selection.state if selection else {})
                if epoch + 1 == options.epochs or time.monotonic() - saved_at >= options.checkpoint_seconds:
                    unsaved.save(folder / CHECKPOINT)
                    unsaved, saved_at = None, time.monotonic()
            if on_epoch:
                on_epoch(history[-1])
    except KeyboardInterrupt:
        if unsaved:
            unsaved.save(folder / CHECKPOINT)
        raise
    if selection:
        selection.choose(learner)
    learner.eval()
    return history


def _train_epoch(
    learner: PromptLearner,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Mapping[str, Tensor]],
    options: TrainOptions,
    seed: int,
    epoch: int,
    tested: bool,
) -> dict[str, Any]:
    """Run one epoch and return its record; ``tested`` says whether the weights that it leaves will be."""
    start = time.perf_counter()
    lr = learning_rate(epoch, options.lr, options.epochs, options.warmup_epochs, options.warmup_lr)
    for group in optimizer.param_groups:
        group["lr"] = lr
    device = learner.clip.device
    totals: dict[str, float] = {}
    steps = 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + epoch)
        for steps, batch in enumerate(batches, start=1):
            optimizer.zero_grad()
            losses = learner.loss(batch)
            values = {name: float(loss.detach()) for name, loss in losses.items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise VlpromptError(_not_finite(learner, f"the loss part '{name}' is {value}", epoch, steps))
                totals[name] = totals.get(name, 0.0) + value
            learner.backward(losses)
            optimizer.step()
        learner.after_epoch(epoch, options.epochs)
        aggregate(learner, epoch, options.epochs)
    if not steps:
        raise VlpromptError(f"epoch {epoch + 1} has no batches: there are no training images")
    if any(not p.isfinite().all() for p in learner.trainable_parameters()):
        raise VlpromptError(_not_finite(learner, "a learnable is not finite", epoch, steps))
    if tested:
        _check_last_step(learner, batch, epoch)
    seconds = round(time.perf_counter() - start, 4)
    return {"epoch": epoch, "lr": lr, "seconds": seconds, **{k: total / steps for k, total in totals.items()}}


def _check_last_step(learner: PromptLearner, batch: Mapping[str, Tensor], epoch: int) -> None:
    """Raise one sentence if the last step, which no loss of the epoch has seen, left weights that are of no use."""
    device = learner.clip.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        for name, loss in learner.loss(batch).items():
            if not loss.isfinite().all():
                what = f"after the last step the loss part '{name}' is {float(loss)}"
                raise VlpromptError(_not_finite(learner, what, epoch))


def _not_finite(learner: PromptLearner, what: str, epoch: int, step: int | None = None) -> str:
    bad = [name for name, p in learner.named_parameters() if not p.isfinite().all()]
    tensors = f" (tensor {', '.join(bad)})" if bad else ""
    place = f"epoch {epoch + 1}" + (f", step {step}" if step else "")
    return f"{what}{tensors} in {place}: try a smaller lr, or precision=fp32"


class Log:
    """JSON lines, one an epoch, in a file that always begins at the first epoch."""

    def __init__(self, path: Path | None, history: list[dict[str, Any]]):
        self.path = path
        if path:
            # a killed run may have logged epochs that its checkpoint does not hold
            with atomic_write(path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append a record."""
        if self.path:
            with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
