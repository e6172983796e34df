"""Hyper-parameters that are chosen on held-out images: what may be looked at, what was, and what is told of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made_results import make_result

from vlprompt import VlpromptError, load_learner, load_split, run
from vlprompt.base.layout import LEARNER, RESULT, SEARCH
from vlprompt.base.reporter import Reporter
from vlprompt.data import FeatureBank
from vlprompt.data.sampling import few_shot_split
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.evaluation.results import read_result
from vlprompt.learner import selection as selection_module
from vlprompt.learner.facts import Facts
from vlprompt.learner.held_out import Selection, make_selection, say_seen
from vlprompt.learner.selection import at_points, choose, grid_points, refitted
from vlprompt.report import make_report
from vlprompt.runs import make_feed
from vlprompt.runs.settings import resolve
from vlprompt.testing import make

SMALL = {"method": "gda", "dataset": "digits", "protocol": "few_shot", "shots": 2, "quiet": True, "device": "cpu"}
GRID = {"alpha": [0.1, 10.0, 1.0]}


def finished(folder: Path, **settings):
    return run(output=str(folder), name="one", fit_views=1, limit=20, grid=GRID, **SMALL | settings)


def points_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "one" / SEARCH).read_text().splitlines()]


def feed_of(v: torch.Tensor, y: torch.Tensor, selection: Selection) -> SimpleNamespace:
    return SimpleNamespace(bank=lambda source="labelled", **_: FeatureBank(v[None], y), selection=selection)


# Grids


def test_the_last_setting_of_a_grid_varies_fastest() -> None:
    points = grid_points({"beta": "even(start=1, stop=3, n=2)", "alpha": [0.5, 2]})
    assert [tuple(point.values()) for point in points] == [(1, 0.5), (1, 2), (2, 0.5), (2, 2)]


@pytest.mark.parametrize("values", [3, [], ["a"], [True], [float("nan")], "even(start=1, stop=2, n=0)", "odd(n=2)"])
def test_a_grid_is_lists_of_numbers(values) -> None:
    with pytest.raises(VlpromptError):
        grid_points({"alpha": values})


def test_a_learner_refuses_a_grid_of_what_it_does_not_choose() -> None:
    with pytest.raises(VlpromptError, match="gda chooses no 'beta' from a grid"):
        make("gda", grid={"beta": [1.0]})
    with pytest.raises(VlpromptError, match="more than a million points"):
        grid_points({"a": "even(start=0, stop=1, n=2000)", "b": "even(start=0, stop=1, n=2000)"})


# Choosing


def test_of_equal_points_the_first_is_chosen() -> None:
    learner = make("gda", grid={"alpha": [5.0, 3.0, 4.0]})
    y = torch.arange(4)
    feed = feed_of(torch.eye(4, learner.clip.embed_dim), y, Selection("val"))
    assert choose(learner, feed, lambda points, v, labels: [2, 3, 3]) == {"alpha": 3.0}
    assert float(learner.alpha) == 3.0
    [search] = feed.selection.searches
    assert search.points[0] == {"alpha": 5.0, "accuracy": 50.0}
    assert search.summary()["accuracy"] == 75.0


def test_nothing_is_looked_at_where_nothing_is_chosen() -> None:
    def bank(source="labelled", **_):
        raise AssertionError(source)

    for grid, selection in (({}, Selection("val")), ({"alpha": [1.0]}, Selection())):
        learner = make("gda", grid=grid, alpha=7.0)
        assert choose(learner, SimpleNamespace(bank=bank, selection=selection), refitted(None)) == {}
        assert float(learner.alpha) == 7.0


def test_many_points_at_once_are_as_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    v, y = torch.randn(50, 8), torch.randint(0, 5, (50,))
    w, residual, sizes = torch.randn(5, 8), torch.randn(5, 8), []

    def logits(v, values):
        found = v @ w.T + values["alpha"] * (v @ residual.T) ** 2 - values["beta"] * v[:, :5]
        sizes.append(found.numel())
        return found

    points = grid_points({"alpha": [0.0, 0.1, 1.0], "beta": "even(start=0, stop=3, n=7)"})

    def plainly(point):
        return lambda v: v @ w.T + point["alpha"] * (v @ residual.T) ** 2 - point["beta"] * v[:, :5]

    plain = refitted(plainly)(points, v, y)
    assert at_points(logits)(points, v, y) == plain
    monkeypatch.setattr(selection_module, "BUDGET", 1600)
    sizes.clear()
    assert at_points(logits)(points, v, y) == plain
    assert max(sizes) <= 1600


# Runs


def test_fixed_is_the_default_and_looks_at_nothing(tmp_path: Path) -> None:
    result = finished(tmp_path, selection="fixed")
    assert (result.selection, result.saw, result.searches) == ("last", [], [])
    assert not (tmp_path / "one" / SEARCH).exists()
    plain = resolve(SMALL)
    # a grid that nothing chooses from makes no other run
    assert resolve(SMALL | {"selection": "fixed", "grid": GRID}).id == plain.id != resolve(SMALL | {"alpha": 2.0}).id
    assert resolve(SMALL | {"selection": "paper", "grid": GRID}).id != resolve(SMALL | {"selection": "paper"}).id


@pytest.mark.parametrize(("selection", "source"), [("fewshot_val", "val"), ("paper", "whole_val")])
def test_a_search_tells_every_point_and_what_it_saw(selection: str, source: str, tmp_path: Path) -> None:
    result = finished(tmp_path, selection=selection)
    data = load_split("digits")
    images = len(few_shot_split(data, 2, 1).val if source == "val" else data.val)
    points = points_of(tmp_path)
    best = max(point["accuracy"] for point in points)
    chosen = next(point["alpha"] for point in points if point["accuracy"] == best)
    assert [point["alpha"] for point in points] == GRID["alpha"]
    assert {point["on"] for point in points} == {source}
    assert result.saw == [source]
    [told] = result.searches
    assert (told["on"], told["images"], told["points"], told["chosen"]) == (source, images, 3, {"alpha": chosen})
    assert read_result(tmp_path / "one" / RESULT) == result
    assert float(load_learner(tmp_path / "one" / LEARNER).alpha) == pytest.approx(chosen)
    assert f"| held-out images | {say_seen([source])} |" in (tmp_path / "one" / LEARNER / "README.md").read_text()


@pytest.mark.parametrize("format", ["markdown", "latex", "csv", "html"])
def test_a_row_of_a_table_says_what_was_seen(format: str, tmp_path: Path) -> None:
    for seed, saw in ((1, ["whole_val"]), (2, ["whole_val", "test"])):
        result = make_result({"all": 50.0}, method="gda", protocol="few_shot", seed=seed, selection="paper", saw=saw)
        result.write(tmp_path / str(seed) / RESULT)
    assert "gda (saw whole val and test)" in make_report([tmp_path]).text(format)


def test_results_that_do_not_tell_what_was_seen_have_no_mark(tmp_path: Path) -> None:
    path = make_result({"all": 50.0}, method="gda", protocol="few_shot").write(tmp_path / RESULT)
    data = json.loads(path.read_text())
    for key in ("saw", "searches", "sha256"):
        data.pop(key, None)
    path.write_text(json.dumps(data | {"schema": 2}))
    assert read_result(path).saw is None
    assert "saw" not in make_report([tmp_path]).text("markdown")


# What is out of reach


def test_held_out_images_are_reached_by_the_name_that_was_handed_out() -> None:
    splits = few_shot_split(load_split("digits"), 1, 1)
    resolved, learner = resolve(SMALL), make("gda")
    plain = make_feed(learner, splits, resolved, Reporter(quiet=True))
    assert (plain.splits.test, len(plain.bank("val").labels)) == ((), len(splits.val))
    assert plain.selection.saw == {"val"}
    for source in ("whole_val", "test"):
        with pytest.raises(VlpromptError, match=f"source={source} are available only if selection=paper"):
            plain.bank(source)
        with pytest.raises(VlpromptError, match="available only"):
            plain.batches(source)
    few = replace(splits, test=splits.test[:5])
    given = make_feed(learner, few, resolved, Reporter(quiet=True), selection=Selection("whole_val", "test"))
    assert (len(given.bank("test").labels), len(given.bank("whole_val").labels)) == (5, len(splits.val))
    assert given.selection.saw == {"whole_val", "test"}
    with pytest.raises(VlpromptError, match="source=val are available only"):
        given.bank("val")


def test_validation_images_that_are_tested_on_count_as_test_images() -> None:
    data = few_shot_split(load_split("digits"), 1, 1)
    plan = replace(PROTOCOLS.get("few_shot").plan("digits"), selection=Selection("whole_val"))
    whole = replace(data, val=())  # as ImageNet's, whose validation images are tested on
    drawn = plan.held_out(whole, whole)
    assert drawn.val == whole.test
    assert plan.seen({plan.train: drawn}) == []
    plan.selection.saw.add("whole_val")
    assert plan.seen({plan.train: drawn}) == ["whole_val", "test"]
    assert plan.seen({plan.train: data}) == ["whole_val"]


def test_what_an_authors_choice_was_must_be_known() -> None:
    with pytest.raises(VlpromptError, match="selection=paper is not available for coop"):
        run(**SMALL | {"method": "coop", "selection": "paper"})
    assert make_selection("paper", "clap", Facts("", paper_settings="none")).sources == ()
    found = make_selection("paper", "tip", Facts("", paper_settings="whole_val", paper_epoch="test"))
    assert found.sources == ("whole_val", "test")


def test_a_selection_needs_something_to_choose_among_and_on(tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match="gda has none here: give it one"):
        run(output=str(tmp_path), **SMALL | {"selection": "fewshot_val", "grid": {}})
    few = replace(load_split("digits"), name="digits-without-val", val=())
    lacking = SMALL | {"selection": "fewshot_val", "grid": GRID, "dataset": few}
    with pytest.raises(VlpromptError, match=r"needs validation images, and .* has none: use fixed"):
        run(output=str(tmp_path), **lacking)
