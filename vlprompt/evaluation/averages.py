"""The numbers that results are known by: harmonic means, the averages of protocols, the spread over draws of noise."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vlprompt.learner.facts import MARKS, mark_of

if TYPE_CHECKING:
    from vlprompt.evaluation.results import Result
    from vlprompt.evaluation.rows import Row

SIDES = (("base", "new"), ("seen", "unseen"))  # tests whose harmonic mean is taken


def sides_of(targets: Iterable[str]) -> tuple[str, str] | None:
    """The two tests, among those of a protocol, whose harmonic mean is taken; None if there are none such."""
    there = set(targets)
    return next((pair for pair in SIDES if there >= set(pair)), None)


def harmonic_mean(base: float, new: float) -> float:
    """Return 2·base·new / (base + new), 0 if both are 0.

    >>> round(harmonic_mean(80.47, 71.69), 2)
    75.83
    """
    return 2 * base * new / (base + new) if base + new else 0.0


def headline(result: Result) -> str:
    """Return the number that a run is known by: its average, or its only row, with what it is."""
    mark = "".join(
        f", {each}" for each in (MARKS[result.predicts], mark_of(result.fidelity), result.start_mark) if each
    )
    for name, value in result.averages.items():
        if not name.startswith("zero_shot_"):
            return f"{name.replace('_', ' ')} {value:.2f}{mark}"
    return ", ".join(f"{row.target} {row.accuracy:.2f}" for row in result.rows) + mark


def spread_over_draws(rows: Iterable[Row]) -> str:
    """How far accuracies lie apart over draws of noise, the one of the table among them, test by test; empty if none.

    >>> row = Row("new", "pacs", 7, 10, 60, 60, 50, 50, "", draws=[62.0, 58.0])
    >>> spread_over_draws([row])
    'over 3 draws of noise: new 60.00 ± 2.00 (58.00 to 62.00)'
    """
    every = {row.target: [row.accuracy, *row.draws] for row in rows if row.draws}
    told = [
        f"{target} {statistics.fmean(found):.2f} ± {statistics.stdev(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        for target, found in every.items()
    ]
    return f"over {len(next(iter(every.values())))} draws of noise: {', '.join(told)}" if told else ""


def average_rows(rule: str | None, values: Mapping[str, float]) -> dict[str, float]:
    """Apply a protocol's average to one value a row: ``harmonic_mean``, ``mean_of_targets``, or nothing."""
    if rule == "harmonic_mean":
        return {rule: harmonic_mean(*values.values())}
    targets = [value for name, value in values.items() if name != "source"]
    return {rule: statistics.fmean(targets)} if rule == "mean_of_targets" and len(targets) > 1 else {}
