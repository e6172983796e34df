"""Images of a user's own that have no labels, beside a dataset that has."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from vlprompt.data.formats import describe_left_out
from vlprompt.data.images import open_either
from vlprompt.data.listing import list_images
from vlprompt.data.splits import NO_LABEL, DatasetSplits, Item
from vlprompt.errors import VlpromptError

SCHEME = "folder:"


def with_pool(splits: DatasetSplits, pool: str, *, follow_links: bool = False) -> DatasetSplits:
    """Return a dataset with a folder's images for its pool, in the place of any that it has.

    Args:
        splits: the dataset.
        pool: ``folder:PATH``; images anywhere below it are taken, and names of sub-folders mean nothing.
        follow_links: go into linked folders too.

    Raises:
        VlpromptError: there is no such folder, or no image in it.
    """
    folder = Path(pool.removeprefix(SCHEME)).expanduser().absolute()
    if not pool.startswith(SCHEME):
        raise VlpromptError(f"unlabelled must be folder:PATH, a folder of images, not {pool}")
    if not folder.is_dir():
        raise VlpromptError(f"unlabelled={pool} is no folder")
    found = list_images(folder, follow_links=follow_links)
    left_out = describe_left_out(found.left_out, str(folder))
    if not found.images:
        raise VlpromptError(f"unlabelled={pool} holds no images{f': {left_out}' if left_out else ''}")
    items = tuple(Item(os.path.join(folder, path), NO_LABEL, "") for path in found.images)
    notes = (*splits.notes, left_out) if left_out else splits.notes
    return replace(splits, pool=items, notes=notes, open_image=partial(open_either, splits.open_image))
