"""Choosing hyper-parameters on held-out images: what may be looked at, what was, and every point that was tried.

``selection=fixed`` chooses nothing and needs no images; ``fewshot_val`` chooses on the few-shot validation draw;
``paper`` on what the method's authors chose on, be it the whole validation split or test images. A method reads those
images through its feed alone, which hands out what the setting allows and notes what was read.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.base.parts import Part, parse_part
from vlprompt.base.registry import Registry
from vlprompt.errors import VlpromptError, nearest
from vlprompt.learner.facts import Facts

if TYPE_CHECKING:
    from vlprompt.learner.contract import PromptLearner
    from vlprompt.learner.learning import Feed, Source

FIXED, FEWSHOT_VAL, PAPER = "last", "fewshot_val", "paper"
SELECTIONS = (FIXED, FEWSHOT_VAL, PAPER)
OTHER_NAMES = {"fixed": FIXED}  # what a head calls it, which has no epochs of which one is the last
SEEN = {"val": "few-shot val", "whole_val": "whole val", "test": "test"}  # how a source is named for readers
TIES = "of points that are right equally often the first in the grid's order, its last setting varying fastest"
LATER_STEP = "of steps that are right equally often the last"
TRAINED = ("lr", "weight_decay")  # settings of the training loop that a grid may hold
BUDGET = 2**24  # logits that are held at once, 64 MB

State = TypeVar("State")
Point = dict[str, float]
Values = Mapping[str, Tensor]  # a column (P, 1, 1) for each setting of P points
Scorer = Callable[[Sequence[Point], Tensor, Tensor], Sequence[int]]  # points, v (N, D), y (N,) -> images right of each


@dataclass(frozen=True)
class Search:
    """A choice among the points of a grid.

    Attributes:
        on: the source of the images, ``val`` (the few-shot draw), ``whole_val`` or ``test``.
        n_images: of it.
        points: every point in the grid's order, with its ``accuracy`` in percent.
        chosen: the settings that were taken.
        ties: the rule among equals.
    """

    on: str
    n_images: int
    points: list[dict[str, float]]
    chosen: Point
    ties: str = TIES

    def summary(self) -> dict[str, Any]:
        """The choice in a few fields, for a result."""
        found = {"points": len(self.points), "chosen": self.chosen, "accuracy": max(p["accuracy"] for p in self.points)}
        return {"on": self.on, "images": self.n_images, **found, "ties": self.ties}


@dataclass(frozen=True)
class Selection:
    """What may be chosen on, and what came of it.

    Attributes:
        settings: the source of images that settings are chosen on; None chooses none.
        epoch: the source that the epoch is chosen on; None takes the last.
        saw: sources other than the training images that were read.
        searches: what was chosen, in order.
    """

    settings: Source | None = None
    epoch: Source | None = None
    saw: set[str] = field(default_factory=set)
    searches: list[Search] = field(default_factory=list)

    @property
    def sources(self) -> tuple[Source, ...]:
        """What is handed out."""
        return tuple(dict.fromkeys(s for s in (self.settings, self.epoch) if s is not None))


def make_selection(rule: str, method: str, facts: Facts) -> Selection:
    """What a run with a rule hands out to a method.

    Args:
        rule: of ``SELECTIONS``.
        method: its name.
        facts: what it is, and what its authors chose on.

    Raises:
        VlpromptError: it is not known here what the authors chose on.
    """
    if rule == FEWSHOT_VAL:
        return Selection("val", "val" if facts.trains else None)
    if rule == FIXED:
        return Selection()
    if facts.paper_settings is None:
        raise VlpromptError(
            f"selection=paper is not told for {method}, whose authors' choice is not recorded here: use fixed or "
            "fewshot_val"
        )
    settings = None if facts.paper_settings == "none" else facts.paper_settings
    return Selection(settings, None if facts.paper_epoch == "last" else facts.paper_epoch)


def check_choice(rule: str, selection: Selection, config: Any, facts: Facts, method: str) -> None:
    """Refuse a selection that has nothing to choose among, or that the method's settings leave no room for.

    Args:
        rule: what was asked for.
        selection: what it hands out.
        config: the method's settings, alone or among others.
        facts: what the learner will be.
        method: its name.
    """
    grid, aggregator = getattr(config, "grid", None), getattr(config, "aggregator", None)
    if grid is not None and not grid and selection.settings and not facts.trains:
        raise VlpromptError(
            f"selection={rule} chooses among the points of a grid, and {method} has none here: "
            "give it one, as in 'grid={alpha: [0.1, 1, 10]}', or use fixed"
        )
    if selection.epoch and aggregator:
        raise VlpromptError(
            f"selection={rule} chooses the weights of one epoch, and aggregator={aggregator} makes one set "
            "of all epochs': set aggregator=null, or selection=last"
        )


def say_seen(saw: Sequence[str]) -> str:
    """Name what was looked at, for a table's row; empty if nothing was.

    >>> say_seen(["test", "whole_val"])
    'saw whole val and test'
    """
    words = [word for source, word in SEEN.items() if source in saw]
    return f"saw {' and '.join(words)}" if words else ""


def say_selection(saw: Sequence[str], searches: Sequence[Search]) -> dict[str, str]:
    """What a saved learner says of how it was chosen; empty if nothing was chosen and nothing seen."""
    chosen = ", ".join(f"{key}={value:g}" for search in searches for key, value in search.chosen.items())
    told = {"held-out images": say_seen(saw), "chosen on them": chosen}
    return {key: text for key, text in told.items() if text}


# Grids


SPANS: Registry[type[Even]] = Registry("span of values")


@SPANS.register("even")
class Even(Part):
    """n values from ``start``, evenly spaced, up to ``stop``, which is left out."""

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
    """The points at which a method is trained anew, each in full: of its grid, the training loop's own settings.

    Args:
        config: the method's settings.
        selection: what may be chosen on; where that is nothing there are no points.
    """
    grid = getattr(config, "grid", {})
    return grid_points(grid) if grid and selection.settings and all(key in TRAINED for key in grid) else []


def check_training_grid(method: str, grid: Mapping[str, Any]) -> None:
    """Refuse a grid that holds other settings than the training loop's, or no lists of numbers."""
    for name in grid:
        if name not in TRAINED:
            raise VlpromptError(f"{method} chooses no '{name}' from a grid: {nearest(name, TRAINED)}")
    grid_points(grid)


