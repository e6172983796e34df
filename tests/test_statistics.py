"""Intervals over seeds, paired comparisons over images, and changes of classes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_results import result

from vlprompt import VlpromptError
from vlprompt.evaluation.results import Predictions, Result, write_predictions
from vlprompt.evaluation.robin_hood import robin_hood
from vlprompt.evaluation.statistics import ClassChange, Statistic, class_changes, compare


def test_the_interval_is_students_on_the_logit_scale() -> None:
    # mean 50, sample deviation 1, t(0.975; 2) = 4.3027; at a half, a point is 0.01 / 0.25 on the logit scale
    half = 0.04 * 4.3027 / 3**0.5
    found = Statistic.of([49.0, 50.0, 51.0])
    assert found.interval == pytest.approx((100 / (1 + math.exp(half)), 100 / (1 + math.exp(-half))), abs=1e-4)
    assert found.interval == pytest.approx((50 - 4.3027 / 3**0.5, 50 + 4.3027 / 3**0.5), abs=0.01)  # near t's own
    assert found.std == pytest.approx((2 / 3) ** 0.5)


@pytest.mark.parametrize(
    "values",
    [[99.0, 100.0, 100.0], [0.0, 0.0, 1.0], [0.0, 100.0], [97.0, 99.9], [0.1, 35.0, 99.9], [5.0, 60.0], [0.0, 1e-6]],
)
def test_an_interval_of_a_percentage_stays_within_0_and_100_and_holds_its_mean(values: list[float]) -> None:
    found = Statistic.of(values)
    low, high = found.interval
    assert 0 <= low <= found.mean <= high <= 100
    assert low < high


def test_the_interval_covers_the_mean_of_three_seeds_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    for true, spread in ((50.0, 3.0), (90.0, 2.0), (98.0, 0.5)):
        found = [Statistic.of(list(generator.normal(true, spread, 3).clip(0, 100))) for _ in range(2000)]
        covered = np.mean([low <= true <= high for low, high in (each.interval for each in found)])
        assert 0.93 < covered < 0.97


@pytest.mark.parametrize("value", [0.0, 5.0, 100.0])
def test_one_seed_has_neither_deviation_nor_interval_and_equal_seeds_no_interval(value: float) -> None:
    one, equal = Statistic.of([value]), Statistic.of([value] * 3)
    assert (one.std, one.interval, f"{one:.2f}") == (None, None, f"{value:.2f}")
    assert (equal.std, equal.interval, f"{equal:.1f}") == (0.0, None, f"{value:.1f} ± 0.0")


def make_runs(folder: Path, method: str, right: dict[int, np.ndarray]) -> dict[Path, Result]:
    """Results of a method whose image i of ``base`` is right with a seed where ``right[seed][i]``."""
    runs = {}
    for seed, correct in right.items():
        place = folder / f"{method}{seed}"
        place.mkdir()
        label = torch.zeros(len(correct), dtype=torch.int32)
        predicted = torch.from_numpy(1 - correct.astype(np.int32))
        write_predictions(place, {"base": Predictions(label, predicted, label.clone(), torch.ones(len(correct)))})
        one = result(seed=seed)
        runs[place / "result.json"] = replace(one, method=method, rows=one.rows[:1])
    return runs


def test_a_known_difference_is_found_with_its_interval(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    n = 400
    first = {seed: generator.random(n) < 0.7 for seed in (1, 2, 3)}
    second = {seed: generator.random(n) < 0.5 for seed in (1, 2, 3)}
    [found] = compare(make_runs(tmp_path, "a", first), make_runs(tmp_path, "b", second))
    gains = np.mean([first[s].astype(float) - second[s] for s in (1, 2, 3)], axis=0) * 100
    assert found.difference == pytest.approx(gains.mean(), abs=1e-4)
    assert (found.n_images, found.n_seeds, found.target) == (n, 3, "emoji: base")
    half = 1.96 * gains.std() / n**0.5  # the normal approximation
    assert found.low == pytest.approx(found.difference - half, abs=0.4)
    assert found.high == pytest.approx(found.difference + half, abs=0.4)
    assert found.decided


def test_equal_methods_differ_by_nothing(tmp_path: Path) -> None:
    right = {1: np.arange(50) % 2 == 0}
    [found] = compare(make_runs(tmp_path, "a", right), make_runs(tmp_path, "b", right))
    assert (found.difference, found.low, found.high, found.decided) == (0, 0, 0, False)


def test_pairs_need_the_same_seeds_and_images(tmp_path: Path) -> None:
    right = np.ones(4, dtype=bool)
    ours = make_runs(tmp_path, "a", {1: right, 2: right})
    with pytest.raises(VlpromptError, match="lacks emoji with seed 2"):
        compare(ours, make_runs(tmp_path, "b", {1: right}))
    theirs = make_runs(tmp_path, "c", {1: right, 2: right})
    path, other = next(iter(theirs.items()))
    theirs[path] = replace(other, rows=[replace(other.rows[0], split="other")])
    with pytest.raises(VlpromptError, match=r"other images|different splits"):
        compare(ours, theirs)


def test_changes_of_classes_are_gains_and_losses_over_zero_shot() -> None:
    counts = {"class": ["cat", "dog", "none"], "images": [10, 20, 0], "zero_shot_correct": [5, 10, 0]}
    runs = []
    for seed, correct in ((1, [9, 6, 0]), (2, [7, 4, 0])):
        one = result(seed=seed)
        runs.append(replace(one, rows=[replace(one.rows[0], per_class=counts | {"correct": correct})]))
    cat, dog = class_changes(runs, "base")
    assert (cat.name, cat.accuracy, cat.zero_shot, cat.gain) == ("cat", 80.0, 50.0, 30.0)
    assert (dog.n_images, dog.gain) == (20, -25.0)
    with pytest.raises(VlpromptError, match="no per-class counts for 'elsewhere'"):
        class_changes(runs, "elsewhere")
    older = replace(runs[1], rows=[replace(runs[1].rows[0], per_class=None)])  # of schema 1
    with pytest.raises(VlpromptError, match="no per-class counts for 'base'"):
        class_changes([runs[0], older], "base")


def test_the_slope_of_gains_that_are_chance_is_the_one_that_chance_would_make() -> None:
    rng, images = np.random.default_rng(0), 12
    p = rng.uniform(0.3, 0.8, 4000)  # both right as often in each class, and independently
    learnt, frozen = (100 * rng.binomial(images, p) / images for _ in range(2))
    each = [
        ClassChange(str(i), images, a, b) for i, (a, b) in enumerate(zip(learnt.tolist(), frozen.tolist(), strict=True))
    ]
    found = robin_hood(each)
    assert found is not None
    assert found.by_chance == pytest.approx(-0.49, abs=0.03)
    assert found.slope == pytest.approx(found.by_chance, abs=0.04)
    assert found.poorer > 0 > found.richer


def test_who_gains_is_not_asked_of_few_classes_or_of_classes_that_are_alike() -> None:
    still = [ClassChange(str(i), 1, 40.0 + i, 40.0 + i) for i in range(5)]
    found = robin_hood(still)
    assert found is not None
    assert (found.slope, found.rho, found.by_chance) == (pytest.approx(0), None, None)
    assert robin_hood(still[:4]) is None
    assert robin_hood([ClassChange(str(i), 9, 10.0 * i, 50.0) for i in range(5)]) is None
