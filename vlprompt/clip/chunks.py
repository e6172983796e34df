"""How many classes the text tower encodes at a time: a given number, or as many as fit in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from vlprompt.base.environment import total_memory

if TYPE_CHECKING:
    from vlprompt.clip.text import Prompts
    from vlprompt.clip.towers import TextTower

Chunk = int | Literal["auto"] | None
# bytes per token, block and unit of width: what autograd keeps of each block (a generous estimate), and what the
# forward pass of a single block needs
KEPT, PASSING = 28 * 4, 12 * 4
WHOLE, PART = 1 / 4, 1 / 8  # shares of memory that all classes at once, or otherwise a chunk of them, may take
ENOUGH = 2 << 30  # bytes; larger chunks are no faster


def classes_at_once(tower: TextTower, prompts: Prompts, chunk: Chunk, shared: bool) -> int | None:
    """Return how many classes are encoded at a time, or None for all.

    Args:
        tower: the text tower.
        prompts: of all classes.
        chunk: the setting. ``auto`` depends on the total memory rather than on what is free, so that results on one
            machine are always rounded alike. Without gradients, where chunks cost no time, None means ``auto``.
        shared: whether the prefix is encoded once for all classes.
    """
    if isinstance(chunk, int) or (chunk is None and torch.is_grad_enabled()):
        return chunk
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return None  # the graph is for a fixed number of classes
    count = len(prompts.lengths)
    groups = max(len(prompts.prefix), len(prompts.suffix) if prompts.suffix.dim() == 4 else 1)
    tokens = int(prompts.lengths.sum()) / count if shared else tower.context_length
    blocks = KEPT * tower.layers if torch.is_grad_enabled() else PASSING
    room, of_class = total_memory(prompts.suffix.device), groups * tokens * tower.width * blocks
    if count * of_class <= WHOLE * room:
        return None
    most = max(1, int(min(PART * room, ENOUGH) / of_class))
    return -(-count // -(-count // most))  # as few chunks as possible, of equal size
