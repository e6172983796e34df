"""Images of a user's own that cannot be read: found before any work is done, and left out or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from PIL import Image

from vlprompt.data.images import reads_from_disk
from vlprompt.data.masks import open_pair
from vlprompt.data.modes import to_rgb
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.data.streaming import default_threads
from vlprompt.errors import VlpromptError, nearest, warn

ACTIONS = ("skip", "stop")
SHOWN = 3  # sentences of images that are left out
Progress = Callable[[int, int], None]


def find_unreadable(
    splits: DatasetSplits, items: Sequence[Item], progress: Progress | None = None, masks: bool = False
) -> dict[str, str]:
    """Read images and return a sentence for each that cannot be read, by its path.

    Whole files are read, but JPEGs are decoded at an eighth of their size, which finds what is missing in them too.
    With ``masks`` the mask of each image's region is read too, and must be of its size.
    """
    from_disk = reads_from_disk(splits)
    threads = default_threads() if from_disk else 0  # what opens other images may not bear threads

    def problem(item: Item) -> str:
        try:
            if masks:
                open_pair(splits, item)
            else:
                splits.open_image(item, _decode_small) if from_disk else splits.open_image(item)
        except VlpromptError as error:
            return str(error)
        return ""

    found: dict[str, str] = {}
    pool = ThreadPoolExecutor(threads) if threads else None
    try:
        for done, (item, said) in enumerate(
            zip(items, (pool.map if pool else map)(problem, items), strict=True), start=1
        ):
            if said:
                found[item.path] = said
            if progress:
                progress(done, len(items))
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return found


def _decode_small(image: Image.Image) -> Any:
    if image.format == "JPEG":
        image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
    return to_rgb(image)


def leave_out_unreadable(
    splits: DatasetSplits,
    parts: Sequence[str],
    action: str = "skip",
    progress: Progress | None = None,
    masks: bool = False,
) -> DatasetSplits:
    """Return a dataset without the images that cannot be read; a warning, ``notes`` and ``unreadable`` tell them.

    Args:
        splits: the dataset.
        parts: of ``train``, ``val``, ``test`` and ``pool``, those whose images will be used.
        action: ``skip`` leaves them out, ``stop`` raises.
        progress: called with the number of images read and in all.
        masks: whether an image is of use with the mask of its region alone.

    Raises:
        VlpromptError: an image cannot be read and ``action`` is stop, or without them a part or a class is empty.
    """
    if action not in ACTIONS:
        raise VlpromptError(f"unknown on_unreadable '{action}': {nearest(action, ACTIONS)}")
    wanted = list({item.path: item for part in parts for item in getattr(splits, part)}.values())
    found = find_unreadable(splits, wanted, progress, masks)
    if not found:
        return splits
    count = f"{len(found):,} of {len(wanted):,} images of {splits.name} cannot be read"
    if action == "stop":
        raise VlpromptError(f"{next(iter(found.values()))} ({count}; on_unreadable=skip leaves them out)")
    kept = {part: [item for item in getattr(splits, part) if item.path not in found] for part in parts}
    for part, items in kept.items():
        lost = {item.label for item in getattr(splits, part)} - {item.label for item in items}
        if lost and (part == "train" or not items):
            of = "" if min(lost) < 0 else f" of '{splits.class_names[min(lost)]}'"
            raise VlpromptError(f"{count}, and none of the {part} images{of} can: {next(iter(found.values()))}")
    note = f"{count} and are left out: {'; '.join(list(found.values())[:SHOWN])}"
    note += f"; and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    warn(note)
    return replace(splits.with_parts(kept), notes=(*splits.notes, note), unreadable=tuple(found))
