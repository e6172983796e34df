"""What a user says of a pool's classes, and settings of a training that are chosen on held-out images beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_pools import features_of, few, fitted, grip, learnt

from vlprompt import VlpromptError, load_split
from vlprompt.data.pools import with_pool_classes
from vlprompt.data.splits import DatasetSplits
from vlprompt.data.subsets import seen_classes
from vlprompt.runs.one import resolve


def photos_of(splits: DatasetSplits, folder: Path) -> str:
    """A folder of a dataset's training images, as an own pool is named."""
    folder.mkdir()
    for i, item in enumerate(splits.train):
        splits.open_image(item).save(folder / f"{i}.png")
    return f"folder:{folder}"


def test_a_pool_of_ones_own_holds_the_classes_that_the_user_names(tmp_path: Path) -> None:
    splits = few("named", each=3)
    names, unseen = splits.class_names, set(range(10)) - set(seen_classes(10, 500))
    asked = {"none": None, "some": [names[0], names[3]], "every": "all"}
    settings = {"protocol": "transductive_zero_shot", "shots": "all", "rounds": 1, "epochs": 1}
    settings |= {"unlabelled": photos_of(splits, tmp_path / "photos")}
    found, ids = {}, set()
    for key, classes in asked.items():
        told = {} if classes is None else {"pool_classes": classes}
        result = grip(splits, tmp_path / key, **settings, **told)
        found[key] = set(result.data["pseudo_labels"][0]["per_class"])
        ids.add(result.id)
    assert found == {"none": {names[c] for c in unseen}, "some": {names[0], names[3]}, "every": set(names)}
    assert len(ids) == 3


def test_classes_of_a_pool_go_by_the_names_that_prompts_have() -> None:
    splits = replace(load_split("digits"), class_names=("annual_crop land", *"123456789"))
    assert with_pool_classes(splits, ["annual crop land", "5"]).pool_classes == (0, 5)
    assert with_pool_classes(splits, "annual_crop land").pool_classes == (0,)
    with pytest.raises(VlpromptError, match="'annual crop' is not a class of digits: did you mean annual crop land"):
        with_pool_classes(splits, ["annual crop"])
    with pytest.raises(VlpromptError, match="pool_classes is empty"):
        with_pool_classes(splits, [])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pool_classes": ["0"], "protocol": "few_shot"}, "pool_classes is not used by protocol=few_shot"),
        ({"pool_classes": [1, 2]}, "must be a text or a list of texts"),
        ({"grid": {"lr": []}}, "grid's lr must be a list of numbers"),
        ({"grid": {"n_ctx": [1, 2]}}, "grip chooses no 'n_ctx' from a grid: known: lr, weight_decay"),
        ({"shots": "all"}, "uses all training images of digits, so none is left for a pool"),
        ({"selection": "fewshot_val", "protocol": "unsupervised", "shots": "none"}, "needs labelled images to choose"),
    ],
)
def test_what_is_refused(settings: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match=says):
        grip("digits", tmp_path, **settings)


def test_a_rate_that_is_chosen_gives_what_a_run_with_it_learns(tmp_path: Path) -> None:
    splits = few("rate-chosen")
    splits = replace(splits, val=splits.train[1::6])
    chosen = {"selection": "fewshot_val", "rounds": 2}
    rates = [1e-5, 0.05]
    result = grip(splits, tmp_path / "grid", grid={"lr": rates}, **chosen)
    [search] = result.searches
    lr = search["chosen"]["lr"]
    assert (search["on"], search["points"], lr in rates) == ("val", 2, True)
    assert result.saw == ["val"]
    alone = {rate: grip(splits, tmp_path / f"{rate}", lr=rate, **chosen) for rate in rates}
    assert not torch.equal(*(learnt(tmp_path / f"{rate}")["prompt.ctx"] for rate in rates))
    assert torch.equal(learnt(tmp_path / "grid")["prompt.ctx"], learnt(tmp_path / f"{lr}")["prompt.ctx"])
    assert result.data["pseudo_labels"] == alone[lr].data["pseudo_labels"]
    assert [row.accuracy for row in result.rows] == [row.accuracy for row in alone[lr].rows]
    logs = sorted(path.name for path in (tmp_path / "grid").rglob("train-*.jsonl"))
    assert logs == [f"train-lr-{r}-round-{i}.jsonl" for r in ("0-05", "1e-05") for i in (1, 2)]


def test_a_grid_that_nothing_is_chosen_from_changes_nothing() -> None:
    told = {"method": "grip", "protocol": "semi_supervised"}
    assert resolve(told | {"grid": {"lr": [0.1, 0.01]}}).id == resolve(told).id


def test_the_estimator_says_which_classes_have_no_label_and_refuses_an_empty_pool() -> None:
    X, y = features_of()
    names = {name: name for name in [*y, "okapi"]}
    with pytest.warns(
        UserWarning, match="no labelled image is of 'okapi': these classes can be learnt from the pool only"
    ):
        assert "okapi" in fitted(X, y, names, X_unlabelled=X).classes_
    for nothing in (X[:0], []):
        with pytest.raises(VlpromptError, match="X_unlabelled holds no images"):
            fitted(X, y, X_unlabelled=nothing)
