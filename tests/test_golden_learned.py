"""Fidelity of methods that learn by gradient to their authors' own code, on the fixtures of ``golden/new``.

Each case is checked twice: on the fast path, and with every prompt at full length as published code has them.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from golden_files import CORE, NEW, Case, read_case, read_config
from golden_learned import PARTS, SETTINGS, Facts, learnt_cases
from golden_numbers import relative_error, same_update
from safetensors.torch import load_file
from torch import Tensor

from vlprompt import FrozenCLIP, create_learner
from vlprompt.clip.edits import FullLength
from vlprompt.learner import METHODS, PromptLearner
from vlprompt.learner.publishing import published_names
from vlprompt.learner.recording import extra_edits

BEFORE_NORM = "VPT_image_trans.conv1.0.bias"  # whose true gradient is zero: what was recorded is rounding noise


class Recorded:
    """A teacher that says what was recorded."""

    needs_images, new_classes, lacks, name, identity = True, True, "", "recorded", {"sha256": ""}

    def __init__(self, case: Case):
        self.case = case

    def text_features(self, class_names: object, templates: object = ()) -> Tensor:
        return self.case.tensors["teacher_text_features"]

    def logits(self, batch: object, class_names: object) -> Tensor:
        return self.case.tensors["teacher_logits"]


def make(method: str, clip: FrozenCLIP, settings: Facts, case: Case) -> PromptLearner:
    """A learner of a case, with its teacher if it has one."""
    names = read_config()["class_names"]
    if "teacher" not in case.facts:
        return create_learner(method, clip, names, **settings)
    cls = METHODS.get(method)
    return cls(clip, names, cls.Config(teacher="recorded", **settings), taught_by=Recorded(case))


def trainable(facts: Facts) -> dict[str, list[int]]:
    """Names and shapes of a case's learnables; a 1×1 convolution is a linear map."""
    return {name: shape[:2] if shape[2:] == [1, 1] else shape for name, shape in facts["trainable"].items()}


def check_logits(learner: PromptLearner, images: Tensor, case: Case, when: str) -> None:
    """All parts of the logits, and what the rule makes of them, are theirs."""
    with torch.no_grad():
        found = learner.eval()({"image": images})
        learner.train()
    close = {"rtol": 1e-4, "atol": 1e-6 * max(100, 2 * case.facts.get("logit_scale", 0))}  # logits of a scale of 100
    torch.testing.assert_close(found.logits, case.tensors[f"logits_{when}"], **close)
    for part, theirs in case.under(f"logits_{when}/").items():
        if part in ("base", "new"):  # of one set of logits
            n = case.facts["n_base"]
            assert torch.allclose(found.logits[:, :n] if part == "base" else found.logits[:, n:], theirs, atol=1e-4)
            continue
        torch.testing.assert_close(found.parts[part], theirs, **close)
    if len(found.parts) > 1:
        check_new_classes(learner, images, next(iter(found.parts.values())))


def check_new_classes(learner: PromptLearner, images: Tensor, first: Tensor) -> None:
    """What was not trained on is scored by the first part alone."""
    learner.eval().familiar = "new"
    with torch.no_grad():
        assert torch.equal(learner(images), first)
    learner.familiar = "trained"
    learner.train()


@pytest.mark.parametrize("path", ["fast", "plain"])
@pytest.mark.parametrize("name", learnt_cases())
def test_method_equals_its_authors_code(name: str, path: str, golden_clip: FrozenCLIP) -> None:
    case, batch = read_case(NEW, name), load_file(CORE / "batch.safetensors")
    facts, init, grad, final = case.facts, case.under("init/"), case.under("grad/"), case.under("final/")
    method, settings = SETTINGS[facts["method"]](facts)
    learner = make(method, golden_clip, settings, case)
    learner.load_published(init | case.under("init_buffer/"))
    shapes = {k: list(v.shape) for k, v in learner.published_state().items()}
    assert {k: shape for k, shape in shapes.items() if k not in case.under("init_buffer/")} == trainable(facts)
    with extra_edits(learner, FullLength()) if path == "plain" else nullcontext():
        check_logits(learner, batch["image"], case, "init")
        train(learner, batch, facts, grad)
        ours = learner.published_state()
        for parameter, start in init.items():
            if parameter != BEFORE_NORM:
                assert same_update(ours[parameter], final[parameter], start, facts["steps"], 2e-3), parameter
        for name, buffer in case.under("final_buffer/").items():
            assert relative_error(ours[name], buffer) < 2e-3, name
        check_logits(learner, batch["image"], case, "final")


def check_rates(learner: PromptLearner, groups: list[dict], facts: Facts) -> None:
    """The parameters that the case names have the second rate, and all others the first."""
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    parameters = dict(learner.named_parameters())
    for ours, theirs in published_names(learner).items():
        if ours in parameters:
            second = any(part in theirs for part in facts.get("new_layers", ()))
            assert rates[id(parameters[ours])] == pytest.approx(facts["lr_new_layers" if second else "lr"]), theirs


def train(learner: PromptLearner, batch: dict[str, Tensor], facts: Facts, grad: dict[str, Tensor]) -> None:
    """Take the case's steps; losses before each of them and the first gradients are theirs."""
    groups = [{"params": g.parameters, "lr": facts["lr"] * g.lr_scale} for g in learner.parameter_groups()]
    check_rates(learner, groups, facts)
    optimizer = torch.optim.SGD(groups, **{key: facts[key] for key in ("momentum", "weight_decay")})
    parameters = dict(learner.named_parameters())
    for step in range(facts["steps"]):
        losses = learner.loss(batch)
        assert losses["loss"].item() == pytest.approx(
            facts["losses"][step], rel=2e-5, abs=1e-4 * max(1, facts.get("kd_weight", 1) / 100)
        )
        for part, value in (facts["loss_parts"][step] if facts["loss_parts"] else {}).items():
            assert losses[PARTS.get(part, part)].item() == pytest.approx(value, rel=2e-5, abs=1e-4), part
        optimizer.zero_grad()
        learner.backward(losses)
        if step == 0:
            for ours, theirs in published_names(learner).items():
                if ours in parameters and theirs != BEFORE_NORM:
                    gradient = parameters[ours].grad
                    assert relative_error(gradient, grad[theirs].view_as(gradient)) < 2e-3, theirs
        optimizer.step()
