"""``unlabelled=folder:PATH``: a pool of the user's own images beside a labelled dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from vlprompt.clip.naming import natural_name
from vlprompt.data.formats import describe_left_out
from vlprompt.data.images import open_either
from vlprompt.data.listing import list_images
from vlprompt.data.splits import NO_LABEL, DatasetSplits, Item
from vlprompt.errors import VlpromptError, nearest

SCHEME = "folder:"
ALL = "all"


def with_pool(splits: DatasetSplits, pool: str, *, follow_links: bool = False) -> DatasetSplits:
    """Return a dataset whose pool is the images of a folder, instead of any pool that it has.

    Args:
        splits: the dataset.
        pool: ``folder:PATH``; all images below it are used, and the names of sub-folders mean nothing.
        follow_links: also use linked folders.

    Raises:
        VlpromptError: there is no such folder, or no image in it.
    """
    folder = Path(pool.removeprefix(SCHEME)).expanduser().absolute()
    if not pool.startswith(SCHEME):
        raise VlpromptError(f"unlabelled must be folder:PATH, a folder of images, not {pool}")
    if not folder.is_dir():
        raise VlpromptError(f"unlabelled={pool} is not a folder")
    listing = list_images(folder, follow_links=follow_links)
    left_out = describe_left_out(listing.left_out, str(folder))
    if not listing.images:
        raise VlpromptError(f"unlabelled={pool} holds no images{f': {left_out}' if left_out else ''}")
    items = tuple(Item(os.path.join(folder, path), NO_LABEL, "") for path in listing.images)
    notes = (*splits.notes, left_out) if left_out else splits.notes
    return replace(splits, pool=items, notes=notes, open_image=partial(open_either, splits.open_image))


def with_pool_classes(splits: DatasetSplits, classes: str | Sequence[str]) -> DatasetSplits:
    """Return a dataset whose pool is known to contain only images of some classes.

    Args:
        splits: the dataset, with a pool.
        classes: names of those classes, or ``all``.

    Raises:
        VlpromptError: a name is not a class of the dataset.
    """
    if classes == ALL:
        return replace(splits, pool_classes=())
    labels = {natural_name(name): label for label, name in enumerate(splits.class_names)}
    names = [natural_name(name) for name in ([classes] if isinstance(classes, str) else classes)]
    if not names:
        raise VlpromptError("pool_classes is empty: name the classes that the pool's images may belong to, or give all")
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise VlpromptError(
            f"pool_classes: '{unknown[0]}' is not a class of {splits.name}: {nearest(unknown[0], labels)}"
        )
    return replace(splits, pool_classes=tuple(sorted({labels[name] for name in names})))
