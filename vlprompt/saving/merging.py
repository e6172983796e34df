"""For exports: a learner whose edits inside the towers are merged into the weights of a copy of the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vlprompt.clip.merging import merged
from vlprompt.learner.contract import PromptLearner


@contextlib.contextmanager
def merged_into(learner: PromptLearner) -> Iterator[None]:
    """Within the block, a learner computes on a copy of its model that has its edits in the weights, if they can be.

    Its output stays the same up to rounding. A learner with an ensemble also uses the frozen model, and one that is
    built on another uses that one's; both are left unchanged.
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
