"""Records what happens inside a learner, for every method alike: recorders are edits that change nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from vlprompt.clip.edits import Edit, Rows
from vlprompt.clip.text import Prompts
from vlprompt.learner.contract import PromptLearner


@contextlib.contextmanager
def extra_edits(learner: PromptLearner, *edits: Edit) -> Iterator[None]:
    """Add edits, such as recorders, after the learner's own within a ``with`` block.

    They are also added to the saved learner that it builds on, if any. Frozen text features, which learners get from
    their teacher, are not affected.
    """
    learners = [learner, *([] if learner.built_on is None else [learner.built_on.learner])]
    own = [each.edits for each in learners]
    for each in learners:
        each.edits = [*each.edits, *edits]
    try:
        yield
    finally:
        for each, before in zip(learners, own, strict=True):
            each.edits = before


class TextRecorder(Edit):
    """Records the prompts that enter the text tower, and the pooled token's states after each block.

    Attributes:
        calls: the prompts of each call.
    """

    tower = "text"

    def __init__(self) -> None:
        self.calls: list[Prompts] = []
        self._seen: list[dict[int, list[tuple[Rows, Tensor]]]] = []

    def prompted(self, prompts: Prompts) -> Prompts:
        """Start recording a call."""
        self.calls.append(prompts)
        self._seen.append({})
        return prompts

    def pooled(self, layer: int, x: Tensor, rows: Rows) -> None:
        """Record states (G, C, d_t) of a chunk of classes."""
        self._seen[-1].setdefault(layer, []).append((rows, x))

    @property
    def states(self) -> dict[int, list[Tensor]]:
        """The pooled token's states after each block, by its index: a tensor (G, C, d_t) per call."""
        out: dict[int, list[Tensor]] = {}
        for call in self._seen:
            for layer, parts in call.items():
                chunks: dict[int | None, list[Tensor]] = {}
                for rows, x in parts:
                    chunks.setdefault(rows.classes.start, []).append(x)
                out.setdefault(layer, []).append(torch.cat([torch.cat(groups) for groups in chunks.values()], dim=1))
        return out


class ImageRecorder(Edit):
    """Records the states of all tokens after each block of the image tower.

    Attributes:
        states: by the block's index, a tensor (B, T, d_v) per call.
    """

    tower = "vision"
    needs_all_tokens = True

    def __init__(self) -> None:
        self.states: dict[int, list[Tensor]] = {}

    def finished(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        """Record the block's output."""
        self.states.setdefault(layer, []).append(out)
        return out
