"""Choosing among the points of a method's grid, or the steps of a head, on held-out images.

Which images may be used is decided in ``vlprompt.learner.held_out``.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.base.parts import Part, parse_part
from vlprompt.base.registry import Registry
from vlprompt.errors import VlpromptError, nearest
from vlprompt.learner.held_out import LATER_STEP, Point, Search, Selection

if TYPE_CHECKING:
    from vlprompt.learner.contract import PromptLearner
    from vlprompt.learner.learning import Feed, Source

TRAINED = ("lr", "weight_decay")  # settings of the training loop that a grid may hold
BUDGET = 2**24  # logits that are held at once, 64 MB

State = TypeVar("State")
Values = Mapping[str, Tensor]  # a column (P, 1, 1) for each setting of P points
Scorer = Callable[[Sequence[Point], Tensor, Tensor], Sequence[int]]  # points, v (N, D), y (N,) -> images right of each


# Grids


SPANS: Registry[type[Even]] = Registry("span of values")


@SPANS.register("even")
class Even(Part):
    """n evenly spaced values from ``start`` up to ``stop``, which is excluded."""

    def __init__(self, start: float, stop: float, n: int):
        if n < 1 or n > 100_000:
            raise VlpromptError(f"even(n={n}) must have 1 to 100,000 values")
        self.values = [start + i * (stop - start) / n for i in range(n)]


def grid_points(grid: Mapping[str, Any]) -> list[Point]:
    """All points of a grid, its last setting varying fastest.

    Args:
        grid: a list of numbers for each setting, or ``even(start=0.1, stop=12, n=200)``.

    Raises:
        VlpromptError: a setting has no list of numbers.

    >>> grid_points({"alpha": [1, 2], "beta": [3]})
    [{'alpha': 1.0, 'beta': 3.0}, {'alpha': 2.0, 'beta': 3.0}]
    """
    axes = {key: _axis(key, values) for key, values in grid.items()}
    if math.prod(map(len, axes.values())) > 10**6:
        raise VlpromptError("the grid has more than a million points: leave some out")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _axis(key: str, values: Any) -> list[float]:
    given = parse_part(values, SPANS).values if isinstance(values, str) else values
    if not isinstance(given, (list, tuple)) or not given or not all(map(_is_number, given)):
        raise VlpromptError(f"the grid's {key} must be a list of numbers or even(start=…, stop=…, n=…), not {values!r}")
    return [float(value) for value in given]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# Choosing


def training_points(config: Any, selection: Selection) -> list[Point]:
    """The points at which a method is trained anew, each in full: those of its grid over the training loop's settings.

    Args:
        config: the method's settings.
        selection: what may be chosen on; if that is nothing, there are no points.
    """
    grid = getattr(config, "grid", {})
    return grid_points(grid) if grid and selection.settings and all(key in TRAINED for key in grid) else []


def check_training_grid(method: str, grid: Mapping[str, Any]) -> None:
    """Refuse a grid with settings other than the training loop's, or without lists of numbers."""
    for name in grid:
        if name not in TRAINED:
            raise VlpromptError(f"{method} chooses no '{name}' from a grid: {nearest(name, TRAINED)}")
    grid_points(grid)


def keep_settings(learner: PromptLearner, *names: str) -> None:
    """Turn settings into buffers, so that chosen values are saved with a learner; to be called in ``setup``.

    ``learner.NAME`` is then a tensor (): the configured value until ``choose`` finds another.

    Raises:
        VlpromptError: the learner's grid is invalid, or has other settings than these.
    """
    for name in names:
        learner.register_buffer(name, torch.tensor(float(getattr(learner.config, name))))
    grid = getattr(learner.config, "grid", {})
    for name in grid:
        if name not in names:
            raise VlpromptError(f"{learner.method} chooses no '{name}' from a grid: {nearest(name, names)}")
    grid_points(grid)


