"""Golden numbers of what is learnt inside the towers; ``test_golden_more`` runs them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden_files import Case, make_model, read_config
from golden_numbers import Check, alike, close
from torch import Tensor, nn

from vlprompt import FrozenCLIP
from vlprompt.clip.edits import Edit
from vlprompt.clip.merging import merged
from vlprompt.learner.contexts import LowRankUpdate
from vlprompt.learner.edits import LoRA, approximate
from vlprompt.testing import small_clip

CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


class Attention(Edit):
    """Keeps what attention puts out."""

    tower = "text"
    out: Tensor

    def attended(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        self.out = out
        return out


def one_block(width: int, heads: int) -> FrozenCLIP:
    """A CLIP whose text tower is one block of some width, without the norm in front of attention."""
    text = {"transformer_width": width, "transformer_heads": heads, "transformer_layers": 1}
    model = make_model(read_config()["clip"] | text, quick_gelu=True)
    clip = FrozenCLIP(model, small_clip().tokenizer, device="cpu")
    clip.text.blocks[0].module.ln_1 = nn.Identity()
    return clip


def attention_of(clip: FrozenCLIP, x: Tensor, causal: bool, edits: list[Edit]) -> Tensor:
    """Attention's output (T, B, d) of x (T, B, d) in a tower's only block."""
    block, seen = clip.text.blocks[0], Attention()
    entering = x.transpose(0, 1)  # (B, T, d)
    q, k, v = (t.transpose(1, 2) for t in block.project(entering, edits=edits))  # (B, H, T, d_h)
    block.finish(entering, F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2), [*edits, seen])
    return seen.out.transpose(0, 1)


@check
def clip_lora(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    clip = one_block(facts["width"], facts["heads"])
    attn = clip.text.blocks[0].attn
    for name, ours in (("in_proj_weight", attn.in_proj_weight), ("in_proj_bias", attn.in_proj_bias)):
        ours.data.copy_(t[name])
    attn.out_proj.weight.data.copy_(t["out_proj_weight"])
    attn.out_proj.bias.data.copy_(t["out_proj_bias"])
    settings = {"rank": facts["rank"], "alpha": facts["alpha"], "maps": "".join(facts["targets"])}
    lora = LoRA(clip, "text", **settings, dropout=facts["dropout_in_training"]).eval()
    assert lora.scale == pytest.approx(facts["scale_value"])
    assert all(not b.any() for b in lora.b.values()) is facts["b_initially_zero"]
    for part in facts["targets"]:
        lora.a[part].data[0], lora.b[part].data[0] = t[f"A_{part}"], t[f"B_{part}"]
    causal = attention_of(clip, t["x"], True, [lora])
    close(causal, t["output_causal"], "output_causal")
    close(attention_of(clip, t["x"], False, [lora]), t["output_full"], "output_full")
    (causal * t["cotangent"]).sum().backward()
    other, rest = merged(clip, [lora])
    assert rest == []
    for part in facts["targets"]:
        alike(lora.a[part].grad[0], t[f"grad_A_{part}"], f"grad_A_{part}")
        alike(lora.b[part].grad[0], t[f"grad_B_{part}"], f"grad_B_{part}")
        close(other.text.blocks[0].weight_of(part), t[f"merged_{part}"], f"merged_{part}")
    close(attention_of(other, t["x"], True, []), t["output_causal"], "merged")


@check
def dept_decomposed(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    update = LowRankUpdate(facts["max_length"], facts["token_width"], facts["rank"], facts["lora_alpha"])
    assert update.scale == pytest.approx(facts["scaling"])
    assert (not update.b.any()) is facts["b_initially_zero"]
    update.a.data, update.b.data = t["A"].clone(), t["B"].clone()
    prompt = t["prompt"].clone().requires_grad_()
    words = t["embedding_table"][t["input_ids"]] + update(facts["max_length"])  # at every position, padding too
    found = torch.cat([prompt.expand(facts["batch"], -1, -1), words], dim=1)
    close(found, t["output"], "output")
    (found * t["cotangent"]).sum().backward()
    for name, leaf in (("A", update.a), ("B", update.b), ("prompt", prompt)):
        alike(leaf.grad, t[f"grad_{name}"], f"grad_{name}")


@check
def apt_approx(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    names = ("x", "o", "prompt", "u0", "u1", "scale")
    given = {name: t[name].clone().requires_grad_() for name in names}
    assert given["prompt"].shape == (facts["prompt_tokens"], facts["width"])
    assert given["u0"].shape == (facts["low_rank"], facts["width"])
    start = given | {name: torch.zeros_like(t[name]) for name in ("u1", "scale")}
    close(approximate(**start), t["output_init"], "output_init")
    found = approximate(**given)
    close(found, t["output_trained"], "output_trained")
    (found * t["cotangent"]).sum().backward()
    for name, leaf in given.items():
        alike(leaf.grad, t[f"grad_{name}"], f"grad_{name}")
