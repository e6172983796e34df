"""Heads that take their class features, and image features where they are its own, from a saved learner."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import new_processes
import numpy as np
import pytest
import torch
from open_clip import SimpleTokenizer
from test_joint import Feed, features

from vlprompt import FrozenCLIP, PromptClassifier, VlpromptError, export_learner, load_learner, run
from vlprompt.base.layout import CARD
from vlprompt.cli.evaluate import main as evaluate
from vlprompt.data import FeatureBank, eval_transform, few_shot_split, load_split
from vlprompt.learner import PromptLearner
from vlprompt.learner.recording import ImageRecorder, extra_edits
from vlprompt.learner.registration import METHODS
from vlprompt.methods.heads.on_text import BesideText, OnText
from vlprompt.saving.push import push_folder
from vlprompt.testing import NAMES, NEW_NAMES, fit, logits_of, make, make_ready, small_clip, small_model, toy_batch

CLASSES = len(NAMES)
SOURCE = {"name": "ViT-B-32", "pretrained": None, "checkpoint": None}
HEADS = [name for name in METHODS.names() if issubclass(METHODS.get(name), OnText)]
BESIDE = [name for name in HEADS if METHODS.get(name).text_features is BesideText.text_features]
Saved = Callable[..., str]


def score_elsewhere(learner: Path, images: Path, logits: Path) -> None:
    """Write what a saved learner says of images."""
    head = load_learner(learner, device="cpu")
    np.save(logits, head(torch.from_numpy(np.load(images))).detach().numpy())


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Saves a learner and returns its folder."""

    def save(method: str, **settings: Any) -> str:
        learner = make(method, **settings).eval()
        return str(learner.save_pretrained(tmp_path / f"saved {method}"))

    return save


def filled(head: PromptLearner, x: torch.Tensor) -> PromptLearner:
    """A head that has learnt from features in hand, where it learns without a loop."""
    if head.facts.labels == "needed" and not head.trainable_parameters():
        head.learn(Feed(x, torch.arange(len(x)) % CLASSES), lambda *_, **__: [])
    return head.eval()


def test_every_head_with_text_takes_a_learner() -> None:
    without_text = {"cupl", "linear_probe"}
    folder = Path(__file__).parents[1] / "vlprompt" / "methods" / "heads"
    assert {name for name in METHODS.names() if (folder / f"{name}.py").exists()} - without_text <= {*HEADS}
    assert {"tip_adapter", "tip_adapter_f", "zs_lp", "clap", "taskres", "gda"} <= {*HEADS}


