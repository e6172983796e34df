"""What was tried and what was chosen: the rule, the table, and the record of both."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from vlprompt.base.files import atomic_write, read_text
from vlprompt.base.reporter import duration
from vlprompt.base.schema import read_as, strict
from vlprompt.base.settings import AUTO

Z = 1.959964  # of a normal distribution's middle 95%
ROUNDING = 1e-9  # one image of difference is one standard error to the last digit
RULE = (
    "Mean accuracy on held-out training images, with Wilson's 95% interval for their number. The highest mean is "
    "chosen, unless a candidate listed before it is within one standard error of the paired difference."
)


@strict()
@dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        candidate: as it was written.
        method, settings: what it means.
        accuracy, low, high: in percent, over the held-out images, and the ends of its interval; None if it has none.
        repeats: divisions of the images that it went through.
        seconds: that were spent on it.
        fit_seconds: of one fit, with the scoring of its fold, in the mean; None if none was finished.
        reason: why it has no accuracy, or fewer repeats than others; None if there is nothing to say.
    """

    candidate: str
    method: str
    settings: dict[str, Any]
    accuracy: float | None
    low: float | None
    high: float | None
    repeats: int
    seconds: float
    fit_seconds: float | None
    reason: str | None


@strict()
@dataclass(frozen=True)
class Choice:
    """A method that was chosen, and what from.

    Attributes:
        chosen: the candidate.
        method, settings: what it means.
        why: a sentence.
        outcomes: of all candidates, in their order.
        images: N, that were divided.
        folds, repeats, seed: of the divisions, by scikit-learn's ``RepeatedStratifiedKFold``.
        budget: seconds that there were, for this and for learning from all images afterwards.
        seconds: that were spent here.
        encode_seconds: of them, on features of all images.
        notes: what was not as it was asked for.
    """

    chosen: str
    method: str
    settings: dict[str, Any]
    why: str
    outcomes: list[Outcome]
    images: int
    folds: int
    repeats: int
    seed: int
    budget: float
    seconds: float
    encode_seconds: float
    notes: list[str]

    def write(self, path: str | Path) -> None:
        """Write the JSON file atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Choice:
        """Read what ``write`` wrote.

        Raises:
            VlpromptError: it is another file, or was changed.
        """
        return read_as(cls, json.loads(read_text(Path(path))), str(path))

    def table(self) -> Group:
        """The table that it was chosen from, with the rule and the reason."""
        table = Table()
        table.add_column("candidate", overflow="fold")  # two may differ in their last setting only
        for heading in ("accuracy", "95% interval", "repeats", "seconds"):
            table.add_column(heading, justify="right")
        table.add_column("")
        for each in self.outcomes:
            mean = "" if each.accuracy is None else f"{each.accuracy:.1f}"
            ends = "" if each.low is None else f"{each.low:.1f} to {each.high:.1f}"
            said = "chosen" if each.candidate == self.chosen else each.reason or ""
            table.add_row(each.candidate, mean, ends, str(each.repeats or ""), f"{each.seconds:.1f}", said)
        title = (
            f"method={AUTO}: {self.images:,} training images, {self.folds} folds, budget {duration(self.budget)}, of "
            f"which {self.seconds:.1f} s were spent"
        )
        return Group(title, table, *self.notes, RULE if self.folds else "", self.why)


def mean_of(scores: np.ndarray, counts: np.ndarray | None) -> tuple[float, float, float]:
    """Mean of images' scores in percent, and its interval by Wilson (JASA 1927), for as many images as they amount to.

    Args:
        scores: (N,) in [0, 1], nan for images that were not held out.
        counts: how often each counts (N,); unequal ones amount to fewer images.
    """
    kept = ~np.isnan(scores)
    w = np.ones(kept.sum()) if counts is None else counts[kept]
    p, n = float(np.average(scores[kept], weights=w)), _amount(w)
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return 100 * p, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def difference(one: np.ndarray, other: np.ndarray, counts: np.ndarray | None) -> tuple[float, float]:
    """Mean difference of two candidates' scores (N,) on the same images, and its standard error, in points."""
    kept = ~np.isnan(one)
    d = (one - other)[kept]
    w = np.ones(len(d)) if counts is None else counts[kept]
    mean, n = float(np.average(d, weights=w)), _amount(w)
    variance = float(np.average((d - mean) ** 2, weights=w)) * n / max(1.0, n - 1)
    return 100 * mean, 100 * math.sqrt(variance / n)


def _amount(w: np.ndarray) -> float:
    """How many images those with these weights amount to: (Σw)² / Σw² (Kish, 1965)."""
    return float(w.sum() ** 2 / (w**2).sum())


def decide(names: Sequence[str], scores: Sequence[list[np.ndarray]], counts: np.ndarray | None) -> tuple[int, str]:
    """Which candidate is chosen, and why, in a sentence.

    Args:
        names: of the candidates, the simplest first.
        scores: of each, by repeat, (N,) in [0, 1]; none for candidates that have none.
        counts: how often each image counts (N,).
    """
    means = [mean_of(np.mean(own, axis=0), counts)[0] if own else -math.inf for own in scores]
    best = int(np.argmax(means))
    for place, own in enumerate(scores[:best]):
        if not own:
            continue
        both = min(len(own), len(scores[best]))
        mean, error = difference(np.mean(scores[best][:both], axis=0), np.mean(own[:both], axis=0), counts)
        if mean <= error * (1 + ROUNDING):
            return place, (
                f"{names[place]} is chosen: {names[best]} is {mean:.1f} points above it, which is within one standard "
                f"error ({error:.1f}), and it is the simpler one."
            )
    return (
        best,
        f"{names[best]} is chosen: its mean is the highest, and nothing simpler is within one standard error of it.",
    )
