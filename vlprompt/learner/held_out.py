"""Choosing hyper-parameters on held-out images: what may be used, what was used, and every point that was tried.

``selection=fixed`` chooses nothing and needs no images; ``fewshot_val`` chooses on the few-shot validation draw;
``paper`` on what the method's authors chose on, be it the whole validation split or test images. A method can read
those images only through its feed, which provides what the setting allows and records what was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlprompt.errors import VlpromptError
from vlprompt.learner.facts import Facts

if TYPE_CHECKING:
    from vlprompt.learner.learning import Source

FIXED, FEWSHOT_VAL, PAPER = "last", "fewshot_val", "paper"
SELECTIONS = (FIXED, FEWSHOT_VAL, PAPER)
OTHER_NAMES = {"fixed": FIXED}  # a name that suits heads, which have no last epoch
# names of sources for readers; authors chose values on unnamed images, which a recipe repeats
SEEN = {
    "val": "few-shot val",
    "whole_val": "whole val",
    "test": "test",
    "unnamed": "images that its authors do not name",
}
TIES = "of points that are right equally often the first in the grid's order, its last setting varying fastest"
LATER_STEP = "of steps that are right equally often the last"

Point = dict[str, float]


@dataclass(frozen=True)
class Search:
    """A choice among the points of a grid.

    Attributes:
        on: the source of the images, ``val`` (the few-shot draw), ``whole_val`` or ``test``.
        n_images: number of its images.
        points: every point in the grid's order, with its ``accuracy`` in percent.
        chosen: the chosen settings.
        ties: the rule for ties.
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
    """What may be chosen on, and what was chosen.

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
        """The sources whose images are provided."""
        return tuple(dict.fromkeys(s for s in (self.settings, self.epoch) if s is not None))


def make_selection(rule: str, method: str, facts: Facts) -> Selection:
    """What a run with a selection rule provides to a method.

    Args:
        rule: one of ``SELECTIONS``.
        method: its name.
        facts: its facts, including what its authors chose on.

    Raises:
        VlpromptError: it is not known here what the authors chose on.
    """
    if rule == FEWSHOT_VAL:
        return Selection("val", "val" if facts.trains else None)
    if rule == FIXED:
        return Selection()
    if facts.paper_settings is None:
        raise VlpromptError(
            f"selection=paper is not available for {method}, whose authors' choice is not recorded here: use fixed or "
            "fewshot_val"
        )
    epoch = None if facts.paper_epoch == "last" else facts.paper_epoch
    if facts.paper_settings == "unnamed":
        return Selection(None, epoch, {"unnamed"})
    return Selection(None if facts.paper_settings == "none" else facts.paper_settings, epoch)


def check_choice(rule: str, selection: Selection, config: Any, facts: Facts, method: str) -> None:
    """Refuse a selection that has nothing to choose among, or that the method's settings rule out.

    Args:
        rule: the rule asked for.
        selection: what it provides.
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
    """Name the held-out images that were seen, for a row of a table; empty if none were.

    >>> say_seen(["test", "whole_val"])
    'saw whole val and test'
    """
    words = [word for source, word in SEEN.items() if source in saw]
    return f"saw {' and '.join(words)}" if words else ""


def say_selection(saw: Sequence[str], searches: Sequence[Search]) -> dict[str, str]:
    """What a saved learner records of how it was chosen; empty if nothing was chosen and nothing seen."""
    chosen = ", ".join(f"{key}={value:g}" for search in searches for key, value in search.chosen.items())
    entries = {"held-out images": say_seen(saw), "chosen on them": chosen}
    return {key: text for key, text in entries.items() if text}
