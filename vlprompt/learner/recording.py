"""Records what happens inside a learner, the same way for every method: recorders are edits that change nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from vlprompt.clip.edits import Edit, Rows
from vlprompt.clip.text import Prompts
from vlprompt.learner.contract import PromptLearner


@contextlib.contextmanager
def added(learner: PromptLearner, *edits: Edit) -> Iterator[None]:
    """Put edits such as recorders behind the learner's own inside the block; they see what it hands to the towers.

    Or what the saved learner does that it stands on. Frozen text, which learners take from their teacher, is not among
    that.
    """
    all_of_it = [learner, *([] if learner.built_on is None else [learner.built_on.learner])]
    own = [each.edits for each in all_of_it]
    for each in all_of_it:
        each.edits = [*each.edits, *edits]
    try:
        yield
    finally:
        for each, before in zip(all_of_it, own, strict=True):
            each.edits = before


class TextRecorder(Edit):
    """Keeps the prompts that enter the text tower, and what the blocks make of the token that it reads.

    Attributes:
        calls: the prompts, one entry a call.
    """

    tower = "text"

    def __init__(self) -> None:
        self.calls: list[Prompts] = []
        self._seen: list[dict[int, list[tuple[Rows, Tensor]]]] = []

    def prompted(self, prompts: Prompts) -> Prompts:
        """Begin the record of a call."""
        self.calls.append(prompts)
        self._seen.append({})
        return prompts

    def pooled(self, layer: int, x: Tensor, rows: Rows) -> None:
        """Keep states (G, C, d_t) of a chunk of classes."""
        self._seen[-1].setdefault(layer, []).append((rows, x))

    @property
    def states(self) -> dict[int, list[Tensor]]:
        """The pooled token's states behind each block, a tensor (G, C, d_t) a call."""
        out: dict[int, list[Tensor]] = {}
        for call in self._seen:
            for layer, parts in call.items():
                chunks: dict[int | None, list[Tensor]] = {}
                for rows, x in parts:
                    chunks.setdefault(rows.classes.start, []).append(x)
                out.setdefault(layer, []).append(torch.cat([torch.cat(groups) for groups in chunks.values()], dim=1))
        return out


class ImageRecorder(Edit):
    """Keeps the states of all tokens behind each block of the image tower.

    Attributes:
        states: behind each block, a tensor (B, T, d_v) a call.
    """

    tower = "vision"
    needs_all_tokens = True

    def __init__(self) -> None:
        self.states: dict[int, list[Tensor]] = {}

    def finished(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        """Keep what the block puts out."""
        self.states.setdefault(layer, []).append(out)
        return out
