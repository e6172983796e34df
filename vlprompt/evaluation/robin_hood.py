"""The Robin Hood effect: whether classes with a low zero-shot accuracy gain, and those with a high one lose.

The name comes from training on pseudo-labels (Zhu et al., ICLR 2022; Menghini et al., NeurIPS 2023, arXiv:2306.01669,
section 4.3); it can be measured for every learner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlprompt.evaluation.statistics import ClassChange

FEWEST = 5  # classes; a slope over fewer means nothing


@dataclass(frozen=True)
class RobinHood:
    """The relation between the gains of classes and their zero-shot accuracies.

    Attributes:
        slope: the slope of the least-squares line, in points of gain per point of zero-shot accuracy. If it is
            negative, poor classes gain more; at -1, all classes end with the same accuracy.
        intercept: gain of the line at a zero-shot accuracy of 0, in percentage points.
        rho: Spearman's rank correlation of the two; None if all gains are equal.
        by_chance: the slope that the draw of test images alone would cause, if learner and zero-shot CLIP erred
            independently: a zero-shot accuracy that was measured too low by chance also gains by chance. Since both err
            on the same images, the actual effect is smaller; 0 is none. None if a class has a single image.
        poorer, richer: mean gain of the half of the classes with the lower zero-shot accuracies, and of the other half,
            in percentage points; with an odd number of classes, the middle one is in neither.
        n_classes: number of classes.
    """

    slope: float
    intercept: float
    rho: float | None
    by_chance: float | None
    poorer: float
    richer: float
    n_classes: int


def robin_hood(changes: Sequence[ClassChange]) -> RobinHood | None:
    """Relate the gains of classes to their zero-shot accuracies.

    Args:
        changes: from ``vlprompt.evaluation.statistics.class_changes``.

    Returns:
        None if there are fewer than five classes, or their zero-shot accuracies are equal.
    """
    ordered = sorted(changes, key=lambda change: (change.zero_shot, change.name))
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
    """Minus the share of the variance of zero-shot accuracies that is due to sampling, p(1-p)/(n-1) for a class."""
    images = np.array([each.n_images for each in changes])
    if images.min() < 2:
        return None
    p = np.array([each.zero_shot for each in changes]) / 100
    return -min(1.0, float((p * (1 - p) / (images - 1)).mean() / p.var(ddof=1)))
