"""What GDA promises beyond its authors' numbers: Gaussians of any classes, of new ones and of images without labels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlprompt import PromptClassifier, VlpromptError, load_learner, run
from vlprompt.data import FeatureBank
from vlprompt.learner.held_out import Selection
from vlprompt.methods.heads import gaussians
from vlprompt.methods.heads.gaussians import fit_gaussians, fit_soft_gaussians, nearest_samples, synthesise
from vlprompt.saving.export import export_learner
from vlprompt.testing import NAMES, NEW_NAMES, logits_of, make, small_clip, toy_batch

NOTHING = Selection()


def samples(views: int = 3, images: int = 15, classes: int = 5, width: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    return torch.randn(views, images, width, generator=generator) + torch.eye(classes, width)[labels] * 3, labels


def feed_of(features: Tensor, labels: Tensor | None, selection: Selection = NOTHING) -> SimpleNamespace:
    """A feed that has features in hand."""
    return SimpleNamespace(bank=lambda *_, **__: FeatureBank(features, labels), selection=selection)


def fitted(features: Tensor, labels: Tensor, **settings):
    learner = make("gda", **settings)
    learner.learn(feed_of(features, labels), None)
    return learner.eval()


def test_gda_without_its_gaussians_is_zero_shot() -> None:
    assert torch.equal(logits_of(fitted(*samples(), alpha=0.0)), logits_of(make("zero_shot")))
    assert not torch.allclose(logits_of(fitted(*samples())), logits_of(make("zero_shot")), atol=1e-2)


def test_gda_does_not_look_at_the_order_of_classes_or_images() -> None:
    features, labels = samples()
    found, order = fit_gaussians(features, labels, 5), torch.tensor([3, 0, 4, 1, 2])
    moved = fit_gaussians(features, order.argsort()[labels], 5)  # class order[i] is now class i
    for ours, theirs in ((moved.means, found.means), (moved.w, found.w), (moved.b, found.b)):
        torch.testing.assert_close(ours, theirs[order])
    torch.testing.assert_close(moved.precision, found.precision)
    shuffled = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fit_gaussians(features[:, shuffled], labels[shuffled], 5).w, found.w)


def test_gda_learns_from_one_image_a_class() -> None:
    features, labels = samples(views=4, images=5)
    learner = fitted(features, labels)
    assert torch.equal(learner.classify(features[0]).argmax(dim=1), labels)
    alone = fit_gaussians(features[:1], labels, 5)  # which have no spread at all
    assert all(part.isfinite().all() for part in (alone.means, alone.w, alone.b))


def test_images_that_come_twice_leave_gdas_means() -> None:
    features, labels = samples()
    once, twice = fit_gaussians(features, labels, 5), fit_gaussians(features.repeat(1, 2, 1), labels.repeat(2), 5)
    torch.testing.assert_close(twice.means, once.means)


def test_gda_needs_an_image_of_each_class() -> None:
    features, labels = samples()
    with pytest.raises(VlpromptError, match="gda needs an image of each class, and label 2 has none"):
        fit_gaussians(features[:, labels != 2], labels[labels != 2], 5)


def test_a_fitted_gda_is_saved_with_all_that_it_scores_with(tmp_path: Path) -> None:
    learner = fitted(*samples())
    folder = learner.save_pretrained(tmp_path / "learner")
    again = load_learner(folder, clip=small_clip())
    assert torch.equal(logits_of(again), logits_of(learner))
    with pytest.raises(VlpromptError, match="bound to the classes"):
        again.set_class_names(["okapi", "tapir"])
    odd = tmp_path / "odd.safetensors"
    save_file(learner.state_dict() | {"w": torch.zeros(4, 64)}, odd)
    with pytest.raises(VlpromptError, match=r"w is \(4, 64\), \(5, 64\) is expected") as error:
        make("gda", init_from=str(odd))
    assert "\n" not in str(error.value)


def test_rare_classes_are_fitted_beside_common_ones() -> None:
    features, labels = samples(views=2, images=40)
    keep = torch.ones(40, dtype=torch.bool)
    keep[labels.eq(3).nonzero()[1:, 0]] = False  # one image of class 3, eight of all others
    found = fit_gaussians(features[:, keep], labels[keep], 5)
    x = F.normalize(features[:, keep].flatten(0, 1), dim=-1)
    torch.testing.assert_close(found.means[3].float(), x[labels[keep].repeat(2) == 3].mean(dim=0))
    assert ((x @ found.w.T + found.b).argmax(dim=1) == labels[keep].repeat(2)).all()


def test_a_covariance_that_cannot_be_inverted_is_named() -> None:
    with pytest.raises(VlpromptError, match=r"cannot invert the covariance of these features \(pinv\)"):
        gaussians.shrunk(torch.full((3, 3), float("nan"), dtype=torch.float64), 4)


def test_certain_probabilities_fit_as_labels_do() -> None:
    features, labels = samples(views=1, images=40)
    x = F.normalize(features[0], dim=-1)
    soft, hard = fit_soft_gaussians(x, F.one_hot(labels, 5)), fit_gaussians(features, labels, 5)
    torch.testing.assert_close(soft.means, hard.means)
    # the mean of the classes' covariances with divisor n, where the other has all samples' with N - 1
    scatter = sum((c := x[labels == k].double() - hard.means[k]).T @ c / 8 for k in range(5)) / 5
    torch.testing.assert_close(soft.precision, gaussians.shrunk(39 * scatter, 40))


def test_em_learns_from_images_without_labels() -> None:
    torch.manual_seed(0)
    learner = make("gda", unsupervised=True, fit_views=1).eval()
    labels = torch.arange(100) % 5
    text = learner.text_features()
    away = F.normalize(torch.randn(5, 64), dim=-1)  # where images are of each class: near its text, and elsewhere
    x = text[labels] + away[labels] + torch.randn(100, 64) / 12
    learner.learn(feed_of(x[None], None), None)
    zero_shot = learner.clip.similarity(F.normalize(x, dim=-1), text).argmax(dim=1)
    assert (learner.classify(x).argmax(dim=1) == labels).sum() > (zero_shot == labels).sum()
    assert learner.facts.labels == "none"


# New classes


def plain_classes(x: Tensor, text: Tensor, k: int, copies: int) -> tuple[Tensor, Tensor]:
    """Means and precision by the formulas as they are written, with an inverse for each class."""
    means, precision, d = [], 0, x.shape[1]
    x, text = x.double(), text.double()
    for t in text:
        near = x[(x @ t).argsort(descending=True)[:k]]
        means.append(torch.cat([near, t.expand(copies, -1)]).mean(dim=0))
        covariance = (near - t).T @ (near - t) / (k - 1)
        precision = precision + d * torch.linalg.inv((k - 1) * covariance + covariance.trace() * torch.eye(d))
    return torch.stack(means), precision / len(text)


def test_a_small_inverse_is_the_large_one() -> None:
    x, text = (F.normalize(torch.randn(n, 24, generator=torch.Generator().manual_seed(n)), dim=-1) for n in (90, 4))
    found, (means, precision) = synthesise(x, text, 12, 3), plain_classes(x, text, 12, 3)
    torch.testing.assert_close(found.means, means)
    torch.testing.assert_close(found.precision, precision)
    assert nearest_samples(x, text, 500).shape == (4, 90)  # no more than there are
    torch.testing.assert_close(synthesise(x, text, 12, 3, width=12).precision, precision / 2)


def test_new_classes_are_scored_if_they_are_made() -> None:
    learner = fitted(*samples(images=40), synthesise=True, neighbours=9)
    old = logits_of(learner)
    learner.set_class_names(NEW_NAMES)
    made = logits_of(learner)
    zero_shot = make("zero_shot", names=NEW_NAMES)
    assert not torch.allclose(made, logits_of(zero_shot), atol=1e-2)
    learner.alpha.fill_(0.0)
    assert torch.equal(logits_of(learner), logits_of(zero_shot))
    learner.alpha.fill_(1.0)
    learner.set_class_names(NAMES[::-1])
    torch.testing.assert_close(logits_of(learner), old.flip(1))
    learner.set_class_names([*NAMES, *NEW_NAMES])
    assert logits_of(learner).shape == (len(old), len(NAMES) + len(NEW_NAMES))


def test_a_learner_of_new_classes_is_loaded_for_them(tmp_path: Path) -> None:
    learner = fitted(*samples(images=40), synthesise=True)
    learner.set_class_names(NEW_NAMES)
    again = load_learner(learner.save_pretrained(tmp_path / "new"), clip=small_clip())
    assert torch.equal(logits_of(again), logits_of(learner))
    learner.set_class_names(NAMES)
    again.set_class_names(NAMES)
    assert torch.equal(logits_of(again), logits_of(learner))


@pytest.mark.parametrize("name", ["means", "text", "samples", "w", "b"])
def test_a_misshaped_learner_of_new_classes_is_refused(name: str, tmp_path: Path) -> None:
    folder = fitted(*samples(), synthesise=True).save_pretrained(tmp_path / "learner")
    tensors = load_file(folder / "learner.safetensors")
    save_file(tensors | {name: tensors[name][..., :-1].contiguous()}, folder / "learner.safetensors")
    with pytest.raises(VlpromptError) as error:
        load_learner(folder, clip=small_clip())
    assert "\n" not in str(error.value)


def test_new_classes_are_offered_for_base_to_new_and_not_for_other_datasets(tmp_path: Path) -> None:
    some = {"method": "gda", "shots": 2, "fit_views": 1, "quiet": True, "limit": 20, "output": str(tmp_path)}
    result = run(dataset="digits", protocol="base_to_new", **some)
    assert [row.target for row in result.rows] == ["base", "new"]
    with pytest.raises(VlpromptError, match="gda with these settings is bound to its training classes"):
        run(dataset="digits", protocol="cross_dataset", targets=["emoji"], **some)
    asked = run(dataset="digits", protocol="cross_dataset", targets=["emoji"], synthesise=True, **some)
    assert [row.target for row in asked.rows] == ["source", "emoji"]


# To others


LOAD = """
import json, sys, torch
from safetensors.torch import load_file
from vlprompt import load_learner
from vlprompt.testing import small_clip
learner = load_learner(sys.argv[1], clip=small_clip())
logits = learner.classify(load_file(sys.argv[2])["x"])
assert torch.equal(logits, load_file(sys.argv[2])["logits"])
print(len(learner.class_names))
"""


@pytest.mark.nightly
def test_a_thousand_classes_score_the_same_bits_in_another_process(tmp_path: Path) -> None:
    classes = 1000
    names = tuple(f"{first} {second}" for first in "abcdefghijklmnopqrstuvwxyzαβγδεζ" for second in range(32))[:classes]
    learner = fitted(*samples(views=1, images=2 * classes, classes=classes), names=names)
    x = torch.randn(20, 64)
    save_file({"x": x, "logits": learner.classify(x)}, tmp_path / "scored.safetensors")
    folder = learner.save_pretrained(tmp_path / "learner")
    command = [sys.executable, "-c", LOAD, str(folder), str(tmp_path / "scored.safetensors")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == str(classes)


@pytest.mark.parametrize("form", ["matrix", "torch"])
def test_a_linear_head_is_exported(form: str, tmp_path: Path) -> None:
    learner = fitted(*samples(images=40), synthesise=True)
    export_learner(learner, form, tmp_path / "head")
    images = toy_batch()["image"]
    if form == "torch":
        logits = torch.export.load(tmp_path / "head").module()(images)
    else:
        head = load_file(tmp_path / "head")
        assert head["logit_bias"].shape == (len(NAMES),)
        logits = head["logit_scale"] * learner.image_features(images) @ head["weight"].T + head["logit_bias"]
    torch.testing.assert_close(logits, logits_of(learner), rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "head.json").read_text())["class_names"] == list(NAMES)


def test_the_estimator_fits_gda_on_features() -> None:
    features, labels = samples(views=1, images=40)
    rows = features[0].numpy()
    names = dict(enumerate(NAMES))
    found = PromptClassifier("gda", small_clip(), class_names=names).fit(rows, labels.numpy())
    assert (found.predict(rows) == labels.numpy()).all()
