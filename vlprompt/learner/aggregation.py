"""Aggregation of a learner's weights over the epochs of its training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from vlprompt.base.parts import Part
from vlprompt.base.registry import Registry
from vlprompt.errors import VlpromptError

State = dict[str, Tensor]


class Aggregator(Part):
    """A weighted sum of the learnables, in fp32, with one term per epoch.

    Attributes:
        total: the sum so far; part of a checkpoint, so that a resumed run aggregates the same.
    """

    def __init__(self) -> None:
        self.total: State = {}

    def weights(self, epoch: int, epochs: int) -> tuple[float, float]:
        """Factors of the sum so far and of this epoch's (0-based) weights."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor], epoch: int, epochs: int) -> None:
        """Add the weights after an epoch."""
        keep, add = self.weights(epoch, epochs)
        for key, tensor in state.items():
            before = self.total[key] * keep if key in self.total else 0
            self.total[key] = before + tensor.detach().float() * add


class _Keeps(Protocol):
    """What is set on a learner, of which torch's types of a module know nothing."""

    last_state: State | None


def _aggregator(learner: nn.Module) -> Aggregator | None:
    return getattr(learner, "aggregator", None)


def aggregate(learner: nn.Module, epoch: int, epochs: int) -> None:
    """Add the weights after an epoch (0-based) to the learner's aggregator; after the last, its sum replaces them.

    The last epoch's own weights are kept as ``learner.last_state``.
    """
    aggregator = _aggregator(learner)
    if aggregator is None:
        return
    learnt = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    aggregator.update(learnt, epoch, epochs)
    if epoch == epochs - 1:
        cast(_Keeps, learner).last_state = {key: value.clone() for key, value in learner.state_dict().items()}
        learner.load_state_dict(learner.state_dict() | aggregator.total)


def aggregation_state(learner: nn.Module) -> State:
    """What a checkpoint must contain besides the learnables, so that a resumed run equals an uninterrupted one."""
    aggregator = _aggregator(learner)
    total, last = aggregator.total if aggregator else {}, getattr(learner, "last_state", None)
    parts = {"total": total, "last": last or {}}
    return {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


def load_aggregation_state(learner: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore what ``aggregation_state`` returned; an empty state starts a new aggregation."""
    parts: dict[str, State] = {"total": {}, "last": {}}
    for key, value in state.items():
        part, name = key.split(".", 1)
        parts[part][name] = value.to(next(learner.parameters()).device)
    aggregator = _aggregator(learner)
    if aggregator:
        aggregator.total = parts["total"]
    cast(_Keeps, learner).last_state = parts["last"] or None


AGGREGATORS: Registry[type[Aggregator]] = Registry("aggregator", shipped="methods")


@AGGREGATORS.register("gpa")
class GaussianPromptAggregation(Aggregator):
    """Gaussian-weighted prompt aggregation (PromptSRC): w_t ∝ exp(-½((t-μ)/σ)²), t = 1…N, Σ w = 1.

    Args:
        mean: μ, in epochs.
        std: σ, in epochs.
    """

    def __init__(self, mean: float, std: float):
        super().__init__()
        if std <= 0:
            raise VlpromptError(f"gpa(std={std}) must be positive")
        self.mean, self.std = mean, std

    def weights(self, epoch: int, epochs: int) -> tuple[float, float]:
        """Factors of the sum so far and of this epoch's weights."""
        return 1.0, self.schedule(epochs)[epoch]

    def schedule(self, epochs: int) -> list[float]:
        """The weight of each of N epochs."""
        exponents = [-0.5 * ((t - self.mean) / self.std) ** 2 for t in range(1, epochs + 1)]
        top = max(exponents)  # so that a mean far outside the run does not underflow to 0/0
        raw = [math.exp(e - top) for e in exponents]
        return [w / sum(raw) for w in raw]


@AGGREGATORS.register("ema")
class ExponentialMovingAverage(Aggregator):
    """Exponential moving average over epochs, starting with the first.

    Args:
        decay: weight of the previous average in each epoch.
    """

    def __init__(self, decay: float = 0.9):
        super().__init__()
        if not 0 <= decay < 1:
            raise VlpromptError(f"ema(decay={decay}) must lie in [0, 1)")
        self.decay = decay

    def weights(self, epoch: int, epochs: int) -> tuple[float, float]:
        """Factors of the average so far and of this epoch's weights."""
        return (self.decay, 1 - self.decay) if self.total else (0.0, 1.0)


@AGGREGATORS.register("mean_of_epochs")
class MeanOfEpochs(Aggregator):
    """Mean over the last epochs.

    Args:
        last: how many of them; None uses all.
    """

    def __init__(self, last: int | None = None):
        super().__init__()
        if last is not None and last < 1:
            raise VlpromptError(f"mean_of_epochs(last={last}) must be 1 or more")
        self.last = last

    def weights(self, epoch: int, epochs: int) -> tuple[float, float]:
        """Factors of the sum so far and of this epoch's weights."""
        count = min(self.last or epochs, epochs)
        return 1.0, 1 / count if epoch >= epochs - count else 0.0
