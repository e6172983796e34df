"""Statistics over runs: seeds, datasets, and two methods on the same images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from vlprompt.errors import VlpromptError
from vlprompt.evaluation.averages import harmonic_mean, sides_of
from vlprompt.evaluation.results import Result
from vlprompt.evaluation.saved_predictions import read_predictions

# the meaning of the numbers after ± and in brackets, for captions
SPREAD = (
    "Mean over seeds ± population standard deviation, [95% interval of the mean: Student's t on the logit scale, so "
    "within 0 and 100; none for one seed, or where all seeds agree]."
)
ONE_SEED = "One seed only: no deviation and no interval."
EQUAL = 1e-9  # percentage points; equal numbers may differ by less due to rounding


@dataclass(frozen=True)
class Statistic:
    """A mean over seeds of a percentage.

    Attributes:
        mean: over the seeds.
        std: population standard deviation, as the papers print it; None for one seed, which has no spread.
        n: number of seeds.

    >>> f"{Statistic.of([80.0, 82.0]):.1f}", f"{Statistic.of([80.0]):.1f}"
    ('81.0 ± 1.0', '80.0')
    """

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        """Summarise values."""
        return cls(statistics.fmean(values), statistics.pstdev(values) if len(values) > 1 else None, len(values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% confidence interval of the mean, within 0 and 100; None if there is none.

        It uses Student's t with n - 1 degrees of freedom on the logit scale. With the mean p as a share and its
        standard error e, the ends are logit(p) ± t·e / (p·(1 - p)), converted back to percent (the delta method, as
        survey software does for proportions). So single seeds may be at 0 or 100, and harmonic means and averages over
        datasets are treated in the same way. One seed has no interval; nor have seeds that all gave the same number,
        for which t would give an interval of length zero.
        """
        if self.std is None or self.std < EQUAL:
            return None
        p = self.mean / 100
        error = self.std / 100 / math.sqrt(self.n - 1)  # std divides by n
        middle, half = math.log(p / (1 - p)), _students_t(self.n - 1) * error / (p * (1 - p))
        return 100 * _logistic(middle - half), 100 * _logistic(middle + half)

    def __format__(self, spec: str) -> str:
        """The mean and, for several seeds, ± the deviation, both formatted by ``spec``."""
        return format(self.mean, spec) + ("" if self.std is None else f" ± {format(self.std, spec)}")


def _logistic(x: float) -> float:
    """1 / (1 + exp(-x)), for any x without overflow."""
    return 0.5 * (1 + math.tanh(x / 2))


