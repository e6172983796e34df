"""CLIP-Adapter: better vision-language models with feature adapters (Gao et al., IJCV 2024, arXiv:2110.04544).

Trained: two linear layers without bias, each followed by a ReLU, on the image feature, mixed into it with
f' = 0.2·A(f) + 0.8·f. The text side is zero-shot CLIP's, so new class names work.
Protocols: few-shot; also on top of a saved learner (``text=``).
Differs from the authors' code: hidden and output widths are read from the backbone (theirs are for RN50's 1,024); they
name no optimizer, so the recipe is that of CoOp's code, which theirs extends; fp32 where theirs is fp16.
A scales with f, so raw and normalised features give the same f'. It is not a linear classifier on the frozen features,
so it cannot be exported as a (C, D) matrix: use to=torch or to=onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.methods.heads.on_text import BesideText


@register("clip_adapter", paper="arXiv:2110.04544", trains=("head",), head=True, fidelity="code")
class CLIPAdapter(BesideText):
    """A bottleneck adapter on the image feature, mixed into it."""

    published: ClassVar[Mapping[str, str]] = {"down.weight": "fc.0.weight", "up.weight": "fc.2.weight"}

    @dataclass
    class Config(BesideText.Config):
        """Settings.

        Attributes:
            ratio: share of the adapted feature in the mix.
            reduction: the feature width divided by that of the bottleneck.
        """

        ratio: float = 0.2
        reduction: int = 4

    config: Config

    def setup(self) -> None:
        """Create the bottleneck: W₁ (D/reduction, D) and W₂ (D, D/reduction)."""
        width, reduction = self.clip.embed_dim, self.config.reduction
        if not 1 <= reduction <= width:
            raise VlpromptError(f"reduction={reduction} must be from 1 to {width}, the width of the features")
        self.down = nn.Linear(width, width // reduction, bias=False)
        self.up = nn.Linear(width // reduction, width, bias=False)

    def adapt(self, v: Tensor) -> Tensor:
        """f' (B, D) of image features (B, D), normalised: §3.2, eqs. 3 and 5."""
        adapted = self.up(self.down(v).relu()).relu()
        return F.normalize(self.config.ratio * adapted + (1 - self.config.ratio) * v, dim=-1)

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C): s·f'·tᵀ."""
        return super().score(self.adapt(v), t)
