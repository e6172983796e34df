"""Prompts of both towers that attend to each other (UPT, arXiv:2210.07225), as used in Enhancing CLIP with CLIP."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's activation, x·σ(1.702x)."""
    return x * torch.sigmoid(1.702 * x)


class JointPrompts(nn.Module):
    """A transformer layer over n text and n visual tokens, with linear maps before and after it.

    Args:
        text_width, vision_width: d_t and d_v.
        width: of the layer, which has one head.
        pairwise: let the i-th text token attend only to the i-th visual one, instead of to all 2n.
    """

    def __init__(self, text_width: int, vision_width: int, width: int, pairwise: bool = False):
        super().__init__()
        self.text_in, self.text_out = nn.Linear(text_width, width), nn.Linear(width, text_width)
        self.vision_in, self.vision_out = nn.Linear(vision_width, width), nn.Linear(width, vision_width)
        self.layer = nn.TransformerEncoderLayer(width, 1, 4 * width, 0.0, quick_gelu, batch_first=True, norm_first=True)
        self.pairwise = pairwise

    def forward(self, text: Tensor, vision: Tensor) -> tuple[Tensor, Tensor]:
        """Mix text tokens (n, d_t) and visual tokens (n, d_v)."""
        text, vision = self.text_in(text), self.vision_in(vision)
        if self.pairwise:
            text, vision = self.layer(torch.stack([text, vision], dim=1)).unbind(dim=1)  # (n, 2, width)
        else:
            text, vision = self.layer(torch.cat([text, vision])[None])[0].chunk(2)  # (1, 2n, width)
        return self.text_out(text), self.vision_out(vision)
