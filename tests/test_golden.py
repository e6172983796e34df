"""Fidelity: the authors' own code computed these losses, gradients, updates and logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_files import CORE, EMBEDDING, case_names, keep_rows, read_case, read_clip, read_config
from golden_numbers import relative_error, same_update
from safetensors.torch import load_file, save_file

from vlprompt import FrozenCLIP, PromptLearner, create_learner
from vlprompt.learner.publishing import published_names

Facts = dict[str, Any]
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def text_context(c: Facts) -> Facts:
    return {"n_ctx": c["n_ctx"], "ctx_init": c.get("ctx_init") or None}


def coop(c: Facts, folder: Path) -> Facts:
    return text_context(c) | {"class_specific": c["csc"], "class_token_position": c["class_token_position"]}


def kgcoop(c: Facts, folder: Path) -> Facts:
    anchor = f"text_anchor(weight={c['weight']}, templates={c['teacher_template']!r})"
    return text_context(c) | {"objective": ["ce", anchor]}


def prograd(c: Facts, folder: Path) -> Facts:
    teacher = f"temperature={c['temperature']}, templates={c['teacher_template']!r}"
    return text_context(c) | {
        "objective": ["ce", f"distillation(weight=0, {teacher})"],
        "gradient_rule": f"prograd(weight={c['projection_weight']})",
    }


def pre(c: Facts, folder: Path) -> Facts:
    return text_context(c) | {"encoder": "lstm" if "LSTM" in c["encoder"] else c["encoder"]}


def vpt(c: Facts, folder: Path) -> Facts:
    return {key: c[key] for key in ("n_ctx", "depth", "template")}


def ivlp(c: Facts, folder: Path) -> Facts:
    return text_context(c) | {"depth": c["depth"], "vision_n_ctx": c["n_ctx"], "vision_depth": c["depth"]}


def promptsrc(c: Facts, folder: Path) -> Facts:
    teacher = f"normalise_first=False, templates={c['teacher_templates']}"
    objective = [
        "ce",
        f"text_anchor(weight={c['text_loss_weight']}, distance='l1', {teacher})",
        f"image_anchor(weight={c['image_loss_weight']}, distance='l1')",
        f"logit_kl({teacher})",
    ]
    return ivlp(c, folder) | {"aggregator": None, "objective": objective}


def maple(c: Facts, folder: Path) -> Facts:
    return text_context(c) | {"depth": c["depth"]}


def coprompt(c: Facts, folder: Path) -> Facts:
    file, weight = folder / "descriptions.json", c["consistency_weight"]
    file.write_text(json.dumps(dict(zip(read_config()["class_names"], c["descriptions"], strict=True))))
    return maple(c, folder) | {
        "text_ratio": c["text_adapter_ratio"],
        "image_ratio": c["image_adapter_ratio"],
        "reduction": c["adapter_reduction"],
        "objective": [
            "ce",
            f"description_anchor(weight={weight}, descriptions={str(file)!r})",
            f"image_anchor(weight={weight}, distance='cos', view='image_strong')",
        ],
    }


def restore(c: Facts, folder: Path) -> Facts:
    ratios = {"text_ratio": c["text_ratio"], "image_ratio": c["vision_ratio"]}
    return maple(c, folder) | ratios | {"objective": ["ce", f"prompt_shift(weight={c['consistency_weight']})"]}


def mvlpt(c: Facts, folder: Path) -> Facts:
    return {key: c[key] for key in ("variant", "n_ctx", "class_token_position", "coupling_width")}


def cocoop(c: Facts, folder: Path) -> Facts:
    return text_context(c)


# from what a case's JSON says of a method to our settings
SETTINGS: dict[str, Callable[[Facts, Path], Facts]] = {
    each.__name__: each
    for each in (coop, cocoop, kgcoop, prograd, pre, vpt, ivlp, promptsrc, maple, coprompt, restore, mvlpt)
}
# their name of a loss part: ours, and whose weight is in their figure already
PARTS = {
    "ce": ("ce", None),
    "kg": ("text_anchor", None),
    "kl": ("distillation", None),
    "scl_text": ("text_anchor", "text_loss_weight"),
    "scl_image": ("image_anchor", "image_loss_weight"),
    "scl_logits": ("logit_kl", None),
}


def check_losses(losses: dict[str, torch.Tensor], facts: Facts, step: int) -> None:
    """The sum and its parts before an update are theirs."""
    assert losses["loss"].item() == pytest.approx(facts["losses"][step], rel=1e-4, abs=2e-5)
    for part, value in (facts["loss_parts"][step] if facts["loss_parts"] else {}).items():
        name, weight = PARTS[part]
        ours = losses[name].item() * (facts[weight] if weight else 1)
        assert ours == pytest.approx(value, rel=1e-4, abs=2e-5), part


def logits_of(learner: PromptLearner, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return learner(images)


@pytest.mark.parametrize("name", case_names(CORE))
def test_method_equals_its_authors_code(name: str, golden_clip: FrozenCLIP, tmp_path: Path) -> None:
    case, batch = read_case(CORE, name), load_file(CORE / "batch.safetensors")
    facts, init, grad, final = case.facts, case.under("init/"), case.under("grad/"), case.under("final/")
    settings = SETTINGS[facts["method"]](facts, tmp_path)

    learner = create_learner(facts["method"], golden_clip, read_config()["class_names"], **settings)
    learner.load_published(init)
    names = published_names(learner)
    ours = {names[name]: parameter for name, parameter in learner.named_parameters()}
    assert {name: list(parameter.shape) for name, parameter in ours.items()} == facts["trainable"]
    torch.testing.assert_close(logits_of(learner, batch["image"]), case.tensors["logits_init"], **CLOSE)

    how = {key: facts[key] for key in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(learner.trainable_parameters(), **how)
    for step in range(facts["steps"]):
        losses = learner.loss(batch)
        check_losses(losses, facts, step)
        optimizer.zero_grad()
        learner.backward(losses)
        if step == 0:
            for parameter, tensor in ours.items():
                assert relative_error(tensor.grad, grad[parameter]) < 1e-3, parameter
        optimizer.step()

    for parameter, tensor in ours.items():
        assert same_update(tensor.detach(), final[parameter], init[parameter], facts["steps"], 1e-3), parameter
    torch.testing.assert_close(logits_of(learner, batch["image"]), case.tensors["logits_final"], **CLOSE)


def test_every_case_has_all_that_it_is_compared_with() -> None:
    for name in case_names(CORE):
        case = read_case(CORE, name)
        assert case.under("init/").keys() == case.under("grad/").keys() == case.under("final/").keys() != set(), name
        assert len(case.facts["losses"]) == case.facts["steps"] >= 1, name


def test_a_token_that_the_clips_file_lacks_is_an_error(golden_clip: FrozenCLIP, tmp_path: Path) -> None:
    shutil.copyfile(CORE / "config.json", tmp_path / "config.json")
    state, names = golden_clip.model.state_dict(), read_config()["class_names"]
    used = set(golden_clip.tokenize([f"a photo of a {name}." for name in names]).flatten().tolist())
    lacking = int(golden_clip.tokenize([names[0]])[0, 1])

    def text_features(ids: set[int]) -> torch.Tensor:
        save_file(keep_rows(state, ids), tmp_path / "clip.safetensors")
        return create_learner("coop", read_clip(tmp_path), names, ctx_init="a photo of a").text_features()

    assert text_features(used).isfinite().all()
    with pytest.raises(LookupError, match=rf"no rows for the tokens \[{lacking}\]"):
        text_features(used - {lacking})


def test_a_whole_clip_takes_the_packed_ones_place(golden_clip: FrozenCLIP, tmp_path: Path) -> None:
    shutil.copyfile(CORE / "config.json", tmp_path / "config.json")
    (tmp_path / "clip.safetensors.xz").write_bytes(b"is not read")
    state = golden_clip.model.state_dict()
    state[EMBEDDING] = state[EMBEDDING].nan_to_num(0.5)
    save_file(state, tmp_path / "clip.safetensors")
    whole = read_clip(tmp_path)
    assert whole.encode_text(["a word of no case"]).isfinite().all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.model.state_dict().items())
