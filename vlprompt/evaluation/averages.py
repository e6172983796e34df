"""Averages of a result: harmonic means, the averages of protocols, and the spread over draws of noise."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vlprompt.learner.facts import MARKS, mark_of

if TYPE_CHECKING:
    from vlprompt.evaluation.results import Result
    from vlprompt.evaluation.rows import Row

SIDES = (("base", "new"), ("seen", "unseen"))  # pairs of tests that have a harmonic mean


def sides_of(targets: Iterable[str]) -> tuple[str, str] | None:
    """The two tests of a protocol that have a harmonic mean, or None."""
    names = set(targets)
    return next((pair for pair in SIDES if names >= set(pair)), None)


def harmonic_mean(base: float, new: float) -> float:
    """Return 2·base·new / (base + new), 0 if both are 0.

    >>> round(harmonic_mean(80.47, 71.69), 2)
    75.83
    """
    return 2 * base * new / (base + new) if base + new else 0.0


def headline(result: Result) -> str:
    """Return the main number of a run in words: its average, or the accuracy of each test."""
    mark = "".join(
        f", {each}" for each in (MARKS[result.predicts], mark_of(result.fidelity), result.start_mark) if each
    )
    for name, value in result.averages.items():
        if not name.startswith("zero_shot_"):
            return f"{name.replace('_', ' ')} {value:.2f}{mark}"
    return ", ".join(f"{row.target} {row.accuracy:.2f}" for row in result.rows) + mark


def spread_over_draws(rows: Iterable[Row]) -> str:
    """A phrase on the accuracies of each test over several draws of noise; empty if nothing is drawn.

    >>> row = Row("new", "pacs", 7, 10, 60, 60, 50, 50, "", draws=[62.0, 58.0])
    >>> spread_over_draws([row])
    'over 3 draws of noise: new 60.00 ± 2.00 (58.00 to 62.00)'
    """
    draws = {row.target: [row.accuracy, *row.draws] for row in rows if row.draws}
    if not draws:
        return ""
    phrases = [
        f"{target} {statistics.fmean(each):.2f} ± {statistics.stdev(each):.2f} ({min(each):.2f} to {max(each):.2f})"
        for target, each in draws.items()
    ]
    return f"over {len(next(iter(draws.values())))} draws of noise: {', '.join(phrases)}"


def average_rows(rule: str | None, values: Mapping[str, float]) -> dict[str, float]:
    """Average one value per test as a protocol does, and return the average by its name; empty if there is none.

    Args:
        rule: ``harmonic_mean``, ``mean_of_targets`` or None.
        values: by target.
    """
    if rule == "harmonic_mean":
        return {rule: harmonic_mean(*values.values())}
    targets = [value for name, value in values.items() if name != "source"]
    return {rule: statistics.fmean(targets)} if rule == "mean_of_targets" and len(targets) > 1 else {}
