"""What a learner is, is said in one place; what that place rules out is refused before any work starts."""

from __future__ import annotations

from dataclasses import make_dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from made_results import make_result
from torch import Tensor, nn

from vlprompt import PromptClassifier, PromptLearner, VlpromptError, list_methods, load_learner, register, run
from vlprompt.clip.edits import Edit
from vlprompt.evaluation.results import headline
from vlprompt.learner import METHODS, method_facts
from vlprompt.learner.publishing import published_name
from vlprompt.methods.prompts.coop import CoOp
from vlprompt.report.groups import collect
from vlprompt.report.names import display_method
from vlprompt.runs.settings import resolve
from vlprompt.saving.card import model_card
from vlprompt.saving.description import read_description
from vlprompt.testing import make, small_clip, toy_batch
from vlprompt.training import TrainOptions, train


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        ("coop", {}, {"new_classes": True, "cacheable_images": True, "trains": {"text"}}),
        ("coop", {"class_specific": True}, {"new_classes": False}),
        ("kgcoop", {"class_specific": True}, {"new_classes": False}),
        ("ivlp", {}, {"cacheable_images": False, "trains": {"text", "vision"}}),
        ("ivlp", {"vision_depth": 0}, {"cacheable_images": True, "trains": {"text"}}),
        ("mvlpt", {"variant": "mcoop"}, {"cacheable_images": True, "trains": {"text"}}),
        ("mvlpt", {"variant": "mvpt"}, {"cacheable_images": False, "trains": {"vision"}}),
        ("cocoop", {}, {"classifier": "per_image"}),
        ("zero_shot", {}, {"trains": set(), "labels": "none"}),
    ],
)
def test_settings_narrow_what_a_method_registered(method: str, settings: dict, expected: dict) -> None:
    facts = make(method, **settings).facts
    assert facts == method_facts(method, settings)
    assert {key: getattr(facts, key) for key in expected} == expected


def test_the_card_of_a_learner_bound_to_its_classes_recommends_no_others(tmp_path) -> None:
    learner = make("coop", class_specific=True)
    described = read_description(learner.save_pretrained(tmp_path))
    assert "set_class_names" not in (tmp_path / "README.md").read_text()
    assert "set_class_names" in model_card(described, make("coop").facts, 1)


def test_a_reconstruction_is_marked_wherever_its_numbers_stand(tmp_path) -> None:
    learner = make("coop")
    card = partial(model_card, read_description(learner.save_pretrained(tmp_path)), n_numbers=1)
    rebuilt = replace(learner.facts, fidelity="reconstruction")
    assert "reconstruction" in card(rebuilt)
    assert "reconstruction" not in card(learner.facts)

    other, result = (make_result({"base": 60, "new": 50}, fidelity=each) for each in ("code", "reconstruction"))
    assert (result.marked_method, other.marked_method) == ("coop (reconstruction)", "coop")
    assert headline(result).endswith(", reconstruction")
    (group,) = collect([(tmp_path / "result.json", result)])
    assert list(group.values) == ["coop (reconstruction)"]
    assert any(note.startswith("reconstruction: ") for note in group.notes)


def test_the_estimator_takes_features_wherever_the_image_tower_is_left_alone() -> None:
    features = np.random.default_rng(0).normal(size=(8, small_clip().embed_dim)).astype(np.float32)
    labels = ["cat", "dog"] * 4
    fitted = PromptClassifier("ivlp", small_clip(), options={"depth": 2, "vision_depth": 0}, epochs=1)
    assert fitted.fit(features, labels).predict(features).shape == (8,)
    with pytest.raises(VlpromptError, match="needs images"):
        PromptClassifier("ivlp", small_clip(), options={"depth": 2, "vision_depth": 2}, epochs=1).fit(features, labels)


# Every part of the library's own on every design: it works, gradients included, or is refused in a sentence.
PARTS = [
    "text_anchor",
    "description_anchor",
    "image_anchor",
    "logit_kl",
    "distillation",
    "bounded_ce",
    "prompt_orthogonality",
    "prompt_shift",
]


