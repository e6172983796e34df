"""``method=auto`` chooses by cross-validation on training images alone, keeps its time, and says what it chose from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from test_estimator import coloured, one_block_clip
from test_weights import rows

from vlprompt import PromptClassifier, VlpromptError, load_learner, run
from vlprompt.base.settings import ChoiceOptions
from vlprompt.choosing.budget import seconds_of
from vlprompt.choosing.choice import Choice, decide, difference, mean_of
from vlprompt.choosing.folds import make_folds
from vlprompt.choosing.options import choice_options
from vlprompt.choosing.search import Source, choose
from vlprompt.cli.__main__ import main
from vlprompt.data import DatasetSplits
from vlprompt.data.splits import Item
from vlprompt.estimator.auto import new_learner
from vlprompt.evaluation.results import Result
from vlprompt.learner.contract import PromptLearner
from vlprompt.report.groups import collect
from vlprompt.runs.auto import resolve_auto
from vlprompt.training.feed import FeatureFeed, Loading
from vlprompt.training.recipes import Learning, resolve_learning

NAMES = ("ash", "birch", "cedar")
HEADS = ["zero_shot", "gda(fit_views=1)"]


def items(labels: list[int]) -> list[Item]:
    return [Item(str(i), label, NAMES[label]) for i, label in enumerate(labels)]


def options(**given: Any) -> ChoiceOptions:
    return choice_options({"candidates": HEADS, "folds": 3, **given})


def source(count: int = 24, before: Callable[[Learning], None] = lambda learning: None) -> Source:
    """Features of three classes, which can be told apart; ``before`` is called for each fit."""
    X, y = rows(count)
    known, clip = items(y.tolist()), one_block_clip()
    splits = DatasetSplits("rows", NAMES, known, (), (), lambda item: None)

    def learner(learning: Learning) -> PromptLearner:
        before(learning)
        return new_learner(learning, clip, NAMES, ("a {}.",))

    def learning(method: str, settings: Any) -> Learning:
        return resolve_learning(method, {"shots": 8, "seed": 1, "views": 1, **settings})

    def feed(made: PromptLearner, how: Learning) -> FeatureFeed:
        data = splits
        if made.facts.labels == "none":
            data = DatasetSplits("rows", NAMES, [], (), (), lambda item: None, pool=tuple(known))
        return FeatureFeed(data, clip, Loading(how.config.batch_size, 1), rows=torch.from_numpy(X))

    return Source(known, NAMES, learning, learner, feed)


class Time:
    """A clock that goes on when it is told."""

    def __init__(self, costs: dict[str, float]):
        self.now, self.costs, self.fits = 0.0, costs, []

    def __call__(self) -> float:
        return self.now

    def fit(self, learning: Learning) -> None:
        self.now += self.costs.get(learning.config.method, 0.0)
        self.fits.append(learning.config.method)


# The rule


def test_of_candidates_within_one_standard_error_the_first_is_chosen() -> None:
    names, low, high = ["simple", "middle", "costly"], np.repeat([0.0, 1.0], [50, 50]), np.repeat([0.0, 1.0], [30, 70])
    nearly = low.copy()
    nearly[49] = 1.0  # one image more than simple: a point, and one point of error
    assert decide(names, [[low], [nearly], [low]], None)[0] == 0
    assert decide(names, [[low], [], [high]], None)[0] == 2
    assert decide(names, [[low], [high], [high]], None)[0] == 1
    assert decide(names, [[high], [low], [low]], None)[0] == 0
    assert decide(names, [[low], [nearly], [low]], None)[1] == (
        "simple is chosen: middle is 1.0 points above it, which is within one standard error (1.0), and it is the "
        "simpler one."
    )


def test_candidates_are_compared_on_the_repeats_that_both_have() -> None:
    once, twice = np.array([1.0, 0, 1, 0] * 10), np.array([0.0, 0, 1, 0] * 10)
    assert decide(["a", "b"], [[once], [once, twice]], None)[0] == 0
    assert difference(once, twice, None) == pytest.approx((25.0, 100 * np.sqrt(0.25 * 0.75 / 39)))


def test_the_interval_is_wilsons_for_as_many_images_as_weights_amount_to() -> None:
    scores = np.array([1.0] * 8 + [0.0] * 2 + [np.nan])
    assert mean_of(scores, None) == pytest.approx((80.0, 49.02, 94.33), abs=0.01)  # Wilson, 8 of 10
    assert mean_of(np.ones(4), None)[1:] == pytest.approx((51.01, 100.0), abs=0.01)
    weighted = mean_of(np.array([1.0, 0.0] * 5), np.array([3.0, 1.0] * 5))  # (5·3 + 5·1)² / (5·9 + 5·1) images
    assert weighted == pytest.approx(mean_of(np.array([1.0] * 6 + [0.0] * 2), None))


# Folds


def test_folds_are_stratified_and_each_image_is_held_out_once_a_repeat() -> None:
    known = items([0, 1, 2] * 5)
    folds = make_folds(known, NAMES, folds=5, repeats=2, seed=1)
    assert (folds.count, len(folds.repeats), folds.notes) == (5, 2, [])
    for splits in folds.repeats:
        assert sorted(i for _, held in splits for i in held) == list(range(15))
        for train, held in splits:
            assert not set(train) & set(held)
            assert sorted(known[i].label for i in held) == [0, 1, 2]
    again = make_folds(known, NAMES, folds=5, repeats=2, seed=1)
    held_out = [[held.tolist() for splits in each.repeats for _, held in splits] for each in (folds, again)]
    assert held_out[0] == held_out[1]


def test_a_small_class_makes_fewer_folds_and_a_single_image_is_always_learnt_from() -> None:
    folds = make_folds(items([0] * 9 + [1] * 3 + [2]), NAMES, folds=5, repeats=1, seed=1)
    assert folds.count == 3
    assert folds.notes == [
        "a single image is learnt from in every fold and held out in none: 'cedar'",
        "3 folds and not 5, since 'birch' has 3 images",
    ]
    assert all(12 in train for train, _ in folds.repeats[0])


def test_an_image_that_is_there_twice_is_on_one_side() -> None:
    known = items([0, 1, 2] * 4)
    for train, held in make_folds([*known, known[0]], NAMES, folds=2, repeats=2, seed=1).repeats[0]:
        assert (0 in held) == (12 in held)
        assert (0 in train) == (12 in train)


def test_one_image_a_class_is_compared_with_nothing() -> None:
    assert make_folds(items([0, 1, 2]), NAMES, folds=5, repeats=1, seed=1).repeats == []
    X, y = rows(3)
    made = PromptClassifier("auto", one_block_clip(), device="cpu").fit(X, y)
    assert (made.learner_.method, made.choice_.outcomes) == ("tip_adapter", [])
    assert "compared with nothing" in made.choice_.why
    assert "nothing can be held out" in made.choice_.notes[-1]


# The budget


def test_cheap_candidates_are_tried_and_one_that_cannot_finish_is_left_at_once() -> None:
    clock = Time({"gda": 1.0, "coop": 30.0})
    given = options(candidates=[*HEADS, "coop(epochs=1, n_ctx=2)", "linear_probe"], repeats=2, budget="1min")
    found = choose(source(before=clock.fit), given, seed=1, clock=clock)
    zero_shot, gda, coop, probe = found.outcomes
    assert clock.fits.count("coop") == 1
    assert coop.accuracy is None
    assert coop.reason == "out of budget: 4 fits of about 30 s each, and 27 s left"
    assert (zero_shot.repeats, gda.repeats, coop.repeats, probe.repeats) == (2, 2, 0, 2)
    assert (gda.fit_seconds, gda.seconds, found.seconds) == (1.0, 6.0, 36.0)


def test_what_is_left_is_kept_for_learning_from_all_images() -> None:
    clock = Time({"gda": 10.0})
    found = choose(source(before=clock.fit), options(repeats=3, budget=60), seed=1, clock=clock)
    assert [outcome.repeats for outcome in found.outcomes] == [3, 1]
    assert found.outcomes[1].reason == "out of budget after 1 of the divisions"
    assert found.seconds + 10 * 3 / 2 <= 60


def test_a_training_is_stopped_by_its_own_pace() -> None:
    ticks = iter(range(10**6))
    found = choose(
        source(),
        options(candidates=["zero_shot", "coop(epochs=1000, n_ctx=2)"], budget=200),
        seed=1,
        clock=lambda: next(ticks),
    )
    assert found.outcomes[1].reason.startswith("out of budget: 4 fits of about ")
    assert found.seconds < 100  # of thousands


def test_no_time_at_all_takes_the_simplest() -> None:
    ticks = iter(range(10**6))
    found = choose(source(), options(budget=1), seed=1, clock=lambda: next(ticks))
    assert (found.chosen, found.outcomes[0].accuracy) == ("zero_shot", None)
    assert "the budget was spent before anything was compared" in found.why


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2min", 120), ("90s", 90), ("1h30min", 5400), ("1.5 hours", 5400), ("5 secs", 5), (45, 45), ("45", 45)],
)
def test_durations_are_read(text: Any, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["soon", "2 fortnights", 0, "-1min", "", "2min!", "5ms", True, "inf"])
def test_what_is_no_duration_is_told(text: Any) -> None:
    with pytest.raises(VlpromptError, match="budget must be a time above 0, as in 90s, 2min or 1h30min"):
        seconds_of(text)


# What comes of it


def test_the_same_seed_chooses_alike_and_the_record_is_kept(tmp_path: Path) -> None:
    given = options(candidates=[*HEADS, "coop(epochs=2, n_ctx=2)", "mask_prompt", "linear_probe"], repeats=2)
    found, again = (choose(source(), given, seed=1) for _ in range(2))
    assert [each.accuracy for each in found.outcomes] == [each.accuracy for each in again.outcomes]
    assert (found.chosen, found.why) == (again.chosen, again.why)
    assert found.outcomes[3].accuracy is None
    assert found.outcomes[3].reason
    found.write(tmp_path / "choice.json")
    assert Choice.read(tmp_path / "choice.json") == found
    console = Console(width=200)
    with console.capture() as shown:
        console.print(found.table())
    assert all(each.candidate in shown.get() for each in found.outcomes)
    assert found.why in shown.get().replace("\n", " ")


def test_a_classifier_learns_what_it_chose_from_all_it_is_given() -> None:
    (X, y), clip = rows(24), one_block_clip()
    settings: dict[str, Any] = {"backbone": clip, "device": "cpu", "epochs": 2}
    candidates = ["zero_shot", "gda(fit_views=1)", "promptsrc"]
    made = PromptClassifier("auto", budget="1min", options={"candidates": candidates, "folds": 4}, **settings).fit(X, y)
    zero_shot, gda, promptsrc = made.choice_.outcomes
    assert (made.learner_.method, made.choice_.folds) == ("gda", 4)
    assert gda.accuracy > zero_shot.accuracy + 20
    assert "needs images" in promptsrc.reason
    alone = PromptClassifier("gda", options={"fit_views": 1}, **settings).fit(X, y)
    assert np.array_equal(made.predict_proba(X), alone.predict_proba(X))
    assert made.partial_fit(X, y).learner_.method == "gda"


def test_it_chooses_on_images_and_weights_them() -> None:
    images, names = coloured(4)
    promptsrc = "promptsrc(epochs=1, depth=1, vision_depth=1)"
    given = {"candidates": ["zero_shot", "tip_adapter(fit_views=1)", "linear_probe", promptsrc], "repeats": 1}
    made = PromptClassifier("auto", one_block_clip(), class_weight="balanced", device="cpu", options=given)
    tip = made.fit(images, names).choice_.outcomes[1]
    assert [each.accuracy is None for each in made.choice_.outcomes] == [False, True, False, False]
    assert "takes all labelled images alike" in tip.reason
    assert made.choice_.folds == 4
    assert made.predict(images).shape == (12,)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run of digits whose method was chosen."""
    place = tmp_path_factory.mktemp("auto")
    return place, run(method="auto", candidates=HEADS, output=str(place), **DIGITS)


