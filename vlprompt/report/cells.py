"""One number of a table: what methods scored on tests, put together over seeds and tests by a rule."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.averages import harmonic_mean
from vlprompt.evaluation.statistics import Statistic
from vlprompt.learner.facts import Predicts
from vlprompt.report.groups import ZERO_SHOT, Group, Key, Measured, Run


@dataclass(frozen=True)
class Metric:
    """A number of ``Row``: its name there, zero-shot's, what it is called, and whether more is better."""

    learnt: str
    frozen: str
    title: str
    higher: bool = True


METRICS = {
    "accuracy": Metric("accuracy", "zero_shot", "top-1 accuracy (%)"),
    "macro_accuracy": Metric("macro_accuracy", "zero_shot_macro", "macro accuracy (%)"),
    "top5": Metric("top5", "zero_shot_top5", "top-5 accuracy (%)"),
    "ece": Metric("ece", "zero_shot_ece", "expected calibration error (%)", higher=False),
    "aurc": Metric("aurc", "zero_shot_aurc", "area under the risk–coverage curve (%)", higher=False),
}


@dataclass(frozen=True)
class Cell:
    """A number of a table, or the words that stand in its place.

    Attributes:
        value: None if there is no number.
        text: in place of a number.
        std: population standard deviation over seeds; None if seeds do not matter, or for one seed.
        interval: 95% of it, over seeds as ``Statistic.interval`` has it or as the text of the table says; None for one
            seed, and where all seeds agree.
        seeds: that the number is the mean over.
        n_images: test images in all.
        missing: what the number lacks, in words; empty if it is complete.
        signed: show a plus sign.
        best, second: of its column and section, among those predicted alike.
        gain: points over the row that others are set against; None if there is none.
        mark: behind the number, such as of a significant difference.
        runs: that the number comes from.
    """

    value: float | None = None
    text: str = ""
    std: float | None = None
    interval: tuple[float, float] | None = None
    seeds: tuple[int, ...] = ()
    n_images: int = 0
    missing: str = ""
    signed: bool = False
    best: bool = False
    second: bool = False
    gain: float | None = None
    mark: str = ""
    runs: tuple[Run, ...] = ()

    @property
    def number(self) -> float:
        """The value, of a cell that is known to have one."""
        assert self.value is not None
        return self.value

    @property
    def predicts(self) -> Predicts:
        """What the predictions behind the number depend on."""
        return self.runs[0].result.predicts if self.runs else "alone"


@dataclass(frozen=True)
class Tested:
    """What a method scored on one test, by seed.

    Attributes:
        name: of the test, for what is said of it.
        values: by seed; one entry, whatever the seed, for what is not trained.
        n_images: of the test.
        runs: behind the values.
        fixed: whether seeds do not matter.
    """

    name: str
    values: dict[int, float]
    n_images: int
    runs: tuple[Run, ...]
    fixed: bool = False

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values.values())


Rule = Callable[[Sequence[float]], float]


def first(values: Sequence[float]) -> float:
    """The rule of a single test."""
    return values[0]


def h_of_averages(values: Sequence[float]) -> float:
    """Harmonic mean of two averages, as published (CoCoOp, MaPLe); base, new, base, new, …"""
    return harmonic_mean(statistics.fmean(values[0::2]), statistics.fmean(values[1::2]))


def mean_of_h(values: Sequence[float]) -> float:
    """Mean of the datasets' harmonic means, the other rule (PRE); base, new, base, new, …"""
    return statistics.fmean(map(harmonic_mean, values[0::2], values[1::2]))


def check_metric(name: str) -> Metric:
    """Return a metric by name."""
    if name not in METRICS:
        raise VlpromptError(f"unknown metric '{name}': {nearest(str(name), METRICS)}")
    return METRICS[name]


def tested(group: Group, label: str, key: Key, metric: Metric) -> Tested | None:
    """What a method of a group scored on a test; None if it was not run or did not measure that."""
    tests = group.values[label].get(key, []) if label != ZERO_SHOT else any_tests(group, key)
    name = metric.frozen if label == ZERO_SHOT else metric.learnt
    values = {test.seed: getattr(test.row, name) for test in tests if getattr(test.row, name) is not None}
    if not values:
        return None
    runs = [test.run for test in tests]
    if label == ZERO_SHOT:
        runs = [run for run in runs if run.result.method == ZERO_SHOT]
    fixed = label == ZERO_SHOT or not any(run.result.has_seeds for run in runs)
    return Tested(f"{key[0]}, {key[1]}", values, tests[0].row.n_images, tuple(runs), fixed)


def any_tests(group: Group, key: Key) -> list[Measured]:
    """Tests of any method: zero-shot was scored in each."""
    return [test for cells in group.values.values() for test in cells.get(key, ())]


def combine(parts: Sequence[Tested | None], rule: Rule, expected: Sequence[int]) -> Cell:
    """Make one number of several tests: a rule over their means over seeds, as published.

    The spread over seeds is that of the rule applied to each seed by itself. A test that was not run leaves the number
    out, since an average over other tests is another number; a seed that was not run is told.

    Args:
        parts: the tests; None for one that was not run.
        rule: from one value a test to the number.
        expected: the seeds of a complete number.
    """
    there = [part for part in parts if part is not None]
    runs = tuple(run for part in there for run in part.runs)
    if len(there) < len(parts):
        text = f"{len(there)} of {len(parts)} run" if there else "not run"
        return Cell(text=text, missing=f"{len(parts) - len(there)} of {len(parts)} tests not run", runs=runs)
    value = rule([part.mean for part in there])
    n_images = sum(part.n_images for part in there)
    learnt = [part for part in there if not part.fixed]
    if not learnt:
        return Cell(value, n_images=n_images, runs=runs)
    shared = sorted(set.intersection(*(set(part.values) for part in learnt)))
    by_seed = [rule([part.mean if part.fixed else part.values[seed] for part in there]) for seed in shared]
    spread = replace(Statistic.of(by_seed), mean=value) if by_seed else None
    lacking = {part.name: sorted(set(expected) - set(part.values)) for part in learnt}
    return Cell(
        value,
        std=spread.std if spread else None,
        interval=spread.interval if spread else None,
        seeds=tuple(shared),
        n_images=n_images,
        missing="; ".join(f"{name}: no seed {', '.join(map(str, seeds))}" for name, seeds in lacking.items() if seeds),
        runs=runs,
    )
