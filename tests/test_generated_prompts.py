"""What MoCoOp, SPG and CTP+TFT promise beyond their authors' numbers: where they start, what they share and tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlprompt import VlpromptError, run
from vlprompt.methods.prompts import mocoop
from vlprompt.testing import NAMES, NEW_NAMES, close, fit, logits_of, make, small_clip, toy_batch

GROUPS = {"plain": ["a photo of a {}.", "a photo of the {}."], "game": ["a {} in a video game."], "far": ["{} far off"]}


@pytest.fixture(autouse=True)
def banks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLPROMPT_CACHE", str(tmp_path / "cache"))


def test_mocoops_experts_start_as_the_first_template_of_each_group() -> None:
    learner = make("mocoop", groups=GROUPS)
    first = torch.stack([learner.teacher.text_features(NAMES, templates[:1]) for templates in GROUPS.values()])
    assert close(learner.experts(), first)
    assert [expert.before for expert in learner.prompts] == [4, 1, 0]


def test_mocoop_with_one_expert_is_zero_shot_by_its_template() -> None:
    learner = make("mocoop", groups={"one": ["a {} in a video game."]}, active=1)
    assert close(logits_of(learner), logits_of(make("zero_shot", template=["a {} in a video game."])))


def test_mocoop_encodes_its_experts_once_a_step_and_once_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, encoded = make("mocoop", groups=GROUPS, image_chunk=3), []
    encode = mocoop.Expert.encode
    monkeypatch.setattr(mocoop.Expert, "encode", lambda self, *a, **k: encoded.append(self) or encode(self, *a, **k))
    fit(learner, 2)
    assert len(encoded) == 2 * len(GROUPS)
    whole = logits_of(learner)
    assert len(encoded) == 3 * len(GROUPS)
    with torch.no_grad():
        parts = [learner(part) for part in toy_batch()["image"].split(4)]
    assert close(torch.cat(parts), whole)
    assert len(encoded) == 3 * len(GROUPS), "nothing has changed since"


def test_mocoop_holds_experts_near_later_classes_only_if_it_is_asked(tmp_path: Path) -> None:
    learner = make("mocoop", groups=GROUPS)
    before = learner.loss(toy_batch())
    learner.see_names(NEW_NAMES)
    after = learner.loss(toy_batch())
    assert before["ce"] == after["ce"]
    assert before["expert_text"] != after["expert_text"]
    settings = {
        "method": "mocoop",
        "dataset": "digits",
        "shots": 1,
        "epochs": 1,
        "views": 1,
        "limit": 20,
        "quiet": True,
    }
    settings |= {"clip": small_clip(), "groups": GROUPS, "output": str(tmp_path)}
    told = [run(**settings, new_class_names_in_text_loss=each) for each in (False, True)]
    assert [result.config["new_class_names_in_text_loss"] for result in told] == [False, True]
    assert [result.config["tune_vit_ln"] for result in told] == [False, False]
    with pytest.raises(VlpromptError, match="classes that are tested and not trained on: use protocol=base_to_new"):
        run(**settings, new_class_names_in_text_loss=True, protocol="few_shot")


def test_mocoops_norms_learn_at_a_tenth_of_the_rate() -> None:
    learner = make("mocoop", tune_vit_ln=True)
    assert not learner.facts.cacheable_images
    assert [group.lr_scale for group in learner.parameter_groups()] == [1.0, 0.1]
    assert close(logits_of(learner), logits_of(make("mocoop")))
    with pytest.raises(VlpromptError, match="active=4 must be 1 or more, and at most the 3 groups"):
        make("mocoop", groups=GROUPS, active=4)
