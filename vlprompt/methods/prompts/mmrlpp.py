"""MMRL++: parameter-efficient and interaction-aware representation learning (Guo & Gu, IJCV 2026, arXiv:2505.10088).

Trained: MMRL's tokens; one map per tower that all blocks share, with a low-rank residual and a bias per block,
W + A_l·B_l; and a low-rank residual of CLIP's own projection, proj + A·B, which gives the second projection. After the
first of its blocks, the tokens that enter a block are β·new + (1-β)·present. Everything else is as in MMRL.
Protocols: few-shot, base-to-new, cross-dataset, domain generalization.
Differs from the authors' code: as MMRL does; and β is the same wherever a learner is tested. For cross-dataset and
domain generalization theirs has one β per test dataset, set at test time: that is chosen on what is tested, and is not
included, not even with ``selection=paper``. λ and β per training dataset are used with ``selection=paper`` only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from vlprompt.learner import register
from vlprompt.methods.prompts.mmrl import MMRL, Share


def low_rank(height: int, width: int, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A (height, rank), Kaiming uniform, and B (rank, width), zero."""
    a = torch.empty(height, rank)
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    return nn.Parameter(a), nn.Parameter(torch.zeros(rank, width))


class Residual(nn.Module):
    """A block's addition to the shared map d_r -> d: A·B and a bias."""

    def __init__(self, width_in: int, width: int, rank: int, bias: Tensor):
        super().__init__()
        self.A, self.B = low_rank(width, width_in, rank)
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, tokens: Tensor, shared: Tensor) -> Tensor:
        """The block's tokens (r, d), from the shared ones (r, d_r)."""
        return nn.functional.linear(tokens, shared + self.A @ self.B, self.bias)


class SharedMap(nn.Module):
    """A linear map to a tower's width, with a low-rank residual and a bias for each block."""

    def __init__(self, width_in: int, width: int, blocks: int, rank: int):
        super().__init__()
        first = nn.Linear(width_in, width)
        self.weight = first.weight
        self.residuals = nn.ModuleList(Residual(width_in, width, rank, first.bias) for _ in range(blocks))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """The tokens (r, d) of each block, from the shared ones (r, d_r)."""
        return [each(tokens, self.weight) for each in self.residuals]


@register("mmrlpp", paper="arXiv:2505.10088", like=MMRL)
class MMRLPP(MMRL):
    """MMRL with one map per tower, low-rank residuals, and tokens blended with those already present."""

    published: ClassVar = {
        "tokens": "representation_learner.compound_rep_tokens",
        "to_vision.weight": "representation_learner.srra_r2vproj.weight",
        "to_vision.residuals.": "representation_learner.srra_r2vproj.srra.",
        "to_text.weight": "representation_learner.srra_r2tproj.weight",
        "to_text.residuals.": "representation_learner.srra_r2tproj.srra.",
        "proj_a": "image_encoder.A",
        "proj_b": "image_encoder.B",
    }

    @dataclass
    class Config(MMRL.Config):
        """Settings, those of MMRL and more.

        Attributes:
            residual_rank: rank of each block's residual on the shared maps.
            projection_rank: rank of the residual on CLIP's projection.
            beta: share β of a block's own tokens in what enters it, after the first of its blocks.
        """

        residual_rank: Annotated[int, Field(ge=1)] = 4
        projection_rank: Annotated[int, Field(ge=1)] = 64
        beta: Share = 0.9

    config: Config

    def _make_maps(self) -> None:
        """Create the shared maps, their residuals and that of the projection, A (d_v, r) and B (r, D)."""
        clip, c = self.clip, self.config
        made = (
            SharedMap(c.rep_dim, each.width, len(self.blocks), c.residual_rank) for each in (clip.visual, clip.text)
        )
        self.to_vision, self.to_text = made
        self.proj_a, self.proj_b = low_rank(clip.visual.width, clip.embed_dim, c.projection_rank)

    @property
    def new_share(self) -> float:
        """β."""
        return self.config.beta

    def second_projection(self) -> Tensor:
        """CLIP's, with its residual (d_v, D)."""
        return cast(Tensor, self.clip.visual.projection) + self.proj_a @ self.proj_b
