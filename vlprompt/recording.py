"""What happens inside a learner, seen from outside and the same for every method."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

from torch import Tensor

from vlprompt.learner import PromptLearner
from vlprompt.text import Prompts
from vlprompt.towers import TextTower, VisionTower


@contextlib.contextmanager
def recorded_prompts(learner: PromptLearner) -> Iterator[list[Prompts]]:
    """Yield the prompts that the learner hands to the text tower inside the block.

    Frozen text, which learners take from their teacher, is not among them.
    """
    calls: list[Prompts] = []
    clip, recording = learner.clip, copy.copy(learner.clip)

    def encode(prompts: Prompts, chunk: int | None = None) -> Tensor:
        calls.append(prompts)
        return clip.encode_prompts(prompts, chunk)

    recording.encode_prompts = encode
    learner.clip = recording
    try:
        yield calls
    finally:
        learner.clip = clip


@contextlib.contextmanager
def watched(tower: TextTower | VisionTower, watch: Callable[..., None]) -> Iterator[None]:
    """Call ``watch`` behind each block of a tower inside the block; see the towers' ``watch``."""
    tower.watch = watch
    try:
        yield
    finally:
        tower.watch = None


@contextlib.contextmanager
def recorded_states(tower: TextTower | VisionTower) -> Iterator[dict[int, list[Tensor]]]:
    """Yield the states behind each of the tower's blocks, one entry a forward pass inside the block."""
    states: dict[int, list[Tensor]] = {}
    with watched(tower, lambda layer, x, *_: states.setdefault(layer, []).append(x)):
        yield states
