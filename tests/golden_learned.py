"""Methods that learn by gradient, against what their authors' code computed: losses, gradients, updates, logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from golden_files import CORE, NEW, Case, case_names, read_case, read_config
from golden_numbers import close
from safetensors.torch import load_file
from torch import Tensor

from vlprompt import FrozenCLIP, PromptLearner, create_learner
from vlprompt.clip.edits import FullLength
from vlprompt.learner.publishing import published_names

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Way:
    """How a recorded case is repeated here.

    Attributes:
        settings: of the learner, by what the case's JSON says.
        parts: of the loss, their name to ours.
        atol: of logits.
        shown: settings that the shapes in a checkpoint tell.
        place: from the name of a tensor to that in a checkpoint.
    """

    settings: Callable[[Facts], dict[str, Any]]
    parts: Mapping[str, str] = field(default_factory=lambda: {"ce": "ce"})
    atol: float = 1e-4
    shown: tuple[str, ...] = ()
    place: Callable[[str], str] = "prompt_learner.{}".format


def tcp(facts: Facts) -> dict[str, Any]:
    assert facts["meta_net_activation"] == "quickgelu"
    assert not facts["ctx_init"]
    behind = facts["prompt_template"].split(" ")[facts["n_ctx"] :]  # what the slots hold is never read
    return {
        "n_ctx": facts["n_ctx"],
        "prompt_template": " ".join(behind),
        "teacher_template": facts["teacher_template"],
        "class_layer": facts["class_prompt_layer"],
        "class_weight": facts["class_prompt_weight"],
        "meta_width": facts["meta_net_hidden"],
        "objective": ["ce", f"text_anchor(weight={facts['text_loss_weight']})"],
    }


def mma(facts: Facts) -> dict[str, Any]:
    ours = {key: facts[key] for key in ("adapter_start", "adapter_end", "adapter_dim", "adapter_scale")}
    return ours | {"template": f"{facts['text_ctx']} {{}}."}


def mmrl(facts: Facts) -> dict[str, Any]:
    first, last = min(facts["rep_layers"]), max(facts["rep_layers"])
    assert facts["rep_layers"] == list(range(first, last + 1))
    assert facts["template"] == facts["teacher_template"]
    objective = [
        f"ce(weight={facts['alpha']})",
        f"part_ce(part=rep, weight={1 - facts['alpha']})",
        f"text_anchor(weight={facts['reg_weight']})",
        f"image_anchor(weight={facts['reg_weight']}, distance=cos)",
    ]
    ours = {key: facts[key] for key in ("n_rep_tokens", "rep_dim", "alpha", "template")}
    return ours | {"rep_start": first, "rep_end": last, "scale": facts["logit_scale"], "objective": objective}


def mmrlpp(facts: Facts) -> dict[str, Any]:
    ranks = {"residual_rank": facts["res_lora_dim"], "projection_rank": facts["proj_lora_dim"]}
    return mmrl(facts) | ranks | {"beta": facts["beta"]}


MMRL_PARTS = {"ce_class": "ce", "ce_rep": "part_ce", "reg_text": "text_anchor", "reg_image": "image_anchor"}
MMRL_SHOWN = ("n_rep_tokens", "rep_dim")
WAYS: dict[str, Way] = {  # by the case's method
    "tcp": Way(tcp, {"ce": "ce", "kg": "text_anchor"}, shown=("n_ctx", "meta_width")),
    "mma": Way(mma, shown=("adapter_start", "adapter_end", "adapter_dim"), place="adapter_learner.{}".format),
    "mmrl": Way(mmrl, MMRL_PARTS, 2e-4, MMRL_SHOWN, "{}".format),
    "mmrlpp": Way(mmrlpp, MMRL_PARTS, 2e-4, (*MMRL_SHOWN, "residual_rank", "projection_rank"), "{}".format),
}


def learnt_cases() -> list[str]:
    """Names of the cases whose method is among those above."""
    return [name for name in case_names(NEW) if read_case(NEW, name).facts.get("method") in WAYS]


def repeat(case: Case, clip: FrozenCLIP) -> None:
    """Train as the case was, with shared prefixes and at full length, and compare all that was recorded."""
    way = WAYS[case.facts["method"]]
    for plain in (False, True):
        settings = way.settings(case.facts)
        learner = create_learner(case.facts["method"], clip, read_config()["class_names"], **settings)
        if plain:
            learner.edits.append(FullLength())
        _repeat(case, way, learner)


def _repeat(case: Case, way: Way, learner: PromptLearner) -> None:
    facts, batch = case.facts, load_file(CORE / "batch.safetensors")
    init, grad, final = case.under("init/"), case.under("grad/"), case.under("final/")
    learner.load_published(init)
    assert {name: list(value.shape) for name, value in learner.published_state().items()} == facts["trainable"]
    ours = {theirs: learner.get_parameter(mine) for mine, theirs in published_names(learner).items()}
    optimizer = torch.optim.SGD(ours.values(), **{key: facts[key] for key in ("lr", "momentum", "weight_decay")})
    _compare_logits(case, way, learner, batch["image"], "logits_init")
    for step in range(facts["steps"]):
        losses = learner.train().loss(batch)
        assert losses["loss"].item() == pytest.approx(facts["losses"][step], rel=1e-4, abs=1e-4)
        for part, value in (facts["loss_parts"][step] if facts["loss_parts"] else {}).items():
            assert losses[way.parts[part]].item() == pytest.approx(value, rel=1e-4, abs=1e-4), part
        optimizer.zero_grad()
        learner.backward(losses)
        if step == 0:
            for name, parameter in ours.items():
                assert relative(parameter.grad, grad[name]) < 2e-3, name
        optimizer.step()
    for name, parameter in ours.items():
        assert relative(parameter.detach() - init[name], final[name] - init[name]) < 2e-3, name
    _compare_logits(case, way, learner, batch["image"], "logits_final")


def _compare_logits(case: Case, way: Way, learner: PromptLearner, images: Tensor, name: str) -> None:
    with torch.no_grad():
        found = learner.eval()({"image": images})
    close(found.logits, case.tensors[name], name, atol=way.atol)
    for part, theirs in case.under(f"{name}/").items():
        close(found.parts[part], theirs, f"{name}/{part}", atol=way.atol)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Their difference against theirs."""
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))
