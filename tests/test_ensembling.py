"""Ensembles with the frozen model: what they compute, that every road to a prediction has them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vlprompt import VlpromptError, list_methods, load_learner, method_info, run
from vlprompt.evaluation.scoring import evaluate_learner
from vlprompt.learner.contract import PromptLearner
from vlprompt.runs.settings import resolve
from vlprompt.saving.export import export_learner
from vlprompt.testing import NAMES, logits_of, loss_of, make, make_ready, toy_batch

OTHERS = ("tpt", "difftpt", "cupl", "mask_prompt")
ALONE = [m for m in list_methods() if method_info(m)["predicts"] == "alone" and m not in OTHERS]
WITH_WEIGHTS = ("coop", "kgcoop", "proda", "zs_lp", "taskres", "zero_shot")


def moved(method: str, **settings: object) -> PromptLearner:
    """A learner whose learnt numbers are not those it started from."""
    learner = make_ready(method, **settings)
    with torch.no_grad():
        for number, parameter in enumerate(learner.trainable_parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter += noise * (0.05 * parameter.std() if parameter.numel() > 1 else 0.01)
    return learner.eval()


def frozen_logits() -> Tensor:
    return logits_of(make("zero_shot"))


@pytest.mark.parametrize("method", ALONE)
def test_an_ensemble_of_logits_lies_between_the_frozen_model_and_the_learner(method: str) -> None:
    learner = moved(method)
    own, frozen = logits_of(learner), frozen_logits()
    for weight, expected in ((0, frozen), (1, own), (0.25, 0.25 * own + 0.75 * frozen)):
        learner.set_ensemble(f"logits(weight={weight})")
        torch.testing.assert_close(logits_of(learner), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", WITH_WEIGHTS)
def test_an_ensemble_of_weights_lies_between_the_frozen_model_and_the_learner(method: str) -> None:
    learner = moved(method)
    own, frozen, t = logits_of(learner), frozen_logits(), learner.classifier_matrix()
    for weight, expected in ((0, frozen), (1, own)):
        learner.set_ensemble(f"weights(weight={weight})")
        torch.testing.assert_close(logits_of(learner), expected, rtol=1e-5, atol=1e-4)
    learner.set_ensemble("weights(weight=0.25)")
    mixed, zero_shot = learner.classifier_matrix(), learner.frozen_text()
    torch.testing.assert_close(F.normalize(mixed, dim=-1), F.normalize(0.25 * t + 0.75 * zero_shot, dim=-1))
    torch.testing.assert_close(mixed.norm(dim=-1), 0.25 * t.norm(dim=-1) + 0.75)


@pytest.mark.parametrize("method", ["coop", "maple", "zs_lp"])
def test_training_is_that_of_the_learner_alone(method: str) -> None:
    losses = [loss_of(make(method, ensemble=ensemble).train()) for ensemble in (None, "logits(weight=0.2)")]
    assert losses[0] == losses[1]


REFUSED = {
    ("cocoop", "weights"): "has another classifier for each image",
    ("maple", "weights"): "changes image features",
    ("tip_adapter", "weights"): "scores with more than class features",
    ("transclip", "logits"): "predicts an image from other test images too",
    ("tpt", "logits"): "predicts from an image's views",
    ("coop", "logits(weight=1.5)"): "between 0, the frozen model, and 1",
    ("coop", "logit"): "did you mean logits",
}


@pytest.mark.parametrize(("method", "ensemble"), REFUSED)
def test_what_cannot_be_is_refused_before_there_is_a_backbone(method: str, ensemble: str) -> None:
    said = REFUSED[method, ensemble]
    learner = make_ready(method)
    for attempt in (
        lambda: run(method=method, dataset="digits", ensemble=ensemble, backbone="no-such-backbone"),
        lambda: learner.set_ensemble(ensemble),
    ):
        with pytest.raises(VlpromptError, match=said):
            attempt()
    assert (learner.ensemble, learner.config.ensemble) == (None, None)


def test_image_features_of_ones_own_are_no_features_of_the_frozen_model() -> None:
    learner = moved("maple", ensemble="logits")
    features = learner.image_features(toy_batch()["image"])
    with pytest.raises(VlpromptError, match="needs images"):
        learner.classify(features)


@pytest.mark.parametrize("method", ["coop", "maple", "cocoop", "tip_adapter"])
def test_a_saved_ensemble_scores_the_same_and_takes_other_classes(method: str, tmp_path: Path) -> None:
    learner = moved(method, ensemble="logits(weight=0.3)")
    back = load_learner(learner.save_pretrained(tmp_path), clip=learner.clip)
    assert torch.equal(logits_of(back), logits_of(learner))
    if learner.facts.new_classes:
        back.set_class_names(NAMES[:2])
        torch.testing.assert_close(logits_of(back), logits_of(learner)[:, :2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "ensemble"), [("coop", "logits"), ("coop", "weights"), ("gda", "logits"), ("zs_lp", "logits")]
)
def test_a_linear_ensemble_is_exported_as_one_matrix(method: str, ensemble: str, tmp_path: Path) -> None:
    learner = moved(method, ensemble=f"{ensemble}(weight=0.3)")
    head = load_file(export_learner(learner, "matrix", tmp_path / "head.safetensors"))
    v = learner.image_features(toy_batch()["image"])
    logits = head["logit_scale"] * v @ head["weight"].T + head["logit_bias"]
    torch.testing.assert_close(logits, logits_of(learner), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["maple", "tip_adapter", "cocoop"])
def test_other_ensembles_are_exported_as_graphs(method: str, tmp_path: Path) -> None:
    learner = moved(method, ensemble="logits(weight=0.3)")
    with pytest.raises(VlpromptError, match=r"no \(C, D\)"):
        export_learner(learner, "matrix", tmp_path / "head.safetensors")
    assert export_learner(learner, "torch", tmp_path / "learner.pt2").exists()  # it is compared there


def test_a_run_and_its_saved_learner_score_the_ensemble(tmp_path: Path) -> None:
    settings = {"dataset": "digits", "protocol": "few_shot", "shots": 1, "epochs": 1, "views": 1, "quiet": True}
    found = {
        ensemble: run(method="coop", output=str(tmp_path), limit=200, ensemble=ensemble, **settings)
        for ensemble in (None, "logits(weight=0)", "weights(weight=0.5)")
    }
    assert found["logits(weight=0)"].rows[0].accuracy == found["logits(weight=0)"].rows[0].zero_shot
    folders = list(tmp_path.glob("**/learner"))
    assert len(folders) == 3  # each is a run of its own
    learners = {load_learner(folder).config.ensemble: load_learner(folder) for folder in folders}
    assert torch.equal(*(learners[e].prompt.ctx for e in (None, "weights(weight=0.5)")))
    accuracy = found["weights(weight=0.5)"].rows[0].accuracy
    assert evaluate_learner(learners["weights(weight=0.5)"], "digits", limit=200) == pytest.approx(accuracy / 100)


def test_runs_without_an_ensemble_keep_their_names() -> None:
    settings = {"method": "coop", "dataset": "digits"}
    assert resolve(settings).id == resolve(settings | {"ensemble": None}).id
    assert resolve(settings).id != resolve(settings | {"ensemble": "logits"}).id