@pytest.mark.parametrize("method", HEADS)
def test_a_head_on_coop_is_the_head_fed_with_coops_matrix(
    method: str, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    coop, x = make("coop", ctx_init="a blurry picture of a").eval(), features(3 * CLASSES, 7)
    on_top, plain = filled(make(method, text=saved("coop", ctx_init="a blurry picture of a")), x), make(method)
    found, matrix = on_top.classify(x), coop.classifier_matrix()
    assert on_top.facts == plain.facts
    assert on_top.tower is on_top.clip
    assert not torch.allclose(found, filled(plain, x).classify(x))

    def by_hand(
        self: PromptLearner, templates: Any = None, normalise_first: bool = True, normalise_last: bool = True
    ) -> torch.Tensor:
        usual = self.teacher.text_features(self.class_names, self.templates, normalise_first, normalise_last)
        return matrix if normalise_last else matrix * usual.norm(dim=1, keepdim=True)

    monkeypatch.setattr(PromptLearner, "frozen_text", by_hand)
    torch.testing.assert_close(found, filled(make(method), x).classify(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", BESIDE)
def test_a_head_on_a_saved_zero_shot_is_the_head_by_itself_bit_for_bit(method: str, saved: Saved) -> None:
    x = features(3 * CLASSES, 7)
    found = filled(make(method, text=saved("zero_shot")), x).classify(x)
    assert torch.equal(found, filled(make(method), x).classify(x))


def test_weights_that_are_not_normalised_keep_their_length_and_text_samples_are_the_learners(saved: Saved) -> None:
    place = saved("coop", ctx_init="a blurry picture of a")
    for method in ("zs_lp", "taskres"):
        mine, theirs = make(method, text=place).encode_text(), make(method).encode_text()
        torch.testing.assert_close(mine.norm(dim=1), theirs.norm(dim=1))
        assert not torch.allclose(mine, theirs)
    probe = make("cross_modal_lp", text=place)
    assert torch.equal(probe.texts, probe.weight)


def test_images_are_those_of_maple(saved: Saved) -> None:
    place, images = saved("maple", seed=5), toy_batch()["image"]
    maple, frozen = load_learner(place, small_clip()), small_clip().encode_image(images)
    for method in ("tip_adapter", "gda", "clap"):
        head = make_ready(method, text=place).eval()
        assert not head.facts.cacheable_images
        torch.testing.assert_close(head.image_features(images), maple.image_features(images))
        assert not torch.allclose(head.image_features(images), torch.nn.functional.normalize(frozen, dim=1))
        assert head.tower.identity() != head.clip.identity()
    empty = make("tip_adapter", text=place).eval()  # without keys
    torch.testing.assert_close(logits_of(empty), logits_of(maple))
    other = make("tip_adapter", text=saved("maple", seed=6))
    assert other.tower.identity() != empty.tower.identity()


def test_a_frozen_objective_is_asked_of_frozen_images(saved: Saved) -> None:
    place = saved("maple", seed=5)
    assert not make("clip_adapter", text=place).learns_from_images
    asked = make("clip_adapter", text=place, objective=["ce", "logit_kl"])
    assert asked.learns_from_images
    assert not asked.predicts_from_images


def test_an_ensemble_mixes_with_the_frozen_model_on_its_own_images(saved: Saved) -> None:
    place, images = saved("maple", seed=5), toy_batch()["image"]
    mixed = make_ready("gda", text=place, ensemble="logits(weight=0.25)").eval()
    alone, frozen = make_ready("gda", text=place).eval(), make("zero_shot").eval()
    torch.testing.assert_close(mixed(images), 0.25 * alone(images) + 0.75 * frozen(images))
    assert mixed.predicts_from_images
    assert not mixed.facts.cacheable_images
    assert not alone.predicts_from_images
    with pytest.raises(VlpromptError, match="needs images"):
        mixed.predict({"image_features": alone.image_features(images)})
    with pytest.raises(VlpromptError, match="changes image features"):
        make("clap", text=place, ensemble="weights")


@pytest.mark.parametrize("method", ["coop", "maple"])
def test_a_folder_holds_what_the_head_stands_on(method: str, saved: Saved, tmp_path: Path) -> None:
    place = saved(method, seed=5)
    head = make_ready("tip_adapter_f", text=place)
    fit(head, 2)
    before = {name: tensor.clone() for name, tensor in head.built_on.learner.state_dict().items()}
    head.save_pretrained(tmp_path / "head")
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.built_on.learner.state_dict().items())
    assert {name.split(".")[0] for name in head.state_dict()} == {"keys", "labels", "alpha", "beta"}
    shutil.rmtree(place)
    again = load_learner(tmp_path / "head", small_clip())
    assert torch.equal(logits_of(again), logits_of(head))
    assert again.facts == head.facts
    assert again.built_on.identity == head.built_on.identity
    assert again.tower.identity() == head.tower.identity()  # its bank is found again

    again.save_pretrained(tmp_path / "copy")
    make(method, seed=9).save_pretrained(tmp_path / "copy" / "text")
    with pytest.raises(VlpromptError, match=r"is not the one that .* was saved with"):
        load_learner(tmp_path / "copy", small_clip())
    shutil.rmtree(tmp_path / "copy" / "text")
    with pytest.raises(VlpromptError, match="builds on a learner that is missing from its folder text"):
        load_learner(tmp_path / "copy", small_clip())


def test_an_export_and_a_pickle_have_the_prompts_beneath(saved: Saved, tmp_path: Path) -> None:
    head = make_ready("gda", text=saved("maple", seed=5)).eval()
    again = pickle.loads(pickle.dumps(head))
    assert torch.equal(logits_of(again), logits_of(head))
    assert again.tower.identity() == head.tower.identity()
    file = export_learner(head, "torch", tmp_path / "head.pt2")  # which compares it with the learner
    assert json.loads(file.with_suffix(".json").read_text())["image_tower"] == "prompted"
    with extra_edits(head, looking := ImageRecorder()):
        head.image_features(toy_batch()["image"])
    assert looking.states[0][0].shape[1] > 17  # tokens: patches, CLS and MaPLe's


def test_what_is_sent_to_the_hub_has_the_learner_beneath(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = make_ready("gda", text=saved("coop"))
    head.save_pretrained(tmp_path / "head")
    monkeypatch.setattr("vlprompt.saving.push.upload", lambda folder, *_: shutil.copytree(folder, tmp_path / "sent"))
    push_folder(tmp_path / "head", "user/name")
    assert torch.equal(logits_of(load_learner(tmp_path / "sent", small_clip())), logits_of(head))
    assert str(tmp_path) not in (tmp_path / "sent" / "config.json").read_text()


def test_new_classes_are_scored_where_both_can(saved: Saved, tmp_path: Path) -> None:
    head = make("clip_adapter", text=saved("coop")).eval()
    head.set_class_names(NEW_NAMES)
    assert torch.equal(head.text_features(), make("coop", names=NEW_NAMES).eval().classifier_matrix())
    bound = make("clip_adapter", text=saved("coop", class_specific=True))
    assert not bound.facts.new_classes
    with pytest.raises(VlpromptError, match="cannot score new class names"):
        bound.set_class_names(NEW_NAMES)
    assert make("clip_adapter", text=str(head.save_pretrained(tmp_path / "head") / "text")).facts.new_classes


@pytest.mark.parametrize(
    ("method", "beneath", "refused"),
    [
        ("tip_adapter", "cocoop", "does not score with one matrix"),
        ("gda", "clip_adapter", "does not score with one matrix"),
        ("clap", "tpt", "which needs views of an image"),
        ("zlap", "transclip", "depend on other test images"),
    ],
)
def test_learners_without_class_features_are_refused(method: str, beneath: str, refused: str, saved: Saved) -> None:
    with pytest.raises(VlpromptError, match=f"the learner .*{refused}"):
        make(method, text=saved(beneath))


def test_a_learner_of_another_backbone_is_refused_but_for_its_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FrozenCLIP(small_model(embed_dim=32), SimpleTokenizer(), device="cpu", name="ViT-B-32", source=SOURCE)
    make("coop", other).save_pretrained(tmp_path / "other")
    monkeypatch.setattr("vlprompt.saving.folder.load_clip", lambda **_: other)
    with pytest.raises(VlpromptError, match="uses another backbone"):
        make("tip_adapter", text=str(tmp_path / "other"))
    assert make("transclip", text=str(tmp_path / "other")).predict({"image": toy_batch()["image"]}).shape == (
        10,
        CLASSES,
    )


def test_texts_come_from_one_place(saved: Saved) -> None:
    with pytest.raises(VlpromptError, match="from template or from text: give one of them"):
        make("zlap", template=["a photo of a {}."], text=saved("coop"))
    with pytest.raises(VlpromptError, match="no saved learner in"):
        make("gda", text="nowhere")


def test_transclip_stands_on_the_probabilities_of_whatever_predicts(tmp_path: Path) -> None:
    beneath = make("gda", fit_views=1).eval()
    beneath.learn(Feed(features(15, 7), torch.arange(15) % CLASSES), None)
    beneath.save_pretrained(tmp_path / "gda")
    learner, x = make("transclip", text=str(tmp_path / "gda")).eval(), features(40)
    [found] = learner.predict_all({"image_features": part} for part in x.split(9))
    expected = make("transclip").eval().assign(x, beneath.classify(x).log_softmax(dim=1), of_a_learner=True)
    torch.testing.assert_close(found, expected)
    learner.save_pretrained(tmp_path / "on top")
    again = load_learner(tmp_path / "on top", small_clip())
    assert torch.equal(again.predict({"image_features": x}), learner.predict({"image_features": x}))


def test_a_transclip_on_images_of_a_way_of_their_own_is_handed_images(saved: Saved) -> None:
    learner = make("transclip", text=saved("vpt")).eval()
    assert learner.predict({"image": toy_batch()["image"]}).shape == (10, CLASSES)
    names, options = dict(enumerate(NAMES)), {"text": saved("vpt")}
    fitted = PromptClassifier("tip_adapter", small_clip(), class_names=names, options=options)
    with pytest.raises(VlpromptError, match="so it needs images"):
        fitted.fit(features(10).numpy(), torch.arange(10).numpy() % CLASSES)


def test_tip_adapter_on_maple_is_a_setting_of_a_run(tmp_path: Path) -> None:
    common: dict[str, Any] = {"dataset": "digits", "protocol": "few_shot", "shots": 1, "limit": 66, "quiet": True}
    common |= {"device": "cpu", "output": str(tmp_path)}
    run(method="maple", epochs=1, name="maple", **common)
    on_top = run(method="tip_adapter", fit_views=1, text=str(tmp_path / "maple"), name="top", **common)
    alone = run(method="tip_adapter", fit_views=1, name="alone", **common)
    assert on_top.id != alone.id
    assert on_top.rows[0].accuracy != alone.rows[0].accuracy
    assert on_top.rows[0].zero_shot == alone.rows[0].zero_shot
    assert evaluate([f"run={tmp_path / 'top'}"]) == 0
    head = load_learner(tmp_path / "top" / "learner")
    maple = load_learner(tmp_path / "maple" / "learner", head.clip)
    splits = few_shot_split(load_split("digits"), 1, 1)
    bank = FeatureBank.open_or_build(head.tower, splits, splits.train, transform=eval_transform(head.clip))
    frozen = FeatureBank.open_or_build(head.clip, splits, splits.train, transform=eval_transform(head.clip))
    assert bank.key != frozen.key
    images = torch.stack([eval_transform(head.clip)(splits.open_image(item)) for item in splits.train[:4]])
    torch.testing.assert_close(head.keys[:4], maple.image_features(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.nn.functional.normalize(bank.features[0], dim=1), head.keys)

    # without the run that it stands on, and in another process
    shutil.rmtree(tmp_path / "maple")
    np.save(tmp_path / "images.npy", images.numpy())
    files = [tmp_path / "top" / "learner", tmp_path / "images.npy", tmp_path / "logits.npy"]
    new_processes.finish(score_elsewhere, files, tmp_path / "said.txt")
    assert np.array_equal(np.load(tmp_path / "logits.npy"), head.eval()(images).detach().numpy())

    # and by its name
    told = {"method": "maple", "weights": head.clip.identity()["weights"]}
    assert told.items() <= on_top.beneath.items()
    assert (on_top.called, alone.called, alone.beneath) == ("tip_adapter on maple", "tip_adapter", None)
    card = (tmp_path / "top" / "learner" / CARD).read_text(encoding="utf-8")
    assert f"| stands on | maple (SHA-256 of its folder {on_top.beneath['sha256'][:16]}…" in card
    assert "# tip_adapter on maple on" in card
    assert "tip_adapter, 10 classes, on maple" in repr(head)


def test_the_estimator_fits_a_head_on_a_learner(saved: Saved) -> None:
    x, y = features(20), torch.arange(20) % CLASSES
    names = dict(enumerate(NAMES))
    on_top = PromptClassifier("gda", small_clip(), class_names=names, options={"text": saved("coop"), "fit_views": 1})
    expected = make("gda", text=saved("coop"), fit_views=1).eval()
    expected.learn(Feed(x, y), lambda *_, **__: [])
    found = torch.from_numpy(on_top.fit(x.numpy(), y.numpy()).predict_proba(x.numpy()))
    torch.testing.assert_close(found, expected.classify(x).detach().softmax(dim=1), rtol=1e-4, atol=1e-5)
