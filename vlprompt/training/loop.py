"""The epochs of one training and their steps: forward, backward, optimizer step, and checks."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from vlprompt.base.devices import EXACT
from vlprompt.base.settings import TrainOptions
from vlprompt.errors import VlpromptError
from vlprompt.learner.aggregation import aggregate
from vlprompt.learner.learning import Batches, History
from vlprompt.learner.objectives import Batch
from vlprompt.training.options import make_schedule
from vlprompt.training.schedules import Moment

TELL = 1.0  # seconds between two reports of progress
LOOK = 20  # steps between two checks of the losses on a device that must be synchronized for them


OnSteps = Callable[[float, Mapping[str, float]], None]


class _Trained(Protocol):
    """What a module needs, besides being a module, to be trained."""

    def loss(self, batch: Batch) -> Mapping[str, Tensor]: ...


class Loop:
    """The epochs of one training, and their steps.

    Args:
        learner: the module to train.
        optimizer: over its parameter groups.
        batches: maps an epoch to its batches.
        options: the recipe.
        seed: of random numbers in training.
        on_steps: called now and then within an epoch, with the number of epochs done (a float) and the mean losses so
            far.
    """

    def __init__(
        self,
        learner: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        options: TrainOptions,
        seed: int | str,
        on_steps: OnSteps | None = None,
    ):
        self.on_steps, self.told = on_steps, time.monotonic()
        self.learner, self.optimizer, self.batches, self.options, self.seed = learner, optimizer, batches, options, seed
        self.schedule = make_schedule(options)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.per_epoch = getattr(batches, "steps", None)  # steps per epoch, if known
        if self.per_epoch is None and (self.schedule.per == "step" or options.steps):
            raise VlpromptError(
                f"schedule={options.schedule} and steps={options.steps} need to know how many batches an epoch has"
            )
        per_epoch = self.per_epoch or 0
        self.epochs = -(-options.steps // per_epoch) if options.steps else options.epochs
        self.steps = options.steps or self.epochs * per_epoch

    def epochs_after(self, history: History) -> range:
        """Indices of the epochs that remain to be done."""
        return range(len(history), self.epochs)

    def is_last(self, epoch: int) -> bool:
        """Whether an epoch is the last."""
        return epoch + 1 == self.epochs

    def run(self, epoch: int, tested: bool = True) -> dict[str, Any]:
        """Run one epoch and return its record; ``tested`` says whether the resulting weights will be tested."""
        start, step, lr = time.perf_counter(), 0, 0.0
        means = Means(self.learner, epoch, every=1 if self.device.type == "cpu" else LOOK)
        before, after_step = epoch * (self.per_epoch or 0), getattr(self.learner, "after_step", None)
        batches = self.batches(epoch)
        if self.options.steps:
            batches = islice(batches, self.options.steps - before)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            _draw_from(_mixed(self.seed, epoch), self.device)
            for step, batch in enumerate(batches, start=1):
                if step == 1 or self.schedule.per == "step":
                    lr = self._set_rate(Moment(epoch, self.epochs, before + step - 1, self.steps))
                self.optimizer.zero_grad()
                losses = _losses(self.learner, batch)
                means.add(losses, getattr(self.learner, "batch_accuracy", None))
                _backward(self.learner, losses)
                if self.options.clip_grad is not None:
                    nn.utils.clip_grad_norm_(self.parameters, self.options.clip_grad)
                self.optimizer.step()
                if after_step is not None:
                    after_step()
                self._tell(before + step, means)
            if not step:
                raise VlpromptError(f"epoch {epoch + 1} has no batches: there are no training images")
            after_epoch = getattr(self.learner, "after_epoch", None)
            if after_epoch is not None:
                after_epoch(epoch, self.epochs)
            aggregate(self.learner, epoch, self.epochs)
        found = means.found()
        if any(not p.isfinite().all() for p in self.parameters):
            raise VlpromptError(_not_finite(self.learner, "a learnable is not finite", epoch, step))
        if tested:
            self._check_last_step(batch, epoch)
        return {"epoch": epoch, "lr": lr, "seconds": round(time.perf_counter() - start, 4), **found}

    def _tell(self, step: int, means: Means) -> None:
        """Report progress, at most once a second: an epoch may take hours, or a millisecond."""
        now = time.monotonic()
        if self.on_steps and self.steps and now - self.told >= TELL:
            self.told = now
            self.on_steps(step * self.epochs / self.steps, means.found())

    def _check_last_step(self, batch: Batch, epoch: int) -> None:
        """Raise ``VlpromptError`` if the last step, which no loss of the epoch has seen, left unusable weights."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            for name, loss in _losses(self.learner, batch).items():
                if not loss.isfinite().all():
                    what = f"after the last step the loss part '{name}' is {float(loss)}"
                    raise VlpromptError(_not_finite(self.learner, what, epoch))

    def _set_rate(self, moment: Moment) -> float:
        for group in self.optimizer.param_groups:  # per group: a constant warm-up is one rate for all groups
            group["lr"] = self.schedule(self.options.lr * group["lr_scale"], moment)
        return self.schedule(self.options.lr, moment)


