"""The Robin Hood effect: whether a learner gives to the classes that zero-shot is poor at and takes from the rich.

So it is called of training on pseudo-labels (Zhu et al., ICLR 2022; Menghini et al., NeurIPS 2023, arXiv:2306.01669,
section 4.3); the question can be put to every learner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlprompt.evaluation.statistics import ClassChange

FEWEST = 5  # classes, below which a slope over them says nothing


@dataclass(frozen=True)
class RobinHood:
    """How classes' gains go with their zero-shot accuracies.

    Attributes:
        slope: of the least-squares line, percentage points of gain a point of zero-shot accuracy. Below zero the poor
            gain more; -1 is where all classes end alike.
        intercept: gain at a zero-shot accuracy of 0, by the line.
        rho: Spearman's rank correlation of the two; None where all gains are alike.
        by_chance: the slope that the draw of test images alone would make, were learner and zero-shot wrong about
            images independently of each other: zero-shot accuracies are measured too, and what is measured too low by
            chance gains by chance. They err on the same images, so it is less; 0 is none. None where a class has one
            image, of which that cannot be told.
        poorer, richer: mean gain of the half of the classes that zero-shot is worse at, and of the others; a class in
            the middle is in neither.
        n_classes: that it is over.
    """

    slope: float
    intercept: float
    rho: float | None
    by_chance: float | None
    poorer: float
    richer: float
    n_classes: int


def robin_hood(changes: Sequence[ClassChange]) -> RobinHood | None:
    """Relate classes' gains to their zero-shot accuracies; None for fewer than five classes, or where these are alike.

    Args:
        changes: as ``vlprompt.evaluation.statistics.class_changes`` gives them.
    """
    ordered = sorted(changes, key=lambda change: (change.zero_shot, change.name))  # equal ones not by their gains
    before, gains = (np.array([getattr(each, name) for each in ordered]) for name in ("zero_shot", "gain"))
    if len(changes) < FEWEST or np.ptp(before) == 0:
        return None
    from scipy.stats import spearmanr  # takes half a second to load

    slope, intercept = np.polyfit(before, gains, 1)
    half = len(ordered) // 2
    return RobinHood(
        slope=float(slope),
        intercept=float(intercept),
        rho=float(spearmanr(before, gains).statistic) if np.ptp(gains) else None,
        by_chance=_by_chance(changes),
        poorer=float(gains[:half].mean()),
        richer=float(gains[-half:].mean()),
        n_classes=len(changes),
    )


def _by_chance(changes: Sequence[ClassChange]) -> float | None:
    """Minus the share that the draw of images has in the variance of zero-shot accuracies: p(1-p)/(n-1) for a class."""
    images = np.array([each.n_images for each in changes])
    if images.min() < 2:
        return None
    p = np.array([each.zero_shot for each in changes]) / 100
    return -min(1.0, float((p * (1 - p) / (images - 1)).mean() / p.var(ddof=1)))
