"""A gradient-regulating function, meta-learnt over many tasks and applied to the gradients of another (GRAM).

A reconstruction: the abstract of GRAM (Li et al., ICCV 2023, arXiv:2303.06571) mentions a lightweight function that is
learnt together with a prompt's initialization; its form here follows SUPMER, the same group's work on language models.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.base.sealed import hash_of_tensors, read_tensors, write_tensors
from vlprompt.errors import VlpromptError

KIND = "vlprompt-regulator/1"
HIDDEN = 24  # of the gate, as in SUPMER


class _OfWidth(nn.Module):
    """The function for gradients of one width d."""

    def __init__(self, d: int, rank: int):
        super().__init__()
        self.down, self.up = nn.Linear(d, rank), nn.Linear(rank, d, bias=False)
        self.gate = nn.Sequential(nn.Linear(d, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        nn.init.zeros_(self.up.weight)

    def forward(self, g: Tensor) -> Tensor:
        """Regulate rows g (n, d)."""
        size = g.norm(dim=-1, keepdim=True)
        unit = g / size.clamp_min(1e-12)
        turned: Tensor = F.normalize(unit + self.up(F.relu(self.down(unit))), dim=-1) * size  # ψ(g), as long as g
        k: Tensor = torch.sigmoid(self.gate(unit.mean(dim=0)))
        return (1 - k) * turned + k * g


class Regulator(nn.Module):
    """g' = (1-k)·ψ(g) + k·g, where ψ turns each row of a gradient by a low-rank map and k is a gate.

    ψ changes nothing when it is made, so that learning starts from the plain gradient. SUPMER's gate looks at a task's
    mean hidden state; this one looks at the mean direction of the rows, which is there wherever a gradient is.

    Args:
        widths: sizes of the last axis of the tensors whose gradients it takes.
        rank: rank of ψ's map.

    Attributes:
        sha256: hash of the tensors, if it was read from a file; else empty.
    """

    def __init__(self, widths: Iterable[int], rank: int = 8):
        super().__init__()
        self.rank, self.sha256 = rank, ""
        self.maps = nn.ModuleDict({str(d): _OfWidth(d, rank) for d in sorted(set(widths))})

    def of(self, tensor: Tensor) -> nn.Module | None:
        """The function for gradients of a tensor (…, d); None for a single number, whose gradient is kept.

        Raises:
            VlpromptError: there is none for that width.
        """
        if tensor.dim() == 0:
            return None
        width = tensor.shape[-1]
        if str(width) not in self.maps:
            raise VlpromptError(
                f"this regulator takes gradients of width {', '.join(self.maps)}, and one has {width}: learn one with "
                "vlprompt meta-train for this method and backbone"
            )
        return self.maps[str(width)]

    def forward(self, gradient: Tensor) -> Tensor:
        """Regulate the gradient of one tensor (…, d); that of a single number is kept."""
        turn = self.of(gradient)
        if turn is None:
            return gradient
        regulated: Tensor = turn(gradient.reshape(-1, gradient.shape[-1]))
        return regulated.view_as(gradient)

    def save(self, path: Path) -> str:
        """Write the file that ``gradient_rule="regulated(file='…')"`` takes, and return its hash."""
        return write_tensors(path, self.state_dict(), {"kind": KIND, "rank": str(self.rank)})

    @classmethod
    def load(cls, path: Path) -> Regulator:
        """Read what ``save`` wrote.

        Raises:
            VlpromptError: it is missing, damaged, or something else.
        """
        tensors, facts = read_tensors(path, "the regulator", "make it again with vlprompt meta-train")
        try:
            if facts.get("kind") != KIND:
                raise ValueError
            made = cls({int(name.split(".")[1]) for name in tensors}, int(facts["rank"]))
            made.load_state_dict(tensors)
        except (ValueError, KeyError, IndexError, RuntimeError):
            raise VlpromptError(f"{path} is not a regulator: vlprompt meta-train makes one") from None
        made.sha256 = hash_of_tensors(tensors)
        return made.requires_grad_(False)