@pytest.mark.parametrize("method", list_methods())
@pytest.mark.parametrize("part", PARTS)
def test_an_objective_works_on_a_design_or_is_refused(method: str, part: str) -> None:
    learner, said = None, ""
    # what nothing but its own cross-entropy trains is refused without it, whatever else is asked for
    own = ["part_ce(part=rep)"] if "rep" in method_facts(method, {}).parts else []
    try:
        learner = make(method, objective=["ce", *own, part], gradient_rule=None)
    except VlpromptError as error:
        said = str(error)
    if learner is None:
        assert said.startswith(f"objective {part} ")
        return
    losses = learner.loss(toy_batch())
    assert losses[part].dim() == 0
    assert torch.isfinite(losses[part])
    if learner.trainable_parameters():
        assert losses[part].requires_grad, "it says nothing that could be learnt"


def test_a_loss_on_class_features_of_many_images_is_computed_without_gradients_too() -> None:
    learner = make("cocoop", objective=["ce", "text_anchor"], image_chunk=4)
    expected = learner.train().loss(toy_batch())
    with torch.no_grad():  # as after the last step of an epoch
        found = learner.loss(toy_batch())
    assert torch.equal(found["text_anchor"], expected["text_anchor"])


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("coop", "prompt_shift"),
        ("coop", "prompt_orthogonality"),
        ("cocoop", "bounded_ce"),
        ("maple", "bounded_ce"),
        ("vpt", "text_anchor"),
        ("coop", "image_anchor"),
    ],
)
def test_objectives_that_say_nothing_on_a_design(method: str, part: str) -> None:
    with pytest.raises(VlpromptError, match=f"^objective {part} "):
        make(method, objective=["ce", part])


def test_what_register_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))

    class Old(PromptLearner):
        @property
        def cacheable_images(self) -> bool:
            return False

    with pytest.raises(VlpromptError, match="overrides cacheable_images, which is no longer called: use facts_of"):
        register("old", paper="none")(Old)
    for field in ("lr", "shots"):
        config = make_dataclass("Config", [(field, float, 1.0)], bases=(PromptLearner.Config,))
        with pytest.raises(VlpromptError, match=f"has a setting '{field}', which every run has"):
            register("shadow", paper="none")(type("Shadow", (PromptLearner,), {"Config": config}))
    with pytest.raises(VlpromptError, match=r"unknown fact 'cachable_images': .*cacheable_images"):
        register("odd", paper="none", cachable_images=False)
    with pytest.raises(VlpromptError, match=r"extends CoOp, so its Config must extend CoOp\.Config"):
        register("short", paper="none")(type("Short", (CoOp,), {"Config": PromptLearner.Config}))
    with pytest.raises(VlpromptError, match="register it with cacheable_images=False"):
        register("seen", paper="none")(type("Seen", (CoOp,), {"encode_images": lambda self, batch: batch["image"]}))


def test_what_a_method_of_ones_own_is_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))

    @register("warm_coop", paper="none", trains=("text",), new_classes=False)
    class WarmCoOp(CoOp):
        """A temperature per class."""

        def setup(self) -> None:
            super().setup()
            self.log_t = nn.Parameter(torch.arange(len(self.class_names)) / 10)

        def score(self, v: Tensor, t: Tensor) -> Tensor:
            return super().score(v, t) * self.log_t.exp()

    learner = make("warm_coop")
    assert learner.facts.head  # or a matrix of class features would pass for the whole classifier
    assert not learner.facts.new_classes  # which CoOp's own facts must not take back
    with pytest.raises(VlpromptError, match="more than class features"):
        learner.classifier_matrix()
    assert display_method("warm_coop") == "WarmCoOp"

    learner.save_pretrained(tmp_path)
    METHODS._entries.pop("warm_coop")
    with pytest.raises(VlpromptError, match=r"config\.json: unknown method 'warm_coop'.* plugin=MODULE"):
        load_learner(tmp_path)
    (tmp_path / "run.yaml").write_text("method: warm_coop")
    with pytest.raises(VlpromptError, match=r"run\.yaml: unknown method 'warm_coop'.* plugin=MODULE"):
        resolve({"config": str(tmp_path / "run.yaml")})


