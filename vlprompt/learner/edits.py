"""Edits that learners of any kind share: learnables inside a tower or on its output."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.clip.edits import Edit, Norm, Tower
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.openclip import QuickGELU
from vlprompt.clip.towers import TextTower, VisionTower
from vlprompt.errors import VlpromptError
from vlprompt.learner.prompts import INIT_STD

PARTS = "qkvo"  # the linear maps of attention


class LearntEdit(Edit, nn.Module):
    """An edit with its own learnables.

    Args:
        clip: the frozen model.
        tower: which of its towers; raises ``VlpromptError`` if its blocks cannot be accessed.
        lr_scale: factor of the recipe's learning rate.

    Attributes:
        width: of the tower.
        layers: number of blocks of the tower.
    """

    def __init__(self, clip: FrozenCLIP, tower: Tower, lr_scale: float = 1.0):
        super().__init__()
        if tower == "text":
            clip.require(text=1)
        else:
            clip.require(vision=1)
        view = clip.text if tower == "text" else clip.visual
        self.tower, self.lr_scale = tower, lr_scale
        self.layers, self.width = view.layers, view.width


class LayerNorms(LearntEdit):
    """Trained layer norms in place of those of a tower's blocks (as in MoCoOp's code, for the image tower).

    Initialized with the frozen ones, so that nothing changes, bit for bit, before training.

    Attributes:
        weight, bias: by norm, (L, d), of those before attention and before the MLP in every block.
    """

    def __init__(self, clip: FrozenCLIP, tower: Tower = "vision", lr_scale: float = 1.0):
        super().__init__(clip, tower, lr_scale)
        blocks = (clip.text if tower == "text" else clip.visual).blocks
        norms = {norm: [block.norms[norm] for block in blocks] for norm in blocks[0].norms}
        self.eps = {norm: [each.eps for each in every] for norm, every in norms.items()}
        weights = {norm: torch.stack([each.weight.detach() for each in every]) for norm, every in norms.items()}
        biases = {norm: torch.stack([each.bias.detach() for each in every]) for norm, every in norms.items()}
        self.weight, self.bias = nn.ParameterDict(weights), nn.ParameterDict(biases)

    def normed(self, layer: int, norm: Norm, x: Tensor, out: Tensor) -> Tensor:
        """The learnt norm of x (…, d)."""
        weight, bias = self.weight[norm][layer], self.bias[norm][layer]
        return F.layer_norm(x, weight.shape, weight, bias, self.eps[norm][layer])

    @torch.no_grad()
    def merge(self, tower: TextTower | VisionTower) -> bool:
        """Put the learnt norms in the frozen ones' place."""
        for block in tower.blocks:
            for norm, module in block.norms.items():
                module.weight.copy_(self.weight[norm][block.layer])
                module.bias.copy_(self.bias[norm][block.layer])
        return True


class LoRA(LearntEdit):
    """Low-rank updates of the linear maps in attention, Wx + s·B·A·x with s = α/√r (CLIP-LoRA; Hu et al. divide by r).

    B starts at zero, so training starts from the frozen model.

    Args:
        clip: the frozen model.
        tower: which tower.
        rank: r.
        alpha: α.
        maps: maps to update, of q, k, v and o.
        dropout: rate on the input of A, in training. Tokens that prompts share are encoded once, with a single draw.
        lr_scale: factor of the recipe's learning rate.

    Attributes:
        a, b: by map, (L, r, d) and (L, d, r).
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        tower: Tower,
        rank: int = 2,
        alpha: float = 1.0,
        maps: str = "qkv",
        dropout: float = 0.0,
        lr_scale: float = 1.0,
    ):
        super().__init__(clip, tower, lr_scale)
        if rank < 1 or not 0 <= dropout < 1:
            raise VlpromptError(f"lora needs a rank of at least 1 and a dropout from 0 to below 1: {rank}, {dropout}")
        if not maps or set(maps) - set(PARTS) or len(set(maps)) < len(maps):
            raise VlpromptError(f"the maps of lora must be some of q, k, v and o, such as maps=qv, not '{maps}'")
        self.scale, self.dropout = alpha / math.sqrt(rank), nn.Dropout(dropout)
        # as kaiming_uniform_(a=√5) draws an (r, d)
        bound = self.width**-0.5
        drawn = {part: torch.empty(self.layers, rank, self.width).uniform_(-bound, bound) for part in maps}
        self.a = nn.ParameterDict(drawn)
        self.b = nn.ParameterDict({part: torch.zeros(self.layers, self.width, rank) for part in maps})

    @property
    def places(self) -> frozenset[str]:
        """The maps."""
        return frozenset(f"project {part}" for part in self.a)

    def project(self, layer: int, x: Tensor, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the updates (…, d) of the maps that are asked for."""
        updates = {
            part: F.linear(F.linear(self.dropout(x), self.a[part][layer]), self.b[part][layer])
            for part in parts.keys() & set(self.a)
        }
        return parts | {part: parts[part] + self.scale * update for part, update in updates.items()}

    @torch.no_grad()
    def merge(self, tower: TextTower | VisionTower) -> bool:
        """Add s·B·A to the maps."""
        for block in tower.blocks:
            for part in self.a:
                block.weight_of(part).add_(self.scale * self.b[part][block.layer] @ self.a[part][block.layer])
        return True