def choose(learner: PromptLearner, feed: Feed, score: Scorer) -> Point:
    """Take the point of a learner's grid with the highest accuracy on the feed's held-out images.

    Its values are stored in the learner's buffers of the same names. With ``selection=fixed``, or without a grid,
    nothing is chosen and no image is read.

    Args:
        learner: its ``config.grid`` is searched.
        feed: determines what is chosen on, and records all points.
        score: ``at_points`` or ``refitted``.

    Returns:
        The chosen settings; empty if nothing was chosen.
    """
    grid = getattr(learner.config, "grid", {})
    source = feed.selection.settings if grid else None
    if source is None:
        return {}
    points, (v, y) = grid_points(grid), _held_out(feed, source)
    with torch.no_grad():
        right = list(score(points, v, y))
    chosen = points[right.index(max(right))]  # the first of equals, see TIES
    tried = [{**point, "accuracy": 100 * n / len(y)} for point, n in zip(points, right, strict=True)]
    feed.selection.searches.append(Search(source, len(y), tried, chosen))
    for name, value in chosen.items():
        learner.get_buffer(name).fill_(value)
    return chosen


def at_points(logits: Callable[[Tensor, Values], Tensor]) -> Scorer:
    """A scorer for settings that affect only the logits, many points at a time.

    Args:
        logits: maps normalised image features v (N, D) and a column (P, 1, 1) of values per setting to logits (P, N, C)
            of P points; at most ``BUDGET`` of them at once.
    """

    def score(points: Sequence[Point], v: Tensor, y: Tensor) -> list[int]:
        right = torch.zeros(len(points), dtype=torch.long)
        columns = {key: v.new_tensor([point[key] for point in points]).view(-1, 1, 1) for key in points[0]}
        one = logits(v[:1], {key: column[:1] for key, column in columns.items()})  # C, and whether it is finite
        rows = max(1, min(len(v), BUDGET // 32 // one.shape[-1]))
        at_once = max(1, BUDGET // (rows * one.shape[-1]))
        for some, labels in zip(v.split(rows), y.split(rows), strict=True):
            for part in torch.arange(len(points)).split(at_once):
                found = logits(some, {key: column[part] for key, column in columns.items()})
                right[part] += (found.argmax(dim=-1) == labels).sum(dim=1).cpu()
        return right.tolist()

    return score


def refitted(fit: Callable[[Point], Callable[[Tensor], Tensor]]) -> Scorer:
    """A scorer for settings that a head must be fitted with anew.

    Args:
        fit: maps a point to a function from normalised image features v (N, D) to logits (N, C) of the fitted head.
    """

    def score(points: Sequence[Point], v: Tensor, y: Tensor) -> list[int]:
        return [int((fit(point)(v).argmax(dim=-1) == y).sum()) for point in points]

    return score


def best_step(feed: Feed, states: Iterable[State], logits: Callable[[Tensor, State], Tensor]) -> State:
    """The last state of a head while it is fitted or, if epochs are chosen, the one with the highest accuracy.

    In a tie the later one is taken, as among the epochs of the training loop.

    Args:
        feed: determines what is chosen on, and records all steps.
        states: one per step, at least one.
        logits: maps normalised image features v (N, D) and a state to logits (N, C).
    """
    source = feed.selection.epoch
    if source is None:
        return deque(states, maxlen=1)[0]
    v, y = _held_out(feed, source)
    right, best = [], None
    for state in states:
        right.append(int((logits(v, state).argmax(dim=-1) == y).sum()))
        best = state if best is None or right[-1] >= max(right) else best
    tried = [{"step": step, "accuracy": 100 * n / len(y)} for step, n in enumerate(right, start=1)]
    chosen = len(right) - right[::-1].index(max(right))
    feed.selection.searches.append(Search(source, len(y), tried, {"step": chosen}, LATER_STEP))
    return cast(State, best)


def _held_out(feed: Feed, source: Source) -> tuple[Tensor, Tensor]:
    """Normalised features (N, D) and labels (N,) of what is chosen on."""
    bank = feed.bank(source)
    if bank.labels is None:
        raise VlpromptError("settings are chosen on labelled images, and these have no labels")
    return F.normalize(bank.features[0], dim=-1), bank.labels