def keep_settings(learner: PromptLearner, *names: str) -> None:
    """Make buffers of settings, so that chosen values are saved with a learner; call it in ``setup``.

    ``learner.NAME`` is then a tensor (), the configured value until ``choose`` finds another.

    Raises:
        VlpromptError: the learner's grid is none, or has other settings than these.
    """
    for name in names:
        learner.register_buffer(name, torch.tensor(float(getattr(learner.config, name))))
    grid = getattr(learner.config, "grid", {})
    for name in grid:
        if name not in names:
            raise VlpromptError(f"{learner.method} chooses no '{name}' from a grid: {nearest(name, names)}")
    grid_points(grid)


def choose(learner: PromptLearner, feed: Feed, score: Scorer) -> Point:
    """Take the point of a learner's grid that is right most often on the feed's held-out images.

    The learner's buffers of the point's names take its values. With ``selection=fixed``, or without a grid, nothing is
    chosen and no image looked at.

    Args:
        learner: its ``config.grid`` is searched.
        feed: says what is chosen on, and keeps the record of all points.
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
    """A scorer for settings that bear on the logits alone, many points at a time.

    Args:
        logits: (P, N, C) of normalised image features v (N, D) and a column (P, 1, 1) for each setting of P points;
            no more than ``BUDGET`` of them are asked for at once.
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
        fit: from a point to the fitted head's logits (N, C) of normalised image features v (N, D).
    """

    def score(points: Sequence[Point], v: Tensor, y: Tensor) -> list[int]:
        return [int((fit(point)(v).argmax(dim=-1) == y).sum()) for point in points]

    return score


def best_step(feed: Feed, states: Iterable[State], logits: Callable[[Tensor, State], Tensor]) -> State:
    """The last of a head's states while it is fitted, or the one that is right most often where epochs are chosen.

    The later of equals is taken, as among the epochs of a training loop.

    Args:
        feed: says what is chosen on, and keeps the record of all steps.
        states: one a step, one at least.
        logits: (N, C) of normalised image features v (N, D) with a state.
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