def test_edits_of_the_image_tower_and_learnables_that_nothing_uses_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))

    class Gate(Edit, nn.Module):
        tower = "vision"

    class Gated(CoOp):
        def setup(self) -> None:
            super().setup()
            self.edits.append(Gate())

    register("gated_coop", paper="none", trains=("text", "vision"))(Gated)
    with pytest.raises(VlpromptError, match=r"gated_coop edits the image tower, so .* cacheable_images=False"):
        make("gated_coop")
    register("idle", paper="none", trains=("text",))(type("Idle", (CoOp,), {"encode_text": PromptLearner.frozen_text}))
    idle = make("idle")
    with pytest.raises(VlpromptError, match="the loss of idle depends on none of its learnable tensors"):
        idle.backward(idle.loss(toy_batch()))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("zero_shot", {"gradient_rule": "prograd"}),
        ("gda", {"aggregator": "ema"}),
        ("lp_plus_plus", {"objective": ["ce", "logit_kl"]}),
        ("tpt", {"after_step": "project"}),
    ],
)
def test_what_no_loop_trains_is_told_nothing_of_training(method: str, settings: dict) -> None:
    with pytest.raises(VlpromptError, match="is not trained by the loop: leave it out"):
        make(method, **settings)


@pytest.mark.parametrize("key", ["gradient_rule", "aggregator", "init_from"])
def test_a_setting_of_no_text_is_not_passed_over(key: str) -> None:
    with pytest.raises(VlpromptError):
        make("coop", **{key: ""})


def test_an_aggregator_and_a_chosen_epoch_contradict_each_other(tmp_path) -> None:
    with pytest.raises(VlpromptError, match="set aggregator=null, or selection=last"):
        run(
            method="coop", aggregator="ema", selection="fewshot_val", dataset="digits", shots=1, epochs=1, quiet=True,
            output=str(tmp_path), device="cpu",
        )  # fmt: skip


def test_the_classifier_matrix_is_what_the_learner_scores_with() -> None:
    for method in ("coop", "proda", "maple"):
        learner = make(method).eval()
        with torch.no_grad():
            v = learner.image_features(toy_batch()["image"])
            torch.testing.assert_close(learner.clip.similarity(v, learner.classifier_matrix()), learner.classify(v))


@pytest.mark.parametrize(
    ("name", "table", "expected"),
    [
        ("prompt.deep.2", {"prompt.deep.{i}": "text_prompts.{i+1}"}, "text_prompts.3"),
        ("coupling.maps.0.bias", {"coupling.maps.0.": "proj.", "coupling.maps.{i}.": "others.{i-1}."}, "proj.bias"),
        ("coupling.maps.4.bias", {"coupling.maps.0.": "proj.", "coupling.maps.{i}.": "others.{i-1}."}, "others.3.bias"),
        ("coupling.x.y", {"coupling.": ""}, "x.y"),
        ("other", {"prompt.ctx": "ctx"}, "other"),
    ],
)
def test_the_authors_names_follow_from_a_table(name: str, table: dict, expected: str) -> None:
    assert published_name(name, table) == expected


def test_a_second_training_starts_its_aggregation_anew() -> None:
    learner, batch = make("coop", n_ctx=2, aggregator="mean_of_epochs"), toy_batch()
    options = TrainOptions(epochs=2, lr=0.0, warmup_epochs=0, weight_decay=0.0)
    before = learner.prompt.ctx.detach().clone()
    for _ in range(2):
        train(learner, lambda epoch: [batch], options)
    torch.testing.assert_close(learner.prompt.ctx.detach(), before)
