"""What UPL and TPT promise beyond their authors' numbers: a pool, and a test image at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vlprompt import PromptClassifier, load_learner, load_split, run
from vlprompt.cli.predict import main as predict
from vlprompt.clip.edits import FullLength
from vlprompt.data.splits import DatasetSplits
from vlprompt.evaluation import score
from vlprompt.evaluation.prediction import image_logits
from vlprompt.methods.test_time.tpt import entropy_of_mean, surest_views
from vlprompt.testing import NAMES, make, small_clip, toy_batch


def few(train: int = 20, test: int = 12, name: str = "digits") -> DatasetSplits:
    """Digits with some of their images, spread over the classes."""
    whole = load_split("digits")
    parts = {"train": train, "test": test}
    kept = {part: getattr(whole, part)[:: len(getattr(whole, part)) // n][:n] for part, n in parts.items()}
    return replace(whole, name=name, val=(), **kept)


# UPL


def test_upl_cannot_see_the_pools_labels(tmp_path: Path) -> None:
    right = few(train=40, name="pool-right")
    names = right.class_names
    wrong = [(item, (item.label + 3) % len(names)) for item in right.train]
    poisoned = [replace(item, label=label, class_name=names[label]) for item, label in wrong]
    learnt = []
    for splits in (right, replace(right, name="pool-poisoned", train=poisoned)):
        output = tmp_path / splits.name
        result = run(
            method="upl", protocol="unsupervised", dataset=splits, clip=small_clip(), epochs=2, batch_size=4, n_ctx=2,
            labeler="top_k(k=2)", views=1, quiet=True, output=str(output),
        )  # fmt: skip
        assert (result.data["train_images"], result.data["pool_images"]) == (0, 40)
        files = [next(output.rglob(name)) for name in ("learner/*.safetensors", "predictions.safetensors")]
        learnt.append([load_file(file) for file in files])
    for mine, theirs in zip(*learnt, strict=True):
        assert mine.keys() == theirs.keys() != set()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


# TPT

TPT = {"n_views": 4, "fraction": 0.5}


def test_identical_views_are_as_uncertain_as_one() -> None:
    logits = torch.randn(1, 7, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(dim=1)
    torch.testing.assert_close(entropy_of_mean(logits.expand(9, 7)), -(p * p.log()).sum())
    assert len(surest_views(logits.expand(9, 7), 0.01)) == 1


def views_of(images: int = 3, views: int = 4) -> Tensor:
    return toy_batch(images * views)["image"].unflatten(0, (images, views))


def test_tpt_that_takes_no_step_is_zero_shot() -> None:
    views = views_of()
    zero_shot = make("zero_shot", template=["a photo of a {}."])(views[:, 0])
    for still in ({"tuning_lr": 0.0}, {"steps_per_image": 0}):
        torch.testing.assert_close(make("tpt", **TPT, **still).eval().predict({"views": views}), zero_shot)
    assert not torch.allclose(make("tpt", **TPT).eval().predict({"views": views}), zero_shot, atol=1e-4)


def test_tpt_sees_each_test_image_by_itself() -> None:
    splits = few(test=8)
    learner = make("tpt", names=splits.class_names, **TPT)
    order = [5, 2, 7, 0, 1, 6, 4, 3]
    found = score(learner, splits).logits
    moved = score(learner, replace(splits, test=[splits.test[i] for i in order])).logits
    assert torch.equal(moved, found[order])
    assert torch.equal(score(learner, replace(splits, test=splits.test[3:4])).logits, found[3:4])


@pytest.mark.parametrize("names", [NAMES, ("boeing 737-200", "boeing 737-300", "an owl")], ids=["different", "alike"])
def test_tpt_is_the_same_where_no_prefix_is_shared(names: tuple[str, ...]) -> None:
    learner, views = make("tpt", names=names, **TPT).eval(), views_of()
    v = learner.image_features(views[0])
    tuned, logits = learner.tune(v), learner.predict({"views": views})
    learner.edits.append(FullLength())
    torch.testing.assert_close(learner.tune(v), tuned)
    torch.testing.assert_close(learner.predict({"views": views}), logits)


def test_tpt_names_plain_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    splits, tiny = few(test=3), {"backbone": "vlprompt-tiny", "device": "cpu"}
    output = tmp_path / "run"
    run(method="tpt", protocol="test_time", dataset="digits", limit=3, quiet=True, output=str(output), **TPT, **tiny)
    images = [splits.open_image(item) for item in splits.test]
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    for image, file in zip(images, files, strict=True):
        image.save(file)
    capsys.readouterr()
    folder = next(output.rglob("learner"))
    assert predict([f"learner={folder}", *files, "format=jsonl"]) == 0
    said = [json.loads(line)["classes"][0] for line in capsys.readouterr().out.splitlines()]

    named = {name: name for name in splits.class_names}
    estimator = PromptClassifier("tpt", options=TPT, class_names=named, **tiny)
    estimator.fit(images, [item.class_name for item in splits.test])
    assert estimator.predict(images).tolist() == said
    logits = image_logits(load_learner(folder, device="cpu"), images)
    order = [splits.class_names.index(name) for name in estimator.classes_]
    torch.testing.assert_close(image_logits(estimator.learner_, files), logits[:, order])


def test_the_estimator_gives_a_method_without_labels_a_pool() -> None:
    features = torch.randn(12, small_clip().embed_dim, generator=torch.Generator().manual_seed(0)).numpy()
    right, wrong = ["cat", "dog"] * 6, ["dog"] * 3 + ["cat"] * 9
    fitted = [PromptClassifier("upl", small_clip(), epochs=1).fit(features, y) for y in (right, wrong)]
    assert (fitted[0].predict_proba(features) == fitted[1].predict_proba(features)).all(), "y names the classes alone"


@pytest.mark.parametrize("augmix", [False, True])
def test_views_are_the_same_in_any_number_of_threads(augmix: bool) -> None:
    learner, splits = make("tpt", small_clip(), n_views=4, augmix=augmix).eval(), load_split("digits")
    images = [splits.open_image(item).resize((64, 48)) for item in splits.test[:24]]
    alone = image_logits(learner, images, threads=0)
    assert not torch.equal(alone[0], alone[1])
    for threads in (2, 8):
        assert torch.equal(image_logits(learner, images, threads=threads, batch_size=24), alone)
