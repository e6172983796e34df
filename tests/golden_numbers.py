"""How golden numbers are compared, and the small CLIP that they are compared on."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from golden_files import Case, make_model, read_config
from torch import Tensor

from vlprompt import FrozenCLIP
from vlprompt.testing import small_clip

Check = Callable[[Case, FrozenCLIP, pytest.MonkeyPatch], None]


def close(ours: Tensor, theirs: Tensor, what: str = "", rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Within what the fixtures allow: for logits 1e-4 absolute, for the rest 1e-5."""
    ours = ours.detach().float()
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


def alike(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Gradients: also relative to their norm, which may be small."""
    close(ours, theirs, what)
    assert (ours - theirs).norm() < 1e-3 * theirs.norm(), what


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))


def same_update(ours: Tensor, theirs: Tensor, start: Tensor, steps: int, within: float) -> bool:
    """Whether a tensor moved alike, but for what fp32 rounds away of it in each step, which small updates feel."""
    rounding = steps * torch.finfo(torch.float32).eps * start.norm()
    return bool((ours - theirs.view_as(ours)).norm() < within * (theirs - start).norm() + rounding)


def clip_of(width: int, logit_scale: float) -> FrozenCLIP:
    """A small CLIP with embeddings of some width, and a logit scale s."""
    model = make_model(read_config()["clip"] | {"embed_dim": width}, quick_gelu=True)
    model.logit_scale.data.fill_(math.log(logit_scale))
    return FrozenCLIP(model, small_clip().tokenizer, device="cpu")