def approximate(x: Tensor, o: Tensor, prompt: Tensor, u0: Tensor, u1: Tensor, scale: Tensor) -> Tensor:
    """APT's approximation of attention's output with m additional prompts: (o + w·a·P)·exp(γ), as (…, d).

    With a = relu(x·(P + U(P))ᵀ) and w = max_j a_j, through which no gradient flows; U(P) = P·u0ᵀ·u1ᵀ.

    Args:
        x: attention's input (…, d).
        o: attention's output (…, d).
        prompt: P (m, d).
        u0, u1: (r, d) and (d, r).
        scale: γ (1).
    """
    near = F.relu(F.linear(x, prompt + F.linear(F.linear(prompt, u0), u1)))  # (…, m)
    weight = near.amax(dim=-1, keepdim=True).detach()
    return (o + weight * (near @ prompt)) * scale.exp()


class Approximated(LearntEdit):
    """Deep prompts without a longer sequence: m per block, as a term added after attention (APT, arXiv:2306.15706).

    As in the authors' code the term is not zero at the start: P is drawn from N(0, 0.02²).

    Args:
        clip: the frozen model.
        tower: which tower.
        n: number m of prompts per block.
        rank: rank r of the query map U.
        depth: number of blocks, from the first; None uses all.
        lr_scale: factor of the recipe's learning rate.
        among: the learner's edits, since trained norms among them change attention's input.

    Attributes:
        prompt, u0, u1, scale: by block, (J, m, d), (J, r, d), (J, d, r) and (J, 1).
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        tower: Tower,
        n: int = 50,
        rank: int = 4,
        depth: int | None = None,
        lr_scale: float = 1.0,
        among: Sequence[Edit] = (),
    ):
        super().__init__(clip, tower, lr_scale)
        if n < 1 or rank < 1:
            raise VlpromptError(f"approx needs n and rank of at least 1: {n}, {rank}")
        depth = self.layers if depth is None else depth
        if not 1 <= depth <= self.layers:
            raise VlpromptError(f"approx(depth={depth}) is for 1 to {self.layers} blocks of the {tower} tower")
        self.clip, self.among = clip, among
        self.prompt = nn.Parameter(INIT_STD * torch.randn(depth, n, self.width))
        self.u0 = nn.Parameter(torch.randn(depth, rank, self.width))
        self.u1 = nn.Parameter(torch.zeros(depth, self.width, rank))
        self.scale = nn.Parameter(torch.zeros(depth, 1))

    def attended(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        """Add the term to attention's output (…, d)."""
        if layer >= len(self.prompt):
            return out
        view = self.clip.text if self.tower == "text" else self.clip.visual
        received = view.blocks[layer].normed(x, [edit for edit in self.among if edit.tower == self.tower])
        return approximate(received, out, self.prompt[layer], self.u0[layer], self.u1[layer], self.scale[layer])


class Adapter(LearntEdit):
    """Mixes a tower's output with a bottleneck of it: r·relu(W₂ relu(W₁ x)) + (1 - r)·x (CoPrompt, CLIP-Adapter).

    Args:
        clip: the frozen model.
        tower: which tower.
        reduction: the joint width D divided by that of the hidden layer.
        ratio: r.
        lr_scale: factor of the recipe's learning rate.
    """

    def __init__(self, clip: FrozenCLIP, tower: Tower, reduction: int = 4, ratio: float = 0.2, lr_scale: float = 1.0):
        super().__init__(clip, tower, lr_scale)
        width = clip.embed_dim
        hidden = max(1, width // reduction)
        self.ratio = ratio
        self.fc = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.ReLU()
        )

    def projected(self, x: Tensor) -> Tensor:
        """Adapt features (…, D)."""
        adapted: Tensor = self.ratio * self.fc(x) + (1 - self.ratio) * x
        return adapted


class Surgery(LearntEdit):
    """A residual block on a tower's output: f + r·FFN(LN(f)) (RESTORE).

    Args:
        clip: the frozen model.
        tower: which tower.
        ratio: r, a buffer, since RESTORE lets it grow.
        lr_scale: factor of the recipe's learning rate.
    """

    ratio: Tensor

    def __init__(self, clip: FrozenCLIP, tower: Tower, ratio: float = 0.1, lr_scale: float = 1.0):
        super().__init__(clip, tower, lr_scale)
        width = clip.embed_dim
        self.post_ln = nn.LayerNorm(width)
        self.FFN = nn.Sequential(nn.Linear(width, 4 * width), QuickGELU(), nn.Linear(4 * width, width))
        self.register_buffer("ratio", torch.tensor(ratio))

    def projected(self, x: Tensor) -> Tensor:
        """Repair features (…, D)."""
        repaired: Tensor = x + self.ratio * self.FFN(self.post_ln(x))
        return repaired
