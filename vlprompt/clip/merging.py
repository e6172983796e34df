"""A copy of a frozen model with edits in its weights: what a low-rank update or a learnt norm is once it is learnt."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from vlprompt.clip.edits import Edit, Tower
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.towers import TextTower, VisionTower


def merged(clip: FrozenCLIP, edits: Sequence[Edit]) -> tuple[FrozenCLIP, list[Edit]]:
    """Return the model with what can be merged in its weights, and the edits that cannot be.

    Args:
        clip: the frozen model, in fp32: rounded weights would lose a small update. It stays as it is.
        edits: of a learner on it.

    Returns:
        A copy, whose ``identity()`` is still the original's, and the rest of the edits; the model itself and all of
        them where nothing can be merged.
    """
    if clip.precision != "fp32" or all(type(edit).merge is Edit.merge for edit in edits):
        return clip, list(edits)
    other: FrozenCLIP = object.__new__(type(clip))  # copy.copy would be answered by the shared model of its name
    vars(other).update(vars(clip))
    other.model = copy.deepcopy(clip.model)
    other.text, other.visual = TextTower(other.model), VisionTower(other.model)
    other.text.shares_prefix = clip.text.shares_prefix
    towers: dict[Tower, TextTower | VisionTower] = {"text": other.text, "vision": other.visual}
    return other, [edit for edit in edits if not edit.merge(towers[edit.tower])]
