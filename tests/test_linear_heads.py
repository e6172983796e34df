"""What heads that are linear in the image features promise: probes fitted to images alone, or beside text."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from vlprompt import PromptClassifier, VlpromptError, load_learner
from vlprompt.data import FeatureBank
from vlprompt.learner.held_out import Selection
from vlprompt.methods.heads.lp_plus_plus import StepSizes
from vlprompt.saving.export import export_learner
from vlprompt.testing import NAMES, logits_of, make, small_clip, toy_batch

LINEAR = ("gda", "linear_probe", "lp_plus_plus")
CLASSES, WIDTH = len(NAMES), 64


def samples(images: int, seed: int = 0, spread: float = 1.0):
    """Features (1, N, D) around a direction a class, and labels."""
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(images) % CLASSES
    return 3 * torch.eye(CLASSES, WIDTH)[labels][None] + spread * torch.randn(
        1, images, WIDTH, generator=generator
    ), labels


def feed_of(train, held_out=None, selection: Selection | None = None) -> SimpleNamespace:
    banks = {"labelled": train, "val": held_out}

    def bank(source="labelled", *, views=1, clip=None):
        features, labels = banks[source]
        return FeatureBank(features, labels)

    return SimpleNamespace(bank=bank, selection=selection or Selection())


def fitted(method: str, data, **settings):
    learner = make(method, **settings)
    learner.learn(feed_of(data), None)
    return learner.eval()


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("shots", [2, 6])
def test_a_head_tells_its_classes_apart(method: str, shots: int) -> None:
    learner = fitted(
        method, samples(shots * CLASSES, spread=0.3), **({"inverse_strength": 100.0} if "probe" in method else {})
    )
    features, labels = samples(100, seed=1, spread=0.3)
    assert (learner.classify(features[0]).argmax(dim=1) == labels).double().mean() > 0.9
    assert all(tensor.dtype == torch.float32 for tensor in learner.state_dict().values())


@pytest.mark.parametrize("method", LINEAR)
def test_the_order_of_classes_permutes_the_logits(method: str) -> None:
    features, labels = samples(20)
    order = torch.tensor([3, 0, 4, 1, 2])
    one = fitted(method, (features, labels))
    other = fitted(method, (features, order.argsort()[labels]), names=tuple(NAMES[i] for i in order))
    torch.testing.assert_close(logits_of(other), logits_of(one)[:, order], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", LINEAR)
def test_linear_heads_are_saved_exported_and_estimated(method: str, tmp_path: Path) -> None:
    features, labels = samples(20)
    found = PromptClassifier(method, small_clip(), class_names=dict(enumerate(NAMES))).fit(
        features[0].numpy(), labels.numpy()
    )
    learner = found.learner_
    folder = learner.save_pretrained(tmp_path / "learner")
    assert torch.equal(logits_of(load_learner(folder, clip=learner.clip)), logits_of(learner))
    export_learner(learner, "matrix", tmp_path / "head.safetensors")
    head = load_file(tmp_path / "head.safetensors")
    v = learner.image_features(toy_batch()["image"])
    logits = head["logit_scale"] * v @ head["weight"].T + head["logit_bias"]
    torch.testing.assert_close(logits, logits_of(learner), rtol=1e-4, atol=1e-4)
    state = load_file(folder / "learner.safetensors")
    save_file(state | {"w": state["w"][:, :-1].contiguous()}, folder / "learner.safetensors")
    with pytest.raises(VlpromptError) as error:
        load_learner(folder, clip=learner.clip)
    assert "\n" not in str(error.value)


def test_a_probe_needs_an_image_of_each_class() -> None:
    features, labels = samples(20)
    with pytest.raises(VlpromptError, match=r"linear_probe needs an image of each class, and '.+' has none"):
        fitted("linear_probe", (features[:, labels != 2], labels[labels != 2]))


def test_a_probe_takes_one_image_of_each_class_for_what_it_is() -> None:
    features, labels = samples(20)
    first = torch.stack([(labels == y).nonzero()[0, 0] for y in labels.unique()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn would take so few images for a regression
        learner = fitted("linear_probe", (features[:, first], labels[first]))
    assert (
        learner.score(F.normalize(features[0, first], dim=-1), learner.text_features()).argmax(1) == labels[first]
    ).all()


def test_a_probe_of_two_classes_is_a_softmax_of_two() -> None:
    features, labels = samples(40, spread=3)
    keep = labels < 2
    learner = fitted("linear_probe", (features[:, keep], labels[keep]), names=("okapi", "tapir"))
    from sklearn.linear_model import LogisticRegression

    x = F.normalize(features[0, keep], dim=-1)
    expected = LogisticRegression(C=1.0, max_iter=1000).fit(x.numpy(), labels[keep].numpy()).predict_proba(x.numpy())
    found = learner.classify(x).softmax(dim=1)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected).double(), rtol=1e-4, atol=1e-5)


def test_a_probe_chooses_its_strength_and_keeps_that_fit() -> None:
    data, held_out = samples(20, spread=2), samples(60, seed=3, spread=2)
    learner = make("linear_probe", grid={"inverse_strength": [1e-6, 100.0, 1e6]})
    feed = feed_of(data, held_out, Selection("val"))
    learner.learn(feed, None)
    [search] = feed.selection.searches
    value = search.chosen["inverse_strength"]
    assert float(learner.inverse_strength) == pytest.approx(value)
    plain = fitted("linear_probe", data, inverse_strength=value)
    assert torch.equal(learner.w, plain.w)
    right = (learner.eval().classify(held_out[0][0]).argmax(dim=1) == held_out[1]).double().mean()
    assert 100 * float(right) == pytest.approx(search.summary()["accuracy"])


def test_lp_plus_plus_steps_downhill_by_sizes_of_its_own() -> None:
    features, labels = samples(20)
    learner = make("lp_plus_plus", full_steps=60)
    v, t = F.normalize(features[0], dim=-1), learner.text_features()
    losses = [loss for _, loss in learner.steps(v, labels, t)]
    assert losses[-1] < 0.1 * losses[0]
    twice = StepSizes.of(v.repeat(2, 1), labels.repeat(2), t)  # a mean loss of images that come twice is the same
    torch.testing.assert_close(
        torch.tensor([*vars(twice).values()]), torch.tensor([*vars(StepSizes.of(v, labels, t)).values()])
    )


def test_lp_plus_plus_takes_the_best_step_where_one_is_chosen() -> None:
    data, held_out = samples(10, spread=2), samples(60, seed=3, spread=2)
    learner, selection = make("lp_plus_plus", full_steps=40), Selection(epoch="val")
    learner.learn(feed_of(data, held_out, selection), None)
    [search] = selection.searches
    accuracy = [point["accuracy"] for point in search.points]
    assert len(accuracy) == 40
    assert search.chosen == {"step": max(i for i, a in enumerate(accuracy, start=1) if a == max(accuracy))}
    short = fitted("lp_plus_plus", data, full_steps=int(search.chosen["step"]))
    assert torch.equal(learner.w, short.w)
    assert replace(search, ties="").on == "val"