DIGITS: dict[str, Any] = {"dataset": "digits", "shots": 4, "limit": 60, "repeats": 1, "device": "cpu", "quiet": True}


def test_a_run_is_that_of_what_it_chose_and_says_so(
    chosen: tuple[Path, Result], capsys: pytest.CaptureFixture[str]
) -> None:
    place, result = chosen
    [folder] = place.glob("digits/auto/few_shot-4shot-seed1-*")
    assert (result.method, result.marked_method, result.config["auto"]) == ("gda", "auto → gda", "2min")
    kept = json.loads((folder / "choice.json").read_text())
    assert (kept["chosen"], kept["seed"], kept["images"]) == ("gda(fit_views=1)", 1, 40)
    assert result.choice == kept
    usual = {key: value for key, value in DIGITS.items() if key != "repeats"} | {"protocol": "few_shot"}
    plain = run(method="gda", fit_views=1, output=str(place), **usual)
    assert plain.rows[0].accuracy == result.rows[0].accuracy
    assert plain.id != result.id
    assert load_learner(folder / "learner").method == "gda"
    assert main(["evaluate", f"run={folder}"]) == 0
    assert main(["report", str(place), "format=markdown"]) == 0
    assert "auto → gda" in capsys.readouterr().out
    labels = [label for group in collect([(folder / "result.json", result)]) for label in group.values]
    assert labels == ["auto → gda"]


