"""Edits that learners of any kind share: learnt changes of what the blocks of a tower compute."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlprompt.clip.edits import Edit, Norm, Tower
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.towers import TextTower, VisionTower


def tower_of(clip: FrozenCLIP, tower: Tower) -> TextTower | VisionTower:
    """One of a model's towers, or one sentence if its blocks cannot be edited."""
    if tower == "text":
        clip.require(text=1)
        return clip.text
    clip.require(vision=1)
    return clip.visual


class LayerNorms(Edit, nn.Module):
    """The norms of a tower's blocks, learnt in the frozen ones' place (MoCoOp's code: those of the image tower).

    They start as the frozen ones, and with them nothing changes, to the bit.

    Args:
        clip: the frozen model.
        tower: whose norms, in front of attention and of the MLP in every block.
        lr_scale: of the recipe's learning rate; MoCoOp has 0.1.

    Attributes:
        weight, bias: by norm, (L, d).
    """

    def __init__(self, clip: FrozenCLIP, tower: Tower = "vision", lr_scale: float = 1.0):
        super().__init__()
        self.tower, self.lr_scale = tower, lr_scale
        blocks = tower_of(clip, tower).blocks
        norms = {norm: [block.norms[norm] for block in blocks] for norm in blocks[0].norms}
        self.eps = {norm: [each.eps for each in every] for norm, every in norms.items()}
        weights = {norm: torch.stack([each.weight.detach() for each in every]) for norm, every in norms.items()}
        biases = {norm: torch.stack([each.bias.detach() for each in every]) for norm, every in norms.items()}
        self.weight, self.bias = nn.ParameterDict(weights), nn.ParameterDict(biases)

    def normed(self, layer: int, norm: Norm, x: Tensor, out: Tensor) -> Tensor:
        """The learnt norm of x (…, d)."""
        weight, bias = self.weight[norm][layer], self.bias[norm][layer]
        return nn.functional.layer_norm(x, weight.shape, weight, bias, self.eps[norm][layer])