class Means:
    """Mean losses over the steps that have them, and the training accuracy; checked now and then.

    Args:
        learner: whose losses they are.
        epoch: for the error message about losses that are not finite.
        every: number of steps between two checks; a check synchronizes with the device.
    """

    def __init__(self, learner: nn.Module, epoch: int, every: int):
        self.learner, self.epoch, self.every = learner, epoch, every
        self.totals: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()
        self.right: Tensor | None = None
        self.steps = 0

    def add(self, losses: Mapping[str, Tensor], right: Tensor | None = None) -> None:
        """Add the losses of a step; raises ``VlpromptError`` if a check finds one that is not finite.

        Args:
            losses: by name.
            right: accuracy () on the step's images, if known.
        """
        if right is not None:
            self.right = right if self.right is None else self.right + right
        for name, loss in losses.items():
            value = loss.detach().to(torch.float64 if loss.device.type in EXACT else torch.float32)
            self.totals[name] = self.totals[name] + value if name in self.totals else value
        self.counts.update(losses.keys())
        self.steps += 1
        if self.steps % self.every == 0:
            self.found()

    def found(self) -> dict[str, float]:
        """The means so far, with the training ``accuracy`` in percent if known."""
        means = {name: float(total) / self.counts[name] for name, total in self.totals.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise VlpromptError(
                    _not_finite(self.learner, f"the loss part '{name}' is {value}", self.epoch, self.steps)
                )
        return means if self.right is None else means | {"accuracy": round(100 * float(self.right) / self.steps, 4)}


def _losses(learner: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    return cast(_Trained, learner).loss(batch)  # torch declares a module's attributes to be tensors or modules


def _backward(learner: nn.Module, losses: Mapping[str, Tensor]) -> None:
    backward = getattr(learner, "backward", None)
    if backward is not None:
        backward(losses)
    else:
        losses["loss"].backward()


def _draw_from(seed: int, device: torch.device) -> None:
    """``torch.manual_seed``, without looking for devices of every kind if training is on the CPU."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # saves a millisecond, and a head's epoch takes one or two
    else:
        torch.manual_seed(seed)


def _mixed(seed: int | str, epoch: int) -> int:
    """The seed of an epoch; a stage's is hashed, so that stages do not share seeds."""
    if isinstance(seed, int):
        return seed * 1_000_003 + epoch
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:7], "big")


def _not_finite(learner: nn.Module, what: str, epoch: int, step: int | None = None) -> str:
    bad = [name for name, p in learner.named_parameters() if not p.isfinite().all()]
    tensors = f" (tensor {', '.join(bad)})" if bad else ""
    place = f"epoch {epoch + 1}" + (f", step {step}" if step else "")
    return f"{what}{tensors} in {place}: try a smaller lr, or precision=fp32"
