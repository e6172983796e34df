"""How many classes are encoded at a time: as many as one says, or as memory takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from vlprompt.base.environment import total_memory

if TYPE_CHECKING:
    from vlprompt.clip.text import Prompts
    from vlprompt.clip.towers import TextTower

Chunk = int | Literal["auto"] | None
# Bytes a token, block and unit of width: what autograd keeps of a block, generously; and what one needs while it works.
KEPT, PASSING = 28 * 4, 12 * 4
WHOLE, PART = 1 / 4, 1 / 8  # of the memory: what all classes at once may take, and else a chunk of them
ENOUGH = 2 << 30  # bytes: larger chunks are no faster


def classes_at_once(tower: TextTower, prompts: Prompts, chunk: Chunk, shared: bool) -> int | None:
    """Return how many classes are encoded at a time, or None for all.

    Args:
        tower: the text tower.
        prompts: of all classes.
        chunk: what was asked for; without a gradient, where it costs nothing, None is as good as ``auto``. That goes by
            how much memory there is, and not by how much of it is free, so that a machine rounds alike each time.
        shared: whether the prefix is encoded once for all.
    """
    if isinstance(chunk, int) or (chunk is None and torch.is_grad_enabled()):
        return chunk
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return None  # a graph is of one size
    count = len(prompts.lengths)
    groups = max(len(prompts.prefix), len(prompts.suffix) if prompts.suffix.dim() == 4 else 1)
    tokens = int(prompts.lengths.sum()) / count if shared else tower.context_length
    blocks = KEPT * tower.layers if torch.is_grad_enabled() else PASSING
    room, of_class = total_memory(prompts.suffix.device), groups * tokens * tower.width * blocks
    if count * of_class <= WHOLE * room:
        return None
    most = max(1, int(min(PART * room, ENOUGH) / of_class))
    return -(-count // -(-count // most))  # chunks of one size
