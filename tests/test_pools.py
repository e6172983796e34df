"""Learning from a pool: what FPL, IFPL and GRIP do with one, what a run keeps of it, and a pool of one's own."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vlprompt import PromptClassifier, VlpromptError, load_split, run
from vlprompt.data import few_shot_split
from vlprompt.data.pools import with_pool
from vlprompt.data.splits import DatasetSplits, without_labels
from vlprompt.data.subsets import seen_classes
from vlprompt.learner.learning import PseudoLabels
from vlprompt.methods.unlabelled import upl
from vlprompt.runs import one
from vlprompt.testing import make, small_clip
from vlprompt.training.feed import ImageFeed, Loading
from vlprompt.training.trainer import Log

FAST = {"epochs": 2, "batch_size": 8, "n_ctx": 2, "views": 1, "quiet": True, "limit": 20}


def few(name: str, each: int = 6) -> DatasetSplits:
    """Digits, some images of each class."""
    whole = load_split("digits")
    train = [item for label in range(10) for item in [i for i in whole.train if i.label == label][:each]]
    return replace(whole, name=name, train=train, val=(), test=whole.test[::20])


def learnt(output: Path) -> dict[str, Tensor]:
    return load_file(next(output.rglob("learner/learner.safetensors")))


def grip(splits: DatasetSplits | str, output: Path, method: str = "grip", **settings: Any) -> Any:
    options = {"protocol": "semi_supervised", "rounds": 3, "shots": 2} | FAST | settings
    return run(method=method, dataset=splits, clip=small_clip(), output=str(output), **options)


# The feed


def test_labelled_images_stand_behind_pseudo_labels() -> None:
    drawn = few_shot_split(few("behind"), 1, 1)
    pool = without_labels(few("behind").train[:4])
    feed = ImageFeed(replace(drawn, pool=pool), small_clip(), Loading(batch_size=15, views=1))
    chosen = PseudoLabels(torch.tensor([2, 0, 2, 3, 1]), torch.tensor([0, 1, 5, 5, 9]), torch.full((5,), 0.5))
    both = feed.labelled_as(chosen, keep_labelled=True)
    batch = next(iter(both.batches()(0)))
    of_pseudo = batch["index"][batch["pseudo"]]
    assert sorted(of_pseudo.tolist()) == [0, 1, 2, 3, 4]
    assert batch["label"][batch["pseudo"]].tolist() == chosen.label[of_pseudo].tolist()
    rows = torch.cat([feed.bank("pool").features[0][chosen.index], feed.bank().features[0]])
    assert torch.equal(batch["image_features"], rows[batch["index"]])
    assert [made.paths[0] for made in feed.labellings] == [pool[2].path], "all feeds made of one share the record"
    assert (feed.count("labelled"), feed.count("pool")) == (10, 4)
    features = torch.cat([each["image_features"] for each in feed.in_order()])
    assert torch.equal(features, feed.bank("pool").features[0])


def test_a_prompted_tower_sees_the_pool_in_order() -> None:
    learner = make("grip", names=few("x").class_names, prompts="visual")
    splits = replace(few("ordered"), pool=without_labels(few("x").train[:3]))
    feed = ImageFeed(splits, learner.clip, Loading(), cacheable=False)
    batch = next(iter(feed.in_order()))
    assert "label" not in batch
    assert torch.equal(torch.cat(list(learner.eval().predict_all(feed.in_order()))), learner.predict(batch))


# The methods


def test_the_loss_balances_labels_and_pseudo_labels() -> None:
    learner = make("grip")
    features = learner.clip.encode_text(["a", "b", "c", "d"])
    batch = {"image_features": features, "label": torch.tensor([0, 1, 2, 3])}
    each = [learner.loss({k: v[i : i + 1] for k, v in batch.items()})["ce"] for i in range(4)]
    learner.balance = (5.0, 0.5)
    found = learner.loss(batch | {"pseudo": torch.tensor([True, False, True, True])})["ce"]
    torch.testing.assert_close(found, 5 * each[1] + 0.5 * (each[0] + each[2] + each[3]) / 3)


@pytest.mark.parametrize(
    ("settings", "labelled", "classes", "expected"),
    [
        ({}, 20, 10, (8.0, 1.0)),
        ({}, 0, 10, (0.0, 1.0)),
        ({}, 20, 4, (1.0, 0.125)),
        ({"prompts": "multimodal"}, 40, 10, (2.0, 1.0)),
        ({"as_published": True}, 20, 10, (0.125, 1.0)),
        ({"as_published": True, "rounds": 1}, 20, 10, (8.0, 1.0)),
    ],
)
def test_gamma_and_lambda(settings: dict, labelled: int, classes: int, expected: tuple[float, float]) -> None:
    class Given:
        pool_classes = tuple(range(classes))

        def count(self, source: str) -> int:
            return labelled

    names = tuple(f"class {i}" for i in range(10))
    assert make("grip", names=names, **settings)._balance(160, Given()) == expected


def test_rounds_grow_and_start_from_the_first_prompt(tmp_path: Path) -> None:
    result = grip(few("rounds"), tmp_path)
    kept = result.data["pseudo_labels"]
    # ⌊i·⌊40/3⌋/10⌋ of each of ten classes
    assert [line["images"] for line in kept] == [10, 20, 30]
    assert all(set(line["per_class"].values()) == {line["images"] // 10} for line in kept)
    assert [line["pool"] for line in kept] == [40] * 3
    assert all(line["accuracy"] is not None for line in kept)
    folder = next(tmp_path.rglob("pseudo_labels.csv")).parent
    rows = list(csv.DictReader((folder / "pseudo_labels.csv").open()))
    assert len(rows) == 30
    assert {row["class"] for row in rows} == set(few("x").class_names)
    lines = (folder / "pseudo_labels.jsonl").read_text().splitlines()
    assert [json.loads(line)["labelling"] for line in lines] == [1, 2, 3]
    assert sorted(path.name for path in folder.glob("train*")) == [f"train-round-{i}.jsonl" for i in (1, 2, 3)]


@pytest.mark.parametrize("method", ["fpl", "ifpl"])
def test_fpl_labels_once_and_ifpl_in_each_round(method: str, tmp_path: Path) -> None:
    rounds = {} if method == "fpl" else {"rounds": 2}
    options = {"protocol": "unsupervised", "labeler": "leaderboard(k=3)"} | FAST | rounds
    result = run(method=method, dataset=few(method), clip=small_clip(), output=str(tmp_path), **options)
    assert [line["images"] for line in result.data["pseudo_labels"]] == [30] * (1 if method == "fpl" else 2)
    assert (result.data["train_images"], result.data["pool_images"]) == (0, 60)


def test_no_method_can_read_a_pools_labels(tmp_path: Path) -> None:
    right = few("right")
    names = right.class_names
    others = [(item, (item.label + 3) % len(names)) for item in right.train]
    poisoned = [replace(item, label=label, class_name=names[label]) for item, label in others]
    wrong = replace(right, name="wrong", train=poisoned)
    for splits in (right, wrong):
        options = {"protocol": "unsupervised", "rounds": 2} | FAST
        run(method="grip", dataset=splits, clip=small_clip(), output=str(tmp_path / splits.name), **options)
    one_, other = learnt(tmp_path / "right"), learnt(tmp_path / "wrong")
    assert all(torch.equal(one_[key], other[key]) for key in one_)


EVERY_POINT = range(1, 12)  # of three rounds of four epochs, after every one but the very last


@pytest.mark.parametrize("points", [(5, 8), pytest.param(EVERY_POINT, marks=pytest.mark.nightly)], ids=["two", "every"])
def test_a_killed_run_ends_with_the_same_bits(
    points: Sequence[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits, write = few(f"killed-{len(points)}", each=4), Log.write
    settings = {"epochs": 4, "checkpoint_seconds": 0}
    grip(splits, tmp_path / "whole", **settings)
    whole = learnt(tmp_path / "whole")
    killed = 0
    for point in points:
        seen = 0

        def dies(log: Log, record: dict, point: int = point) -> None:
            nonlocal seen
            seen += 1
            if seen == point:
                raise SystemExit  # before this epoch's checkpoint is written
            write(log, record)

        monkeypatch.setattr(Log, "write", dies)
        with pytest.raises(SystemExit):
            grip(splits, tmp_path / str(point), **settings)
        monkeypatch.setattr(Log, "write", write)
        result = grip(splits, tmp_path / str(point), resume=True, **settings)
        again = learnt(tmp_path / str(point))
        killed += all(torch.equal(whole[key], again[key]) for key in whole)
        assert len(result.data["pseudo_labels"]) == 3
    assert killed == len(points)


# Protocols


def test_seen_classes_are_drawn_as_published() -> None:
    # numpy.random.seed(s); numpy.random.choice(range(C), size=int(C * 0.62), replace=False)
    assert seen_classes(10, 500) == (0, 2, 3, 4, 5, 9)
    assert {len(seen_classes(47, seed)) for seed in (500, 0, 200)} == {29}
    assert seen_classes(10, 0) != seen_classes(10, 200)


def test_transductive_zero_shot_labels_seen_classes_and_pools_the_others(tmp_path: Path) -> None:
    splits = few("transductive")
    result = grip(splits, tmp_path, protocol="transductive_zero_shot", shots="all", rounds=2)
    seen = {splits.class_names[label] for label in seen_classes(10, 500)}
    assert (result.data["train_images"], result.data["pool_images"]) == (36, 24)
    for line in result.data["pseudo_labels"]:
        assert set(line["per_class"]) == set(splits.class_names) - seen
    assert [row.target for row in result.rows] == ["seen", "unseen"]
    a, b = (row.accuracy for row in result.rows)
    assert result.averages["harmonic_mean"] == pytest.approx(2 * a * b / (a + b) if a + b else 0)
    other = grip(splits, tmp_path, protocol="transductive_zero_shot", shots="all", rounds=1, class_split=0)
    assert other.id != result.id


def test_protocols_have_the_published_number_of_labels() -> None:
    for protocol, shots in (("semi_supervised", 2), ("transductive_zero_shot", "all"), ("unsupervised", "none")):
        assert one.resolve({"method": "grip", "protocol": protocol}).config.shots == shots
    assert one.resolve({"method": "grip", "protocol": "semi_supervised", "shots": 4}).config.shots == 4


# A pool of one's own


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, splits = tmp_path_factory.mktemp("photos"), few("photos", each=2)
    for i, item in enumerate(splits.train):
        place = folder / ("here" if i % 2 else "there")
        place.mkdir(exist_ok=True)
        splits.open_image(item).save(place / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_is_a_pool_beside_any_dataset(photos: Path, tmp_path: Path) -> None:
    result = grip(few("beside"), tmp_path, unlabelled=f"folder:{photos}", rounds=2)
    assert (result.data["train_images"], result.data["pool_images"]) == (20, 20)
    assert all(line["accuracy"] is None and line["pool"] == 20 for line in result.data["pseudo_labels"])
    assert "1 file" in " ".join(result.data["notes"])
    rows = list(csv.DictReader(next(tmp_path.rglob("pseudo_labels.csv")).open()))
    assert all(row["image"].startswith(str(photos)) and float(row["confidence"]) > 0 for row in rows)


def test_images_of_a_folder_are_those_that_are_given_in_memory(photos: Path) -> None:
    splits = with_pool(few("opened", each=2), f"folder:{photos}")
    by_number = {int(Path(item.path).stem): item for item in splits.pool}
    for i, item in enumerate(splits.train):
        assert splits.open_image(by_number[i]).tobytes() == splits.open_image(item).tobytes()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"unlabelled": "folder:nowhere"}, "is not a folder"),
        ({"unlabelled": "photos"}, "must be folder:PATH"),
        ({"unlabelled": "folder:x", "protocol": "few_shot"}, "does not use unlabelled images"),
        ({"class_split": 3}, "protocol=transductive_zero_shot only"),
        ({"protocol": "few_shot"}, "also needs unlabelled images"),
        ({"rounds": 0}, "rounds must be at least 1"),
    ],
)
def test_what_is_refused(settings: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match=says):
        grip("digits", tmp_path, **settings)


def test_an_empty_folder_is_told_with_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(VlpromptError, match=r"holds no images: 1 file .* left out"):
        with_pool(few("empty"), f"folder:{tmp_path}")


# The estimator


def features_of(each: int = 4) -> tuple[Any, Any]:
    splits = few("estimator", each)
    bank = ImageFeed(splits, small_clip(), Loading()).bank()
    return bank.features[0].numpy(), [item.class_name for item in splits.train]


def fitted(X: Any, y: Any = None, names: Any = None, **fit: Any) -> PromptClassifier:
    options = {"rounds": 2, "n_ctx": 2}
    classifier = PromptClassifier("grip", small_clip(), class_names=names, epochs=2, batch_size=8, options=options)
    return classifier.fit(X, y, **fit)


def test_a_second_x_is_the_same_as_labels_of_minus_one() -> None:
    X, y = features_of()
    half = [i % 2 == 0 for i in range(len(y))]
    labelled = [i for i, kept in enumerate(half) if kept]
    order = labelled + [i for i, kept in enumerate(half) if not kept]
    behind = fitted(X[labelled], [y[i] for i in labelled], X_unlabelled=X[order[len(labelled) :]])
    mixed = np.array([y[i] if half[i] else -1 for i in order], dtype=object)
    marked = fitted(X[order], mixed)
    assert (behind.predict_proba(X) == marked.predict_proba(X)).all()
    last = marked.pseudo_labels_[-1]
    assert set(last["label"]) <= set(y)
    assert (last["index"] >= len(labelled)).all()
    assert len(marked.pseudo_labels_) == 2
    assert (last["confidence"] > 0).all()


def test_no_image_needs_a_label_where_names_are_known() -> None:
    X, y = features_of()
    names = sorted(set(y))
    found = fitted(X, [-1] * len(X), names)
    assert found.classes_.tolist() == list(range(len(names)))
    named = fitted(X, [-1] * len(X), {name: name for name in names})
    assert (named.predict(X) == np.array(names)[found.predict(X)]).all()


def test_what_the_estimator_says_of_missing_labels() -> None:
    X, y = features_of()
    with pytest.raises(VlpromptError, match="no image has a label, so class_names"):
        fitted(X, [-1] * len(X))
    with pytest.raises(VlpromptError, match="give X_unlabelled, or label them -1"):
        fitted(X, y)
    with pytest.raises(VlpromptError, match="coop learns from labelled images only"):
        PromptClassifier("coop", small_clip()).fit(X, y, X_unlabelled=X)
    with pytest.raises(VlpromptError, match="both be images, or both be features"):
        fitted(X, y, X_unlabelled=["a.png"])
    signs = PromptClassifier("coop", small_clip(), epochs=1).fit(X, [-1, 1] * (len(X) // 2))
    assert signs.classes_.tolist() == [-1, 1], "to a method that needs labels, -1 is one"


def test_photos_without_labels_stand_beside_labelled_images(photos: Path) -> None:
    splits = few("photos", each=2)
    images = [splits.open_image(item) for item in splits.train]
    paths = sorted(str(path) for path in photos.rglob("*.png"))
    found = fitted(images, [item.label for item in splits.train], X_unlabelled=paths)
    assert found.pseudo_labels_[0]["index"].min() >= len(images)


# UPL


def test_an_ensembles_logits_are_the_mean_of_its_members(tmp_path: Path) -> None:
    options = {"protocol": "unsupervised", "labeler": "top_k(k=3)"} | FAST
    run(method="upl", dataset=few("upl"), clip=small_clip(), members=2, output=str(tmp_path), **options)
    state = learnt(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("train*")) == ["train-member-1.jsonl", "train-member-2.jsonl"]
    assert not torch.equal(state["prompt.ctx"], state["others.0"])
    learner = make("upl", names=few("x").class_names, members=2, n_ctx=2).eval()
    learner.load_state_dict(state)
    v = small_clip().encode_text(["a", "b"])
    single = make("upl", names=few("x").class_names, n_ctx=2).eval()
    each = []
    for name in ("prompt.ctx", "others.0"):
        single.load_state_dict({"prompt.ctx": state[name]})
        each.append(single.classify(v))
    torch.testing.assert_close(learner.classify(v), torch.stack(each).mean(dim=0))


def test_the_first_member_learns_what_a_single_context_learns(tmp_path: Path) -> None:
    options = {"protocol": "unsupervised", "labeler": "top_k(k=3)"} | FAST
    for count in (1, 2):
        run(method="upl", dataset=few(f"upl-{count}"), clip=small_clip(), members=count,
            output=str(tmp_path / str(count)), **options)  # fmt: skip
    one_, two = learnt(tmp_path / "1"), learnt(tmp_path / "2")
    torch.testing.assert_close(two["prompt.ctx"], one_["prompt.ctx"])


def test_several_backbones_label_by_their_mean_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    other = small_clip(quick_gelu=False)
    monkeypatch.setattr(upl, "shared_clip", lambda name, *_: {"one": small_clip(), "other": other}[name])
    learner = make("upl", names=few("x").class_names, labelled_by=["one", "other@tag"], labeler="leaderboard(k=2)")
    feed = ImageFeed(replace(few("star"), pool=without_labels(few("x").train)), small_clip(), Loading())
    single = make("upl", names=few("x").class_names)
    said = [single._zero_shot(feed, clip) for clip in (small_clip(), other)]
    found, mean = learner.label(feed), torch.stack(said).mean(dim=0)
    torch.testing.assert_close(found.confidence, mean[found.index, found.label])
    assert not torch.allclose(said[0], said[1], atol=1e-5)