def test_a_resumed_run_does_not_choose_again(
    chosen: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, result = chosen
    monkeypatch.setattr("vlprompt.runs.auto.choose", lambda *_: pytest.fail("it chose again"))
    told = [f"{key}={value}" for key, value in DIGITS.items() if key != "quiet"]
    again = ["train", "method=auto", f"candidates=[{','.join(HEADS)}]", f"output={place}", *told, "resume=true"]
    assert main(again) == 0
    shown = capsys.readouterr().out
    assert "gda(fit_views=1) is chosen: its mean is the highest" in " ".join(shown.split())
    assert f"{result.rows[0].accuracy:.2f}" in shown


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"n_ctx": 4}, r"method=auto has no setting 'n_ctx' .* candidates=\[zero_shot,coop\(n_ctx=4\)\]"),
        ({"protocol": "base_to_new"}, "its protocol is few_shot, not base_to_new"),
        ({"selection": "paper"}, "chooses on training images alone"),
        ({"candidates": ["cop"]}, "unknown method 'cop'"),
        ({"candidates": ["coop(n_ctx="]}, "cannot read candidate"),
        ({"candidates": []}, "candidates is empty"),
        ({"candidates": ["coop", "coop"]}, "candidates contains coop twice"),
        ({"folds": 1}, "folds must be"),
        ({"budget": "soon"}, "budget must be a time"),
        ({"config": "my.yaml"}, "config is not used by method=auto"),
    ],
)
def test_what_has_no_meaning_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VlpromptError, match=sentence):
        resolve_auto({"method": "auto", **settings})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"selection": "fewshot_val"}, "cross-validates on all images of X"),
        ({"options": {"n_ctx": 4}}, "unknown option 'n_ctx' for method=auto"),
        ({"options": {"candidates": ["mask_prompt"]}}, "no candidate can be tried: mask_prompt: "),
    ],
)
def test_what_a_classifier_cannot_choose_by_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VlpromptError, match=sentence):
        PromptClassifier("auto", one_block_clip(), device="cpu", **settings).fit(*rows())


def test_it_is_no_row_of_a_sweep_and_no_setting_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "methods=[auto,gda]", "datasets=[digits]"]) == 2
    assert "one row of a sweep" in capsys.readouterr().err
    with pytest.raises(VlpromptError, match="auto is set by method=auto"):
        run(method="gda", dataset="digits", auto="2min")
    with pytest.raises(VlpromptError, match="chooses on all images, and partial_fit sees only some"):
        PromptClassifier("auto", one_block_clip()).partial_fit(*rows(), [0, 1, 2])


def test_help_lists_what_a_choice_can_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "method=auto", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(key in shown for key in ("budget", "candidates", "folds", "repeats", "dataset"))
    assert "n_ctx" not in shown
