"""What the JSON of a learned method's golden case says, as ours: the method and its settings, and names of losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from golden_files import NEW, case_names, read_case

from vlprompt.learner.fusion import DePT
from vlprompt.methods.unlabelled.promptkd import BatchNorm

Facts = dict[str, Any]


def text_context(c: Facts) -> Facts:
    return {"n_ctx": c["n_ctx"], "ctx_init": c.get("ctx_init") or None}


def dept(c: Facts) -> tuple[str, Facts]:
    assert c["test_time_fusion"], "the published rule is the one that there is"
    assert c["head"] == DePT.part
    scale = c.get("lr_new_layers", c["lr"]) / c["lr"]
    settings = text_context(c) | {"head": f"dept(weight={c['linear_weight']}, lr_scale={scale})"}
    if "depth" in c:
        settings["depth"] = c["depth"]
    if "text_loss_weight" in c:
        anchor = f"text_anchor(weight={c['text_loss_weight']}, templates={c['teacher_template']!r})"
        settings["objective"] = ["ce", anchor]
    return c["base_method"], settings


def atprompt(c: Facts) -> tuple[str, Facts]:
    assert c["class_token_position"] == "end"
    settings = text_context(c) | {"attributes": c["attributes"], "n_att": c["n_att"], "published_slicing": True}
    return c["base_method"], settings | ({"depth": c["depth"]} if "depth" in c else {})


def promptkd(c: Facts) -> tuple[str, Facts]:
    assert (BatchNorm.eps, BatchNorm.momentum) == (c["batch_norm"]["eps"], c["batch_norm"]["momentum"])
    objective = f"logit_kl(weight={c['kd_weight']}, temperature={c['temperature']})"
    return "promptkd", {"n_ctx": c["n_ctx_vision"], "depth": c["prompt_depth_vision"], "objective": [objective]}


def tcp(c: Facts) -> tuple[str, Facts]:
    assert c["meta_net_activation"] == "quickgelu"  # words that the context starts from are among the tensors
    behind = c["prompt_template"].split(" ")[c["n_ctx"] :]  # what the slots hold is never read
    return "tcp", {
        "n_ctx": c["n_ctx"],
        "prompt_template": " ".join(behind),
        "teacher_template": c["teacher_template"],
        "class_layer": c["class_prompt_layer"],
        "class_weight": c["class_prompt_weight"],
        "meta_width": c["meta_net_hidden"],
        "objective": ["ce", f"text_anchor(weight={c['text_loss_weight']})"],
    }


def mma(c: Facts) -> tuple[str, Facts]:
    ours = {key: c[key] for key in ("adapter_start", "adapter_end", "adapter_dim", "adapter_scale")}
    return "mma", ours | {"template": f"{c['text_ctx']} {{}}."}


def mmrl(c: Facts) -> tuple[str, Facts]:
    first, last = min(c["rep_layers"]), max(c["rep_layers"])
    assert c["rep_layers"] == list(range(first, last + 1))
    assert c["template"] == c["teacher_template"]
    objective = [
        f"ce(weight={c['alpha']})",
        f"part_ce(part=rep, weight={1 - c['alpha']})",
        f"text_anchor(weight={c['reg_weight']})",
        f"image_anchor(weight={c['reg_weight']}, distance=cos)",
    ]
    ours = {key: c[key] for key in ("n_rep_tokens", "rep_dim", "alpha", "template")}
    return "mmrl", ours | {"rep_start": first, "rep_end": last, "scale": c["logit_scale"], "objective": objective}


def mmrlpp(c: Facts) -> tuple[str, Facts]:
    _, settings = mmrl(c)
    ranks = {"residual_rank": c["res_lora_dim"], "projection_rank": c["proj_lora_dim"]}
    return "mmrlpp", settings | ranks | {"beta": c["beta"]}


# from what a case's JSON says of a method to ours and its settings
SETTINGS: dict[str, Callable[[Facts], tuple[str, Facts]]] = {
    each.__name__: each for each in (atprompt, dept, promptkd, tcp, mma, mmrl, mmrlpp)
}
PARTS = {  # their name of a loss part: ours, where it is another
    "ce_similarity": "ce",
    "ce_class": "ce",
    "ce_rep": "part_ce",
    "kg": "text_anchor",
    "reg_text": "text_anchor",
    "reg_image": "image_anchor",
    "kd": "logit_kl",
}


def learnt_cases() -> list[str]:
    """Names of the cases whose method is among those above."""
    return [name for name in case_names(NEW) if read_case(NEW, name).facts.get("method") in SETTINGS]
