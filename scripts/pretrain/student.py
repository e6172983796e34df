"""The towers of `vlprompt-tiny` while they are trained: OpenCLIP's modules, run by explicit and cheaper products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import nn

# What ships: 64 px is what the emoji, Tiny-ImageNet and EuroSAT have; 64 patches, of which training drops half.
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 192,
    "quick_gelu": False,
    "vision_cfg": {"image_size": 64, "layers": 6, "width": 192, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 6, "layers": 4},
}


def build_clip(seed: int) -> CLIP:
    """Return an untrained model of the shipped configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIP(**MODEL_CONFIG)


def attend(attention: nn.MultiheadAttention, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Self-attention (B, L, d) by explicit products, on a CPU as fast as a fused kernel when short."""
    b, length, d = x.shape
    heads = attention.num_heads
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.view(b, length, 3, heads, d // heads).permute(2, 0, 3, 1, 4)  # (B, h, L, d/h)
    weights = (q * (d // heads) ** -0.5) @ k.transpose(-1, -2)
    weights = (weights if mask is None else weights + mask).softmax(-1)
    return attention.out_proj((weights @ v).transpose(1, 2).reshape(b, length, d))


def through(blocks: nn.ModuleList, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return x (B, L, d) after OpenCLIP's residual blocks."""
    for block in blocks:
        x = x + attend(block.attn, block.ln_1(x), mask)
        x = x + block.mlp(block.ln_2(x))
    return x


def drop_patches(x: torch.Tensor, keep: int, generator: torch.Generator) -> torch.Tensor:
    """Return CLS and `keep` random patches of each image of x (B, 1 + patches, d): FLIP, arXiv:2212.00794."""
    b, length, d = x.shape
    if keep >= length - 1:
        return x
    order = torch.rand((b, length - 1), generator=generator, device=x.device).topk(keep).indices + 1  # (B, keep)
    index = torch.cat([torch.zeros_like(order[:, :1]), order], 1)
    return x.gather(1, index[:, :, None].expand(-1, -1, d))


def pooled(visual: nn.Module, images: torch.Tensor, keep: int, generator: torch.Generator | None) -> torch.Tensor:
    """Return what the image tower's projection is applied to (B, d_v), with `keep` patches if a generator is given."""
    x = visual._embeds(images)
    x = x if generator is None else drop_patches(x, keep, generator)
    return visual.ln_post(through(visual.transformer.resblocks, x)[:, 0])


def text_features(model: CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """Return text features (B, D), unnormalised, of tokens (B, L) cut behind the longest text's end.

    No token sees what follows it, so this equals `model.encode_text` of the tokens padded to the context's length.
    """
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = through(model.transformer.resblocks, x, model.attn_mask[:length, :length])
    x = model.ln_final(x[torch.arange(len(x), device=x.device), tokens.argmax(1)])
    return x @ model.text_projection
