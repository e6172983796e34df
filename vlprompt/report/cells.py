"""The cells of a table: accuracies of a method, averaged over seeds and tests by a rule."""

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
    """A metric: its field of ``Row``, that of zero-shot CLIP, its title, and whether higher is better."""

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
    """A cell of a table: a number, or a text instead.

    Attributes:
        value: the number; None if there is none.
        text: shown instead of a number.
        std: population standard deviation over seeds; None if seeds have no effect, or for one seed.
        interval: 95% interval, over seeds as in ``Statistic.interval`` or as the table's caption says; None for one
            seed, and if all seeds agree.
        seeds: the seeds that the number is averaged over.
        n_images: total number of test images.
        missing: what is missing for a complete number, in words; empty if nothing is.
        signed: whether to show a plus sign.
        best, second: whether it is the best or second best of its column and section, among comparable methods.
        gain: difference in points from the row that others are compared with; None if there is none.
        mark: shown after the number, for example for a significant difference.
        runs: the runs that the number comes from.
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
        """The value of a cell that must have one."""
        assert self.value is not None
        return self.value

    @property
    def predicts(self) -> Predicts:
        """Whether images were predicted alone, online or jointly."""
        return self.runs[0].result.predicts if self.runs else "alone"


@dataclass(frozen=True)
class Tested:
    """The results of a method on one test.

    Attributes:
        name: the test's name in messages.
        values: the metric by seed.
        n_images: number of test images.
        runs: the runs that the values come from.
        fixed: whether seeds have no effect.
    """

    name: str
    values: dict[int, float]
    n_images: int
    runs: tuple[Run, ...]
    fixed: bool = False

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())


Rule = Callable[[Sequence[float]], float]


def first(values: Sequence[float]) -> float:
    """The rule of a single test."""
    return values[0]


def h_of_averages(values: Sequence[float]) -> float:
    """Harmonic mean of the averages of base, new, base, new, … over datasets, as published (CoCoOp, MaPLe)."""
    return harmonic_mean(statistics.fmean(values[0::2]), statistics.fmean(values[1::2]))


def mean_of_h(values: Sequence[float]) -> float:
    """Mean over datasets of the harmonic means of base, new, base, new, …, as in PRE."""
    return statistics.fmean(map(harmonic_mean, values[0::2], values[1::2]))


def check_metric(name: str) -> Metric:
    """Return a metric by name, or raise a ``VlpromptError`` with the nearest names."""
    if name not in METRICS:
        raise VlpromptError(f"unknown metric '{name}': {nearest(str(name), METRICS)}")
    return METRICS[name]


def tested(group: Group, label: str, key: Key, metric: Metric) -> Tested | None:
    """The results of a method of a group on a test; None if it was not run, or lacks the metric."""
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
    """The tests of all methods, each of which also has zero-shot CLIP's accuracy."""
    return [test for cells in group.values.values() for test in cells.get(key, ())]


def combine(parts: Sequence[Tested | None], rule: Rule, expected: Sequence[int]) -> Cell:
    """Combine several tests to one number: a rule applied to their means over seeds, as published.

    The spread is that of the rule applied to each seed separately. If a test is missing there is no number, since an
    average over other tests is not comparable; if a seed is missing, the cell says so.

    Args:
        parts: the tests; None for one that was not run.
        rule: from one value per test to the number.
        expected: the seeds of a complete number.
    """
    present = [part for part in parts if part is not None]
    runs = tuple(run for part in present for run in part.runs)
    if len(present) < len(parts):
        text = f"{len(present)} of {len(parts)} run" if present else "not run"
        return Cell(text=text, missing=f"{len(parts) - len(present)} of {len(parts)} tests not run", runs=runs)
    value = rule([part.mean for part in present])
    n_images = sum(part.n_images for part in present)
    learnt = [part for part in present if not part.fixed]
    if not learnt:
        return Cell(value, n_images=n_images, runs=runs)
    shared = sorted(set.intersection(*(set(part.values) for part in learnt)))
    by_seed = [rule([part.mean if part.fixed else part.values[seed] for part in present]) for seed in shared]
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
