"""TPT from learners, and DiffTPT: where a context starts, and views that a generator made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vlprompt import VlpromptError, load_learner, load_split, run
from vlprompt.cli.predict import main as predict
from vlprompt.data import eval_transform
from vlprompt.data.generated import GeneratedViews
from vlprompt.evaluation import score
from vlprompt.evaluation.prediction import image_logits
from vlprompt.methods.test_time.difftpt import resembling_views
from vlprompt.testing import NAMES, fit, make, small_clip, toy_batch

VIEWS = {"n_views": 4, "fraction": 0.5}
MADE = {"n_views": 2, "n_generated": 3, "fraction": 0.5, "steps_per_image": 2}


def views_of(images: int = 3, views: int = 4) -> torch.Tensor:
    return toy_batch(images * views)["image"].unflatten(0, (images, views))


# TPT from a learner


@pytest.mark.parametrize(("method", "conditional"), [("coop", False), ("cocoop", True)])
def test_tpt_starts_from_a_learner(method: str, conditional: bool, tmp_path: Path) -> None:
    learnt, views = make(method, ctx_init="a photo of a"), views_of()
    fit(learnt, 2, lr=0.05)
    learnt.eval().save_pretrained(tmp_path / method)
    settings = {"init_from": str(tmp_path / method), "conditional": conditional, **VIEWS}
    still = make("tpt", steps_per_image=0, **settings).eval()
    with torch.no_grad():
        expected = learnt({"image": views[:, 0]}).logits
        torch.testing.assert_close(still.predict({"views": views}), expected, msg="no step is the learner itself")
        torch.testing.assert_close(still({"image": views[:, 0]}).logits, expected, msg="and so is the untuned forward")
    tuned = make("tpt", **settings).eval()
    logits = tuned.predict({"views": views})
    assert not torch.allclose(logits, expected, atol=1e-4)
    torch.testing.assert_close(tuned.predict({"views": views[1:2]}), logits[1:2], msg="alone as among others")
    turned = tuned.predict({"views": views.flip(0)}).flip(0)
    assert torch.equal(turned, logits)
    tuned.save_pretrained(tmp_path / "tpt")
    assert torch.equal(load_learner(tmp_path / "tpt", tuned.clip).predict({"views": views}), logits)


def test_what_conditional_tpt_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match="starts from a saved CoCoOp learner: say init_from"):
        run(method="tpt", conditional=True, dataset="digits", quiet=True, output=str(tmp_path))
    with pytest.raises(VlpromptError, match="one context for all classes"):
        make("tpt", conditional=True, class_specific=True)
    make("coop").save_pretrained(tmp_path / "coop")
    with pytest.raises(VlpromptError, match="do not fit tpt"):
        make("tpt", conditional=True, init_from=str(tmp_path / "coop"))


# DiffTPT


def test_views_are_kept_that_resemble_the_image_and_then_the_surest() -> None:
    logits = torch.randn(11, 7, generator=torch.Generator().manual_seed(0))
    kept = resembling_views(logits, 0.65)
    alike = F.cosine_similarity(logits[1:], logits[:1])
    assert kept[0] == 0
    assert set(kept[1:].tolist()) == {int(i) + 1 for i in alike.topk(6).indices}
    learner = make("difftpt", similar=0.65, fraction=0.45)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert learner.choose_views(logits).tolist() == kept[entropy[kept].argsort()[:3]].tolist()
    assert learner.choose_views(logits[:1]).tolist() == [0], "an image without views is tuned on by itself"


def test_difftpt_with_all_views_is_tpt() -> None:
    views = views_of()
    settings = {"n_views": 4, "fraction": 0.5, "steps_per_image": 2}
    found = make("difftpt", similar=1.0, **settings).eval().predict({"views": views})
    torch.testing.assert_close(found, make("tpt", **settings).eval().predict({"views": views}))


def generate(folder: Path, names: list[str], count: int, seed: int = 0) -> None:
    """Images of noise in the place of a generator's, numbered from 0."""
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        for i in range(count):
            pixels = torch.randint(0, 256, (24, 24, 3), dtype=torch.uint8, generator=generator)
            file = folder / f"{Path(name).with_suffix('')}_{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(file)


