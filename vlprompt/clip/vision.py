"""Prompted image encoding with a ViT: learnt tokens next to the patches, shallow or deep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.clip.edits import Edit, Rows, edits_of
from vlprompt.clip.towers import VisionTower

Place = Literal["pre_ln", "post_ln"]


def encode_images(
    tower: VisionTower,
    images: Tensor,
    prompts: Mapping[int, Tensor] | None = None,
    place: Place = "pre_ln",
    edits: Sequence[Edit] = (),
) -> Tensor:
    """Encode images with learnt tokens in the sequence.

    Args:
        tower: the image tower; with ``prompts`` it must be promptable.
        images: (B, 3, H, W), normalised as the model expects.
        prompts: {layer: (n, d_v) or (B, n, d_v)}. Layer 0's tokens enter after the positional embedding; deeper ones
            replace them at the input of that block; after the deepest key they are propagated. The order of tokens in
            a ViT is irrelevant, so "appended" (MaPLe) and "right after CLS" (VPT) are the same function.
        place: whether layer 0's tokens enter before ``ln_pre`` (MaPLe, IVLP, PromptSRC) or after it (MVLPT).
        edits: of any tower; the image tower's are applied.

    Returns:
        Image features (B, D), fp32, not normalised.
    """
    edits = edits_of("vision", edits, tower.promptable)
    if not tower.promptable:
        return tower.encode(images)
    prompts = prompts or {}
    x = tower.embed(images)  # (B, 1+N, d_v)
    own = x.shape[1]
    for edit in edits:
        x = edit.embedded(x)
    if place == "pre_ln":
        x = tower.ln_pre(_replace(x, prompts.get(0), own, 0), edits)
    else:
        x = _replace(tower.ln_pre(x, edits), prompts.get(0), own, 0)
    inside = x.shape[1] - own  # number of prompt tokens in the sequence
    short = tower.cls_only and not any(edit.needs_all_tokens for edit in edits)
    for i, block in enumerate(tower.blocks):
        if i > 0:
            x = _replace(x, prompts.get(i), own, inside)
            inside = prompts[i].shape[-2] if i in prompts else inside
        for edit in edits:
            x = edit.tokens(i, x, Rows())
        if i == tower.layers - 1 and short:  # only CLS is pooled, so only its query is needed
            (q,) = block.project(x[:, :1], "q", edits)
            k, v = block.project(x, "kv", edits)
            x = x[:, :1]
        else:
            q, k, v = block.project(x, edits=edits)  # (B, T, H, d_h)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, H, T, d_h)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = block.finish(x, attended.transpose(1, 2), edits)
    return tower.project(x[:, :own], edits)


def _replace(x: Tensor, tokens: Tensor | None, own: int, inside: int) -> Tensor:
    """Insert prompt tokens after the ``own`` tokens of x (B, T, d_v), replacing the ``inside`` earlier ones."""
    if tokens is None:
        return x
    return torch.cat([x[:, :own], tokens.expand(x.shape[0], -1, -1), x[:, own + inside :]], dim=1)
