"""Merges edits that amount to a change of weights, such as low-rank updates and norms, into a copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from vlprompt.clip.edits import Edit, Tower
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.towers import TextTower, VisionTower


def merged(clip: FrozenCLIP, edits: Sequence[Edit]) -> tuple[FrozenCLIP, list[Edit]]:
    """Return a copy of the model with the edits that can be merged, and the list of the other edits.

    Args:
        clip: the frozen model. It is not changed. Unless it is fp32 nothing is merged, since rounding would lose small
            updates.
        edits: of a learner on it.

    Returns:
        The copy, whose ``identity()`` is the original's, and the remaining edits. If nothing can be merged, the model
        itself and all edits.
    """
    if clip.precision != "fp32" or all(type(edit).merge is Edit.merge for edit in edits):
        return clip, list(edits)
    other: FrozenCLIP = object.__new__(type(clip))  # copy.copy would return the shared model of this name
    vars(other).update(vars(clip))
    other.model = copy.deepcopy(clip.model)
    other.text, other.visual = TextTower(other.model), VisionTower(other.model)
    other.text.shares_prefix = clip.text.shares_prefix
    towers: dict[Tower, TextTower | VisionTower] = {"text": other.text, "vision": other.visual}
    return other, [edit for edit in edits if not edit.merge(towers[edit.tower])]