def test_generated_views_are_found_by_the_images_path(tmp_path: Path) -> None:
    generate(tmp_path, ["a/1.jpg", "b/1.jpg", "cat_3.jpg"], 11)
    views = GeneratedViews(str(tmp_path), 11, eval_transform(small_clip()))
    assert views.names("a/1.jpg")[-1] == "a/1_10.png", "in the order of their numbers"
    assert views.names("/data/photos/b/1.jpeg")[0] == "b/1_0.png"
    assert views.names("cat_3.jpg")[0] == "cat_3_0.png"
    assert views.read("a/1.jpg").shape == (11, 3, 32, 32)
    views.check(["a/1.jpg", "b/1.jpg"])
    with pytest.raises(VlpromptError, match=r"x/a/1.jpg and y/a/1.jpg have the same generated views a/1_0"):
        views.check(["x/a/1.jpg", "y/a/1.jpg"])
    with pytest.raises(VlpromptError, match=r"has 0 generated views of c.png, and 11 are needed"):
        views.check(["c.png"])
    (tmp_path / "b" / "1_4.png").unlink()
    gap = GeneratedViews(str(tmp_path), 11, eval_transform(small_clip()))
    with pytest.raises(VlpromptError, match=r"has 10 generated views of b/1.jpg, and 11 are needed"):
        gap.check(["a/1.jpg", "b/1.jpg"])


@pytest.mark.parametrize(
    ("make_folder", "message"),
    [
        (lambda path: str(path / "none"), "there is no folder"),
        (lambda path: str(path), "has no generated views"),
        (lambda path: None, "say generated=FOLDER"),
    ],
)
def test_a_run_without_generated_views_is_refused(make_folder, message: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    settings = {"generated": make_folder(tmp_path), "clip": small_clip(), "output": str(tmp_path / "runs")}
    with pytest.raises(VlpromptError, match=message):
        run(method="difftpt", dataset="digits", limit=2, quiet=True, **settings)


def test_difftpt_reads_generated_views_in_runs_and_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = load_split("digits")
    splits = replace(whole, name="few-generated", test=whole.test[::60][:4])
    names = [item.path for item in splits.test]
    generate(tmp_path / "made", names, 3)
    settings = {"generated": str(tmp_path / "made"), **MADE}
    learner = make("difftpt", names=splits.class_names, **settings).eval()
    found = score(learner, splits).logits
    seen = []
    predicted = learner.predict
    learner.predict = lambda batch: seen.append(batch["views"].shape) or predicted(batch)
    one = score(learner, replace(splits, test=splits.test[2:3])).logits
    assert seen == [(1, 5, 3, 32, 32)], "the crop, a random one and three generated"
    assert torch.equal(one, found[2:3]), "each image is by itself"
    other = make("difftpt", names=splits.class_names, **MADE).eval()
    assert not torch.allclose(score(other, splits).logits, found, atol=1e-4), "generated views bear on it"

    files = [str(tmp_path / "photos" / Path(name).with_suffix(".png")) for name in names]
    for item, file in zip(splits.test, files, strict=True):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        splits.open_image(item).save(file)
    torch.testing.assert_close(image_logits(make("difftpt", names=splits.class_names, **settings), files), found)
    with pytest.raises(VlpromptError, match="give paths instead of images"):
        image_logits(make("difftpt", **settings), [Image.new("RGB", (32, 32))])

    tiny = {"backbone": "vlprompt-tiny", "device": "cpu", "quiet": True, "output": str(tmp_path / "runs")}
    run(method="difftpt", dataset=splits, name="one", **settings, **tiny)
    assert predict([f"learner={tmp_path / 'runs' / 'one'}", "format=jsonl", *files]) == 0
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]) == 4
    strange = load_learner(tmp_path / "runs" / "one" / "learner", device="cpu")
    with pytest.raises(VlpromptError, match="may not name files"):
        image_logits(strange, files)


def test_class_order_permutes_the_logits() -> None:
    views, order = views_of(), [3, 0, 4, 1, 2]
    permuted = make("difftpt", names=tuple(NAMES[i] for i in order), **VIEWS).eval().predict({"views": views})
    expected = make("difftpt", **VIEWS).eval().predict({"views": views})[:, order]
    torch.testing.assert_close(permuted, expected, rtol=1e-3, atol=1e-3)
