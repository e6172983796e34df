"""What each protocol trains on and tests on, and what it refuses."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from vlprompt import VlpromptError, list_protocols, load_split, run
from vlprompt.evaluation.protocols import PROTOCOLS, Part, Plan, check_suits
from vlprompt.evaluation.results import average_rows
from vlprompt.learner.facts import Facts

SMALL = {"shots": 2, "epochs": 1, "quiet": True, "device": "cpu", "limit": 20, "views": 1, "method": "coop"}


def plan(protocol: str, dataset: str, **options: object) -> Plan:
    return PROTOCOLS.get(protocol).plan(dataset, **options)


def test_protocols_are_data() -> None:
    assert list_protocols() == [
        "base_to_new",
        "base_to_new_unlabelled",
        "cross_dataset",
        "domain_generalization",
        "few_shot",
        "generalized",
        "multitask",
        "semi_supervised",
        "test_time",
        "transductive_zero_shot",
        "unsupervised",
    ]
    for name in list_protocols():
        protocol = PROTOCOLS.get(name)
        assert protocol.summary
        assert protocol.averaging


def test_plans() -> None:
    assert plan("base_to_new", "x") == Plan(Part("x", "base"), {"base": Part("x", "base"), "new": Part("x", "new")})
    assert plan("few_shot", "x") == Plan(Part("x"), {"all": Part("x")})
    generalized = plan("generalized", "x")
    assert generalized.train == Part("x", "base")
    assert generalized.tests == {"base": Part("x", images="base"), "new": Part("x", images="new")}
    crossed = plan("cross_dataset", "imagenet")
    assert list(crossed.tests)[:2] == ["source", "caltech101"]
    assert len(crossed.tests) == 11
    assert len(plan("cross_dataset", "glyphs/symbols").tests) == 11
    assert list(plan("domain_generalization", "imagenet").tests) == [
        "source",
        "imagenet_v2",
        "imagenet_sketch",
        "imagenet_a",
        "imagenet_r",
    ]
    assert plan("cross_dataset", "x", targets=["y", "x"]).tests == {"source": Part("x"), "y": Part("y")}
    assert plan("multitask", "x+y") == Plan(Part("x+y", joined=("x", "y")), {"x": Part("x"), "y": Part("y")})
    left_out = Part("pacs", held_out="sketch")
    assert plan("domain_generalization", "pacs", held_out="sketch") == Plan(left_out, {"sketch": left_out})


@pytest.mark.parametrize(
    ("protocol", "suits"),
    [("base_to_new", False), ("few_shot", True), ("generalized", False), ("cross_dataset", False)],
)
def test_what_a_learner_bound_to_its_classes_is_refused(protocol: str, suits: bool) -> None:
    chosen = plan(protocol, "emoji", targets="digits" if protocol == "cross_dataset" else None)
    parts = {part: load_split(part.dataset).select(part.half) for part in (chosen.train, *chosen.tests.values())}
    bound = Facts("none", new_classes=False)
    with contextlib.nullcontext() if suits else pytest.raises(VlpromptError, match="bound to its training classes"):
        check_suits(protocol, chosen, parts, "it", bound)
    check_suits(protocol, chosen, parts, "it", Facts("none"))


def test_class_lists_and_not_names_of_datasets_tell_which_classes_are_new(tmp_path: Path) -> None:
    settings = {"protocol": "domain_generalization", "dataset": "glyphs/symbols", "class_specific": True, "shots": 1}
    shifted = run(output=str(tmp_path), targets=["glyphs/symbols-v2"], **(SMALL | settings))
    assert [row.target for row in shifted.rows] == ["source", "glyphs/symbols-v2"]


def test_the_source_is_not_part_of_the_average() -> None:
    maple = {"source": 70.72, "v2": 64.07, "sketch": 49.15, "a": 50.90, "r": 76.98}
    assert average_rows("mean_of_targets", maple)["mean_of_targets"] == pytest.approx(60.275)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "cross_dataset", "dataset": "digits"}, "say what to test on after digits"),
        ({"protocol": "cross_dataset", "dataset": "digits", "targets": "mini12"}, "is not a dataset or collection"),
        ({"protocol": "cross_dataset", "dataset": "digits", "targets": "cars"}, "its name here is stanford_cars"),
        ({"protocol": "domain_generalization", "dataset": "emoji"}, "give held_out=DOMAIN, of noto, twemoji, fluent"),
        ({"protocol": "domain_generalization", "dataset": "emoji", "held_out": "photo"}, "has no domain 'photo'"),
        ({"protocol": "few_shot", "dataset": "digits", "targets": "mini11"}, "is not used by this protocol"),
        ({"protocol": "multitask", "dataset": "digits"}, "give dataset=A+B, not dataset=digits"),
        (
            {"protocol": "generalized", "dataset": "digits", "class_specific": True},
            "tests classes that were not trained on",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(VlpromptError) as error:
        run(output=str(tmp_path), **(SMALL | settings))
    assert message in str(error.value)
    assert not list(tmp_path.rglob("checkpoint*"))


def test_one_learner_serves_all_targets(tmp_path: Path) -> None:
    result = run(
        output=str(tmp_path),
        protocol="cross_dataset",
        dataset="digits",
        targets=["glyphs/chess", "glyphs/zodiac"],
        **SMALL,
    )
    assert [row.target for row in result.rows] == ["source", "glyphs/chess", "glyphs/zodiac"]
    assert [row.n_classes for row in result.rows] == [10, 12, 12]
    targets = [row.accuracy for row in result.rows[1:]]
    assert result.averages["mean_of_targets"] == pytest.approx(sum(targets) / 2)


def test_a_domain_is_left_out_of_training_and_tested(tmp_path: Path) -> None:
    result = run(output=str(tmp_path), protocol="domain_generalization", dataset="emoji", held_out="fluent", **SMALL)
    assert [row.target for row in result.rows] == ["fluent"]
    assert result.rows[0].n_classes == 22


def test_generalized_scores_each_half_among_all_classes(tmp_path: Path) -> None:
    result = run(output=str(tmp_path), protocol="generalized", dataset="digits", **SMALL)
    assert [(row.target, row.n_classes) for row in result.rows] == [("base", 10), ("new", 10)]
    assert {"harmonic_mean", "zero_shot_harmonic_mean"} <= result.averages.keys()


def test_several_datasets_are_learnt_from_at_once(tmp_path: Path) -> None:
    multitask = SMALL | {"method": "mvlpt", "n_ctx": 2}
    result = run(output=str(tmp_path), protocol="multitask", dataset="digits+glyphs/chess", **multitask)
    assert [(row.target, row.n_classes) for row in result.rows] == [("digits", 10), ("glyphs/chess", 12)]
    mean = sum(row.accuracy for row in result.rows) / 2
    assert result.averages["mean_of_targets"] == pytest.approx(mean)
    [folder] = [path.parent for path in tmp_path.rglob("result.json")]
    adapted = run(
        output=str(tmp_path / "b"), protocol="few_shot", dataset="glyphs/zodiac", init_from=str(folder), **multitask
    )
    assert [(row.target, row.n_classes) for row in adapted.rows] == [("all", 12)]
