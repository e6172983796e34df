"""Significance tests of differences between methods: bootstrap, Holm, Friedman and Nemenyi."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vlprompt.errors import VlpromptError

RESAMPLES = 2000
LEVEL = 0.05


def paired_draws(
    ours: np.ndarray, theirs: np.ndarray, n_resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the accuracies of two methods, in percent, in bootstrap draws of seeds and images, the same for both.

    Args:
        ours, theirs: whether each image was classified correctly (S seeds, N images).
        n_resamples: R, the number of draws.
        seed: the seed of the draws.

    Returns:
        Accuracies (R,) each.
    """
    seeds, images = ours.shape
    generator = np.random.default_rng(seed)
    # images with the same answers of both methods in all seeds are drawn together; few combinations occur
    answers, counts = np.unique(np.concatenate([ours, theirs]).T, axis=0, return_counts=True)  # (K, 2S)
    times = generator.multinomial(images, counts / images, size=n_resamples)  # (R, K)
    by_seed = 100 * (times @ answers / images).reshape(n_resamples, 2, seeds)
    chosen = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=n_resamples)[:, None] / seeds
    both = (by_seed * chosen).sum(2)
    return both[:, 0], both[:, 1]


def p_value(draws: np.ndarray) -> float:
    """Return the two-sided p-value of the hypothesis that a difference is zero, from its bootstrap draws (R,).

    It is twice the share of draws on the rarer side of zero, with one draw added so that it is never zero (Davison &
    Hinkley 1997, §4.2).
    """
    n = len(draws)
    low, high = (int((side * draws <= 0).sum()) for side in (1, -1))
    return min(1.0, 2 * (min(low, high) + 1) / (n + 1))


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Return which hypotheses of a family are rejected at a level, by Holm's step-down procedure (1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(order) - rank):
            break
        rejected[i] = True
    return rejected


@dataclass(frozen=True)
class Ranks:
    """Methods ranked over datasets (Demšar, JMLR 2006).

    Attributes:
        mean: mean rank by method; 1 is the best, and equal scores share the mean of their ranks.
        critical: difference of mean ranks above which two methods differ at 5% (Nemenyi).
        p: p-value of Friedman's test that all methods are equal; 1 for two methods, where it does not apply.
        n_datasets: number of datasets.
    """

    mean: dict[str, float]
    critical: float
    p: float
    n_datasets: int


def rank_methods(scores: dict[str, Sequence[float]]) -> Ranks:
    """Rank methods over datasets.

    Args:
        scores: by method, one score per dataset; higher is better.

    Raises:
        VlpromptError: fewer than two methods or two datasets.
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    table = np.array([*scores.values()], dtype=float)  # (methods, datasets)
    if table.ndim != 2 or min(table.shape) < 2:
        raise VlpromptError("ranks over datasets need two methods and two datasets at least")
    k, n = table.shape
    ranks = rankdata(-table, axis=0).mean(1)
    critical = studentized_range.ppf(1 - LEVEL, k, np.inf) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
    p = float(friedmanchisquare(*table).pvalue) if k > 2 else 1.0
    return Ranks(dict(zip(scores, ranks.tolist(), strict=True)), float(critical), p, n)


Rule = Callable[[Sequence[float]], float]


def draw_rule(rule: Rule, draws: Sequence[np.ndarray]) -> np.ndarray:
    """Apply an averaging rule to each draw (R,) of several tests."""
    return np.array([rule(values) for values in np.stack(draws, 1).tolist()])
