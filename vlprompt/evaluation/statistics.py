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
from vlprompt.evaluation.predicted import read_predictions
from vlprompt.evaluation.results import Result

# what the numbers after ± and in brackets are, wherever they are shown
SPREAD = (
    "Mean over seeds ± population standard deviation, [95% interval of the mean: Student's t on the logit scale, so "
    "within 0 and 100; none for one seed, or where all seeds agree]."
)
ONE_SEED = "One seed only: no deviation and no interval."
EQUAL = 1e-9  # percentage points by which equal numbers may differ for rounding


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
        """95% confidence interval of the mean, within 0 and 100; None where there is none to be had.

        By Student's t with n - 1 degrees of freedom on the logit scale: with the mean p as a share and its standard
        error e, the ends are those of logit(p) ± t·e / (p·(1 - p)) taken back to percent (the delta method, as survey
        software does it for proportions). So the mean itself is kept, single seeds may be at 0 or 100, and harmonic
        means and averages over datasets are treated alike. One seed has no interval, and neither have seeds that all
        gave the same number, of which t would say that nothing could ever differ.
        """
        if self.std is None or self.std < EQUAL:
            return None
        p = self.mean / 100
        error = self.std / 100 / math.sqrt(self.n - 1)  # std divides by n
        middle, half = math.log(p / (1 - p)), _students_t(self.n - 1) * error / (p * (1 - p))
        return 100 * _logistic(middle - half), 100 * _logistic(middle + half)

    def __format__(self, spec: str) -> str:
        """The mean, and after ± the deviation where there are several seeds, both as ``spec`` says."""
        return format(self.mean, spec) + ("" if self.std is None else f" ± {format(self.std, spec)}")


def _logistic(x: float) -> float:
    """1 / (1 + exp(-x)), for any x without overflow."""
    return 0.5 * (1 + math.tanh(x / 2))


def interval_over_images(right: int, n_images: int) -> tuple[float, float]:
    """95% interval of an accuracy in percent, as far as the number of test images decides it: Wilson's (JASA 1927).

    It says how much other test images of the same kind would change, and nothing of another training draw.

    >>> low, high = interval_over_images(45, 50)
    >>> round(low, 1), round(high, 1)
    (78.6, 95.7)
    """
    from scipy.stats import binomtest

    found = binomtest(right, n_images).proportion_ci(method="wilson")
    return 100 * float(found.low), 100 * float(found.high)


@lru_cache
def _students_t(degrees: int) -> float:
    """The quantile of Student's t that leaves 2.5% above it."""
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
        metric: a number of ``Row``, such as ``zero_shot``. Where seeds decide nothing, as of the frozen model, the
            statistic is that of one number.

    Raises:
        VlpromptError: there are none, a run comes twice, they differ in what must be equal, or did not measure that.
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
    first, seen = results[0], set()
    splits: dict[tuple[str, str], str] = {}
    for result in results:
        for key in ("method", "predicts", "protocol", "shots", "backbone", "limit", "selection"):
            ours, theirs = getattr(first, key), getattr(result, key)
            if ours != theirs:
                raise VlpromptError(f"results with different {key} cannot be averaged: {ours} and {theirs}")
        if _tested(result) in seen:
            raise VlpromptError(f"two results are for {result.dataset} with seed {result.seed}: give one of them")
        seen.add(_tested(result))
        for row in result.rows:
            if splits.setdefault((result.dataset, row.target), row.split) != row.split:
                raise VlpromptError(f"results on different splits of {result.dataset} cannot be averaged")


def _tested(result: Result) -> tuple[str, int, str | None]:
    """What a method is run on once: a dataset, with a seed, and for domains the one that is held out."""
    return result.dataset, result.seed, result.config.get("held_out")


