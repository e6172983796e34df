"""The result file, harmonic means and statistics."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_results import make_result

from vlprompt import VlpromptError
from vlprompt.evaluation.results import Result, Row, harmonic_mean, read_result
from vlprompt.evaluation.statistics import summarise
from vlprompt.evaluation.tables import explain
from vlprompt.learner.facts import Facts
from vlprompt.runs import is_seeded

# spec: base, new and harmonic mean over 11 datasets, ViT-B/16, 16 shots
PUBLISHED = {
    "CLIP": (69.34, 74.22, 71.70),
    "CoOp": (82.69, 63.22, 71.66),
    "CoCoOp": (80.47, 71.69, 75.83),
    "KgCoOp": (80.73, 73.60, 77.00),
    "MaPLe": (82.28, 75.14, 78.55),
    "PromptSRC": (84.26, 76.10, 79.97),
    "CoPrompt": (84.00, 77.23, 80.48),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_harmonic_mean_of_published_averages_is_the_published_one(method: str) -> None:
    base, new, expected = PUBLISHED[method]
    assert harmonic_mean(base, new) == pytest.approx(expected, abs=0.0101)


def test_harmonic_mean_of_nothing_is_nothing() -> None:
    assert harmonic_mean(0, 0) == 0 == harmonic_mean(0, 80)


def row(target: str, accuracy: float, split: str = "s") -> Row:
    return Row(target, "emoji", 10, 200, accuracy, accuracy - 1, 40.0, 39.0, split)


def result(dataset: str = "emoji", seed: int = 1, base: float = 80.0, new: float = 60.0) -> Result:
    return Result(
        id="0123456789ab",
        method="coop",
        protocol="base_to_new",
        dataset=dataset,
        shots=16,
        seed=seed,
        views=16,
        rows=[row("base", base), row("new", new)],
        averages={"harmonic_mean": harmonic_mean(base, new)},
        backbone={"architecture": "vlprompt-tiny", "weights": "ab"},
        data={"split": "s"},
        config={"lr": 0.002},
        adapted={},
        recipe={"name": "coop/base_to_new"},
        n_parameters=768,
        times={"train": 1.5},
        peak_memory_mb={"process": 900.0},
        versions={"vlprompt": "0.1.0"},
        git_commit=None,
        created="2026-01-01T00:00:00+00:00",
    )


def test_whether_a_result_has_seeds_is_a_fact_of_it_and_older_ones_fall_back_to_their_parameters() -> None:
    assert replace(result(), n_parameters=0, seeded=True).has_seeds  # computed from the draw, nothing trained
    assert not replace(result(), n_parameters=768, seeded=False).has_seeds
    assert [replace(result(), n_parameters=n).has_seeds for n in (0, 768)] == [False, True]


@pytest.mark.parametrize(
    ("trained", "labels", "shots", "expected"),
    [
        (True, "needed", 16, True),
        (True, "needed", "all", True),  # order of batches, initial weights
        (False, "none", 16, False),  # zero-shot CLIP looks at no draw
        (False, "needed", 16, True),  # a classifier computed from the draw, such as GDA's
        (False, "needed", "all", False),  # nothing is drawn
    ],
)
def test_a_run_writes_whether_its_seed_decides_anything(
    trained: bool, labels: str, shots: int | str, expected: bool
) -> None:
    learner = SimpleNamespace(facts=Facts("none", labels=labels))
    assert is_seeded(learner, trained, SimpleNamespace(shots=shots)) is expected


def test_of_the_frozen_model_a_summary_is_one_number_whatever_the_seeds() -> None:
    found = summarise([result(seed=seed, base=80.0 + seed) for seed in (1, 2, 3)], metric="zero_shot")
    assert f"{found.datasets['emoji']['base']:.1f}" == "40.0"
    with pytest.raises(VlpromptError, match="the results of emoji have no 'acuracy' for base"):
        summarise([result()], metric="acuracy")


def test_a_result_survives_the_file(tmp_path: Path) -> None:
    path = result().write(tmp_path / "deep" / "result.json")
    assert read_result(path) == result()


def test_a_missing_result_says_so(tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match=r"no result at .*the run has not finished"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": 99}, "has schema 99, and this vlprompt reads up to 3"),
        ({"schema": None}, "it has no schema version"),
        ({"rows": []}, "it has no rows"),
        ({"rows": [{"target": "base"}]}, r"rows\[0\]: it lacks field 'dataset'"),
        ({"rows": [7]}, r"field '0' is not right: .* not 7"),
        ({"seed": "one"}, "field 'seed' is not right: input should be a valid integer, not 'one'"),
        ({"accuracy": 3}, "it has the unknown field 'accuracy'"),
        ({"backbone": None}, None),
    ],
)
def test_a_malformed_result_is_named_with_what_is_wrong(tmp_path: Path, change: dict, sentence: str | None) -> None:
    path = result().write(tmp_path / "result.json")
    data = json.loads(path.read_text()) | change
    if sentence is None:
        del data["backbone"]
        sentence = "it lacks field 'backbone'"
    path.write_text(json.dumps(data))
    with pytest.raises(VlpromptError, match=sentence) as raised:
        read_result(path)
    assert str(path) in str(raised.value)


def test_what_is_not_json_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{half")
    with pytest.raises(VlpromptError, match="is not a result file"):
        read_result(tmp_path / "result.json")


def test_summary_averages_seeds_with_population_deviation_then_datasets() -> None:
    runs = [result(seed=s, base=b, new=60.0) for s, b in ((1, 79.0), (2, 80.0), (3, 84.0))]
    runs += [result("digits", seed=1, base=50.0, new=90.0)]
    summary = summarise(runs)
    base = summary.datasets["emoji"]["base"]
    assert (base.mean, base.n) == (81.0, 3)
    assert base.std == pytest.approx((14 / 3) ** 0.5)
    assert summary.average == {"base": 65.5, "new": 75.0}
    assert summary.harmonic_mean_of_averages == pytest.approx(harmonic_mean(65.5, 75.0))
    expected = (harmonic_mean(81.0, 60.0) + harmonic_mean(50.0, 90.0)) / 2
    assert summary.mean_of_harmonic_means == pytest.approx(expected)
    assert summary.harmonic_mean_of_averages != pytest.approx(summary.mean_of_harmonic_means, abs=0.5)
    assert summarise(runs, "zero_shot").average == {"base": 40.0, "new": 40.0}


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (replace(result(seed=2), backbone={"architecture": "ViT-B-16"}), "different backbone cannot be averaged"),
        (replace(result(seed=2), shots=4), "different shots cannot be averaged"),
        (replace(result(seed=2), limit=10), "different limit cannot be averaged"),
        (replace(result(seed=2), rows=[row("base", 80.0, split="t")]), "different splits of emoji"),
        (result(), "two results are for emoji with seed 1"),
    ],
)
def test_results_that_differ_in_more_than_seed_and_dataset_are_not_averaged(other: Result, sentence: str) -> None:
    with pytest.raises(VlpromptError, match=sentence):
        summarise([result(), other])


def test_nothing_cannot_be_summarised() -> None:
    with pytest.raises(VlpromptError, match="no results"):
        summarise([])


@pytest.mark.parametrize(
    ("scores", "settings", "said"),
    [
        (
            {"base": 48.0, "new": 35.5},
            {},
            "coop was trained on the base classes: there it gains 8.0 points over the frozen model, which knows all "
            "classes by name only. It has seen no image of the new classes: there it loses 4.5 points. The harmonic "
            "mean is low if either accuracy is.",
        ),
        (
            {"all": 43.0},
            {"protocol": "few_shot"},
            "Zero-shot is the frozen model, which knows the classes by name only. coop gains 3.0 points over it.",
        ),
        (
            {"source": 60.0, "dtd": 42.0, "eurosat": 35.0},
            {"protocol": "cross_dataset", "dataset": "imagenet"},
            "Zero-shot is the frozen model, which knows the classes by name only. coop loses 1.5 points against it on "
            "average over 2 tests, and is above it in 1.",
        ),
    ],
)
def test_a_table_is_explained_in_two_sentences(scores: dict, settings: dict, said: str) -> None:
    averages = {"harmonic_mean": 40.0, "zero_shot_harmonic_mean": 40.0} if "base" in scores else {}
    assert explain(make_result(scores, averages=averages, **settings)) == said
