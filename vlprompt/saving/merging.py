"""A learner with what it learnt inside the towers in the weights of a copy of them, for exports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vlprompt.clip.merging import merged
from vlprompt.learner.contract import PromptLearner


@contextlib.contextmanager
def merged_into(learner: PromptLearner) -> Iterator[None]:
    """Let a learner compute on a model that has its edits in its weights inside the block, where that can be.

    It gives what it gave, to rounding error. One with an ensemble asks the frozen model too, and stays as it is.
    """
    own = learner.clip, learner.edits
    if learner.ensemble is None and learner.built_on is None:
        learner.clip, learner.edits = merged(*own)
    learner.clear_cache()
    try:
        yield
    finally:
        learner.clip, learner.edits = own
        learner.clear_cache()