@dataclass(frozen=True)
class Comparison:
    """The difference of two methods on the same images and seeds.

    Attributes:
        target: ``dataset: target``, or ``mean`` of several, a source that others were tested after not included.
        difference: accuracy of the first less that of the second, in percentage points.
        low, high: 95% interval of the difference, by the bootstrap over images, and so within -100 and 100.
        n_images: that both were tested on.
        n_seeds: that both were trained with.
    """

    target: str
    difference: float
    low: float
    high: float
    n_images: int
    n_seeds: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval; None where every image has the same difference, so that drawing images again says nothing."""
        return None if self.high - self.low < EQUAL else (self.low, self.high)

    @property
    def decided(self) -> bool:
        """Whether there is an interval and it leaves out zero."""
        return self.interval is not None and (self.low > 0 or self.high < 0)


def compare(
    first: Mapping[Path, Result], second: Mapping[Path, Result], n_resamples: int = 2000, seed: int = 0
) -> list[Comparison]:
    """Compare two methods in pairs: the same seeds, and image by image.

    The interval is of the images alone: an image's difference is its mean over the seeds, and images are drawn with
    replacement (percentile bootstrap, Efron & Tibshirani 1993, ch. 13). How much another few-shot draw would change is
    told by the standard deviation over seeds.

    Args:
        first, second: results of one method each, by the path of their files, whose folders hold the predictions.
        n_resamples: draws of the bootstrap.
        seed: of the draws.

    Returns:
        One comparison a dataset and target, and where there are several their mean as the last.

    Raises:
        VlpromptError: the two have no seeds, targets or images in common, or differ in backbone, shots or protocol.
    """
    ours, theirs = ({_tested(r): (path, r) for path, r in side.items()} for side in (first, second))
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
        mine, its = read_predictions(path.parent), read_predictions(other_path.parent)
        for row in result.rows:
            a, b = mine[row.target], its[row.target]
            gain = (a.predicted == a.label).float() - (b.predicted == b.label).float()
            differences.setdefault(f"{result.dataset}: {row.target}", []).append(100 * gain.numpy())
    per_image = {target: np.mean(seeds, axis=0) for target, seeds in differences.items()}
    n_seeds = len({n for _, n, _ in ours})
    found = [_bootstrap(target, [each], n_seeds, n_resamples, seed) for target, each in per_image.items()]
    averaged = [each for target, each in per_image.items() if not target.endswith(": source")]
    if len(averaged) > 1:
        found.append(_bootstrap("mean", averaged, n_seeds, n_resamples, seed))
    return found


def _bootstrap(target: str, samples: list[np.ndarray], n_seeds: int, n_resamples: int, seed: int) -> Comparison:
    """Compare by the mean over ``samples`` of their means; each is drawn from by itself."""
    generator = np.random.default_rng(seed)
    draws = np.zeros(n_resamples)
    for values in samples:
        # how often a value occurs is multinomial; few values differ, so that this is exact and cheap for any N
        distinct, counts = np.unique(values, return_counts=True)
        times = generator.multinomial(len(values), counts / len(values), size=n_resamples)
        draws += times @ distinct / len(values) / len(samples)
    low, high = np.percentile(draws, [2.5, 97.5])
    mean = statistics.fmean(float(values.mean()) for values in samples)
    return Comparison(target, mean, float(low), float(high), sum(map(len, samples)), n_seeds)


def _check_pair(ours: Result, theirs: Result) -> None:
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
    """What a learner gained or forgot of one class; accuracies in percent.

    Attributes:
        name: of the class.
        n_images: test images of it.
        accuracy: of the learner, mean over seeds.
        zero_shot: of the frozen model.
    """

    name: str
    n_images: int
    accuracy: float
    zero_shot: float

    @property
    def gain(self) -> float:
        """Percentage points over zero-shot; negative for what was forgotten."""
        return self.accuracy - self.zero_shot


def class_changes(results: Iterable[Result], target: str) -> list[ClassChange]:
    """Return each class's change against zero-shot on a target, largest gain first, over the seeds of one dataset."""
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