def interval_over_images(right: int, n_images: int) -> tuple[float, float]:
    """Wilson's 95% interval of an accuracy, in percent (JASA 1927).

    It accounts for the draw of test images, not for that of training images.

    Args:
        right: number of images that were classified correctly.
        n_images: number of test images.

    >>> low, high = interval_over_images(45, 50)
    >>> round(low, 1), round(high, 1)
    (78.6, 95.7)
    """
    from scipy.stats import binomtest

    interval = binomtest(right, n_images).proportion_ci(method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


@lru_cache
def _students_t(degrees: int) -> float:
    """The 97.5% quantile of Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))


@dataclass(frozen=True)
class Summary:
    """One method over seeds and datasets.

    Attributes:
        datasets: by dataset and target, the statistic over seeds.
        average: by target, the mean over datasets of their means.
        harmonic_mean_of_averages: as published (CoCoOp, MaPLe, ...): of the two averages; None without two sides.
        mean_of_harmonic_means: the other rule (PRE): the mean over datasets of their harmonic means.
    """

    datasets: dict[str, dict[str, Statistic]]
    average: dict[str, float]
    harmonic_mean_of_averages: float | None
    mean_of_harmonic_means: float | None


def summarise(results: Iterable[Result], metric: str = "accuracy") -> Summary:
    """Average results of one method over seeds, then over datasets.

    Args:
        results: of one method, protocol, backbone and number of shots, over seeds and datasets.
        metric: a field of ``Row``, such as ``zero_shot``. If seeds have no effect, as for the frozen model, the
            statistic is that of a single number.

    Raises:
        VlpromptError: there are no results, one occurs twice, they cannot be averaged, or they lack the metric.
    """
    results = list(results)
    if not results:
        raise VlpromptError("no results were given to summarise")
    _check_comparable(results)
    values: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for row in result.rows:
            value = getattr(row, metric, None)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise VlpromptError(f"the results of {result.dataset} have no '{metric}' for {row.target}")
            values.setdefault(result.dataset, {}).setdefault(row.target, []).append(value)
    fixed = metric.startswith("zero_shot") or not any(result.has_seeds for result in results)
    datasets = {
        d: {t: Statistic.of([statistics.fmean(v)] if fixed else v) for t, v in targets.items()}
        for d, targets in values.items()
    }
    targets = list(next(iter(datasets.values())))
    average = {t: statistics.fmean(stats[t].mean for stats in datasets.values()) for t in targets}
    sides = sides_of(average)
    if sides is None:
        return Summary(datasets, average, None, None)
    each = [harmonic_mean(*(stats[side].mean for side in sides)) for stats in datasets.values()]
    return Summary(datasets, average, harmonic_mean(*(average[side] for side in sides)), statistics.fmean(each))


def _check_comparable(results: Sequence[Result]) -> None:
    """Raise a ``VlpromptError`` unless results differ only in dataset and seed."""
    first, keys = results[0], set()
    splits: dict[tuple[str, str], str] = {}
    for result in results:
        for key in ("method", "predicts", "protocol", "shots", "backbone", "limit", "selection"):
            ours, theirs = getattr(first, key), getattr(result, key)
            if ours != theirs:
                raise VlpromptError(f"results with different {key} cannot be averaged: {ours} and {theirs}")
        if _key(result) in keys:
            raise VlpromptError(f"two results are for {result.dataset} with seed {result.seed}: give one of them")
        keys.add(_key(result))
        for row in result.rows:
            if splits.setdefault((result.dataset, row.target), row.split) != row.split:
                raise VlpromptError(f"results on different splits of {result.dataset} cannot be averaged")


def _key(result: Result) -> tuple[str, int, str | None]:
    """What identifies a run among those of a method: dataset, seed and held-out domain."""
    return result.dataset, result.seed, result.config.get("held_out")


@dataclass(frozen=True)
class Comparison:
    """The difference of two methods on the same images and seeds.

    Attributes:
        target: ``dataset: target``, or ``mean`` over all of them, without the source of a transfer.
        difference: accuracy of the first minus that of the second, in percentage points.
        low, high: 95% interval of the difference, by bootstrap over images, within -100 and 100.
        n_images: number of test images.
        n_seeds: number of seeds.
    """

    target: str
    difference: float
    low: float
    high: float
    n_images: int
    n_seeds: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval; None if every image has the same difference, so that resampling images changes nothing."""
        return None if self.high - self.low < EQUAL else (self.low, self.high)

    @property
    def decided(self) -> bool:
        """Whether there is an interval and it excludes zero."""
        return self.interval is not None and (self.low > 0 or self.high < 0)


def compare(
    first: Mapping[Path, Result], second: Mapping[Path, Result], n_resamples: int = 2000, seed: int = 0
) -> list[Comparison]:
    """Compare two methods on the same seeds, image by image.

    The interval accounts for the draw of test images: the difference of an image is its mean over seeds, and images are
    drawn with replacement (percentile bootstrap, Efron & Tibshirani 1993, ch. 13). The standard deviation over seeds
    shows how much another few-shot draw would change.

    Args:
        first, second: results of one method each, by the path of their files, whose folders contain the predictions.
        n_resamples: draws of the bootstrap.
        seed: the seed of the draws.

    Returns:
        One comparison per dataset and target and, if there are several, finally their mean.

    Raises:
        VlpromptError: the two do not have the same seeds, targets and images, or differ in backbone, shots or protocol.
    """
    ours, theirs = ({_key(r): (path, r) for path, r in side.items()} for side in (first, second))
    for side in (ours, theirs):
        _check_comparable([result for _, result in side.values()])
    if not ours or ours.keys() != theirs.keys():
        odd = sorted(f"{dataset} with seed {n}" for dataset, n, _ in ours.keys() ^ theirs.keys())
        raise VlpromptError(
            f"a paired comparison needs the same runs of both; one side lacks {', '.join(odd) or 'all'}"
        )
    differences: dict[str, list[np.ndarray]] = {}
    for key, (path, result) in ours.items():
        other_path, other = theirs[key]
        _check_pair(result, other)
        predictions, other_predictions = read_predictions(path.parent), read_predictions(other_path.parent)
        for row in result.rows:
            a, b = predictions[row.target], other_predictions[row.target]
            gain = (a.predicted == a.label).float() - (b.predicted == b.label).float()
            differences.setdefault(f"{result.dataset}: {row.target}", []).append(100 * gain.numpy())
    per_image = {target: np.mean(seeds, axis=0) for target, seeds in differences.items()}
    n_seeds = len({n for _, n, _ in ours})
    comparisons = [_bootstrap(target, [each], n_seeds, n_resamples, seed) for target, each in per_image.items()]
    averaged = [each for target, each in per_image.items() if not target.endswith(": source")]
    if len(averaged) > 1:
        comparisons.append(_bootstrap("mean", averaged, n_seeds, n_resamples, seed))
    return comparisons


def _bootstrap(target: str, samples: list[np.ndarray], n_seeds: int, n_resamples: int, seed: int) -> Comparison:
    """Compare the mean over ``samples`` of their means, where each sample (N,) is resampled separately."""
    generator = np.random.default_rng(seed)
    draws = np.zeros(n_resamples)
    for values in samples:
        # the counts of distinct values are multinomial; since there are few, this is exact and cheap for any N
        distinct, counts = np.unique(values, return_counts=True)
        times = generator.multinomial(len(values), counts / len(values), size=n_resamples)
        draws += times @ distinct / len(values) / len(samples)
    low, high = np.percentile(draws, [2.5, 97.5])
    mean = statistics.fmean(float(values.mean()) for values in samples)
    return Comparison(target, mean, float(low), float(high), sum(map(len, samples)), n_seeds)


def _check_pair(ours: Result, theirs: Result) -> None:
    """Raise a ``VlpromptError`` unless two results differ only in the method."""
    for key in ("protocol", "shots", "backbone", "limit"):
        if getattr(ours, key) != getattr(theirs, key):
            raise VlpromptError(
                f"{ours.method} and {theirs.method} cannot be compared: {key} is {getattr(ours, key)} and "
                f"{getattr(theirs, key)}"
            )
    if [(row.target, row.split) for row in ours.rows] != [(row.target, row.split) for row in theirs.rows]:
        raise VlpromptError(
            f"{ours.method} and {theirs.method} on {ours.dataset} cannot be compared: their test images differ"
        )


@dataclass(frozen=True)
class ClassChange:
    """The change of one class from zero-shot CLIP to a learner; accuracies in percent.

    Attributes:
        name: the class's name.
        n_images: number of its test images.
        accuracy: the learner's accuracy, mean over seeds.
        zero_shot: the frozen model's accuracy.
    """

    name: str
    n_images: int
    accuracy: float
    zero_shot: float

    @property
    def gain(self) -> float:
        """Difference in percentage points; negative for classes that were forgotten."""
        return self.accuracy - self.zero_shot


def class_changes(results: Iterable[Result], target: str) -> list[ClassChange]:
    """Return the change of each class on a target, the largest gain first.

    Args:
        results: of one method on one dataset, over seeds.
        target: name of the test.

    Raises:
        VlpromptError: the results cannot be averaged, or have no counts per class.
    """
    results = list(results)
    _check_comparable(results)
    rows = [row for result in results for row in result.rows if row.target == target]
    counts = [row.per_class for row in rows if row.per_class is not None]
    if not counts or len(counts) < len(rows):
        raise VlpromptError(f"there are no per-class counts for '{target}': run again, or choose another target")
    names, images = counts[0]["class"], counts[0]["images"]
    learnt = np.mean([each["correct"] for each in counts], axis=0).tolist()
    frozen = np.mean([each["zero_shot_correct"] for each in counts], axis=0).tolist()
    changes = [
        ClassChange(name, n, 100 * right / n, 100 * before / n)
        for name, n, right, before in zip(names, images, learnt, frozen, strict=True)
        if n
    ]
    return sorted(changes, key=lambda change: -change.gain)
