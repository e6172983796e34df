"""Fidelity: the authors' own code computed these losses, gradients, updates and logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlprompt import FrozenCLIP, create_learner
from vlprompt.publishing import published_names

CASES = {
    "coop_end": ("coop", lambda c: {"n_ctx": c["n_ctx"]}),
    "coop_end_words": ("coop", lambda c: {"ctx_init": c["ctx_init"]}),
    "coop_end_csc": ("coop", lambda c: {"n_ctx": c["n_ctx"], "class_specific": True}),
    "coop_middle": ("coop", lambda c: {"n_ctx": c["n_ctx"], "class_token_position": "middle"}),
    "coop_front": ("coop", lambda c: {"n_ctx": c["n_ctx"], "class_token_position": "front"}),
    "kgcoop": (
        "kgcoop",
        lambda c: {
            "ctx_init": c["ctx_init"],
            "objective": ["ce", f"text_anchor(weight={c['weight']}, templates={c['teacher_template']!r})"],
        },
    ),
    "vpt_deep": ("vpt", lambda c: {"n_ctx": c["n_ctx"], "depth": c["depth"], "template": c["template"]}),
    "ivlp": (
        "ivlp",
        lambda c: {
            "n_ctx": c["n_ctx"],
            "depth": c["depth"],
            "vision_n_ctx": c["n_ctx"],
            "vision_depth": c["depth"],
            "ctx_init": c["ctx_init"],
        },
    ),
    "maple_n2": ("maple", lambda c: {k: c[k] for k in ("n_ctx", "depth", "ctx_init")}),
    "maple_n4": ("maple", lambda c: {k: c[k] for k in ("n_ctx", "depth", "ctx_init")}),
    "cocoop": ("cocoop", lambda c: {"ctx_init": c["ctx_init"]}),
    "promptsrc": (
        "promptsrc",
        lambda c: {
            "n_ctx": c["n_ctx"],
            "depth": c["depth"],
            "vision_n_ctx": c["n_ctx"],
            "vision_depth": c["depth"],
            "aggregator": None,
            "objective": [
                "ce",
                f"text_anchor(weight=25, distance='l1', normalise_first=False, templates={c['teacher_templates']})",
                "image_anchor(weight=10, distance='l1')",
                f"logit_kl(normalise_first=False, templates={c['teacher_templates']})",
            ],
        },
    ),
    "coprompt": (
        "coprompt",
        lambda c: {
            "n_ctx": c["n_ctx"],
            "depth": c["depth"],
            "objective": [
                "ce",
                f"description_anchor(weight={c['consistency_weight']}, descriptions=['a {{}} seen from above.'])",
                f"image_anchor(weight={c['consistency_weight']}, distance='cos', view='image_strong')",
            ],
        },
    ),
    "pre": ("pre", lambda c: {"n_ctx": c["n_ctx"], "ctx_init": None}),
    **{
        f"prograd_{weight}": (
            "prograd",
            lambda c: {
                "n_ctx": c["n_ctx"],
                "objective": ["ce", f"distillation(weight=0, templates={c['teacher_template']!r})"],
                "gradient_rule": f"prograd(weight={c['projection_weight']})",
            },
        )
        for weight in ("1", "0.8")
    },
    "restore": (
        "restore",
        lambda c: {
            "n_ctx": c["n_ctx"],
            "depth": c["depth"],
            "text_ratio": c["text_ratio"],
            "image_ratio": c["vision_ratio"],
        },
    ),
    **{
        f"mvlpt_{variant}": (
            "mvlpt",
            lambda c: {k: c[k] for k in ("variant", "n_ctx", "class_token_position", "coupling_width")},
        )
        for variant in ("mcoop", "mvpt", "upt")
    },
}
# their name of a loss part: ours, and the weight that is already in their figure
PARTS = {
    "ce": ("ce", 1),
    "kg": ("text_anchor", 1),
    "kl": ("distillation", 1),
    "scl_text": ("text_anchor", 25),
    "scl_image": ("image_anchor", 10),
    "scl_logits": ("logit_kl", 1),
}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))


@pytest.mark.parametrize("case", CASES)
def test_method_equals_its_authors_code(case: str, golden_clip: FrozenCLIP, shared: Path) -> None:
    facts = json.loads((shared / f"golden/{case}.json").read_text())
    tensors = load_file(shared / f"golden/{case}.safetensors")
    names = json.loads((shared / "golden/config.json").read_text())["class_names"]
    batch = load_file(shared / "golden/batch.safetensors")
    method, settings = CASES[case]

    learner = create_learner(method, golden_clip, names, **settings(facts))
    learner.load_published({k.removeprefix("init/"): v for k, v in tensors.items() if k.startswith("init/")})
    assert {k: list(v.shape) for k, v in learner.published_state().items()} == facts["trainable"]
    with torch.no_grad():
        torch.testing.assert_close(learner(batch["image"]), tensors["logits_init"], rtol=1e-4, atol=2e-5)

    optimizer = torch.optim.SGD(
        learner.trainable_parameters(),
        lr=facts["lr"],
        momentum=facts["momentum"],
        weight_decay=facts["weight_decay"],
    )
    ours = {theirs: dict(learner.named_parameters())[mine] for mine, theirs in published_names(learner).items()}
    for step, expected in enumerate(facts["losses"]):
        losses = learner.loss(batch)
        assert losses["loss"].item() == pytest.approx(expected, rel=1e-4, abs=2e-5)
        for part, value in (facts["loss_parts"][step] if facts["loss_parts"] else {}).items():
            name, weight = PARTS[part]
            assert weight * losses[name].item() == pytest.approx(value, rel=1e-4, abs=2e-5), part
        optimizer.zero_grad()
        learner.backward(losses)
        if step == 0:
            for name, parameter in ours.items():
                assert relative_error(parameter.grad, tensors[f"grad/{name}"]) < 1e-3, name
        optimizer.step()

    for name, parameter in ours.items():
        moved, expected = (
            parameter.detach() - tensors[f"init/{name}"],
            tensors[f"final/{name}"] - tensors[f"init/{name}"],
        )
        assert relative_error(moved, expected) < 1e-3, name
    with torch.no_grad():
        torch.testing.assert_close(learner(batch["image"]), tensors["logits_final"], rtol=1e-4, atol=2e-5)
