"""Unreadable images of the user's own datasets: found before any work is done, and left out or refused."""

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
SHOWN = 3  # unreadable images whose errors are shown
Progress = Callable[[int, int], None]


def find_unreadable(
    splits: DatasetSplits, items: Sequence[Item], progress: Progress | None = None, masks: bool = False
) -> dict[str, str]:
    """Read images, and return the error of each one that cannot be read, by its path.

    JPEGs are decoded at an eighth of their size, which still reads the whole file.

    Args:
        splits: the dataset.
        items: the images to read.
        progress: called with the number of images read so far and in total.
        masks: whether to read each image's mask too, and check its size.
    """
    from_disk = reads_from_disk(splits)
    threads = default_threads() if from_disk else 0  # a user's own dataset may not be thread-safe

    def problem(item: Item) -> str:
        try:
            if masks:
                open_pair(splits, item)
            else:
                splits.open_image(item, _decode_small) if from_disk else splits.open_image(item)
        except VlpromptError as error:
            return str(error)
        return ""

    problems: dict[str, str] = {}
    pool = ThreadPoolExecutor(threads) if threads else None
    try:
        results = zip(items, (pool.map if pool else map)(problem, items), strict=True)
        for done, (item, sentence) in enumerate(results, start=1):
            if sentence:
                problems[item.path] = sentence
            if progress:
                progress(done, len(items))
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return problems


def _decode_small(image: Image.Image) -> Any:
    """Decode an opened image, a JPEG at an eighth of its size."""
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
    """Return a dataset without its unreadable images, with a warning; ``notes`` and ``unreadable`` name them.

    Args:
        splits: the dataset.
        parts: those of ``train``, ``val``, ``test`` and ``pool`` whose images will be used.
        action: ``skip`` leaves them out, ``stop`` raises an error.
        progress: called with the number of images read so far and in total.
        masks: whether each image also needs its mask.

    Raises:
        VlpromptError: an image cannot be read and ``action`` is ``stop``; or all images of a part or a class are
            unreadable.
    """
    if action not in ACTIONS:
        raise VlpromptError(f"unknown on_unreadable '{action}': {nearest(action, ACTIONS)}")
    items = list({item.path: item for part in parts for item in getattr(splits, part)}.values())
    problems = find_unreadable(splits, items, progress, masks)
    if not problems:
        return splits
    count = f"{len(problems):,} of {len(items):,} images of {splits.name} cannot be read"
    sentences = list(problems.values())
    if action == "stop":
        raise VlpromptError(f"{sentences[0]} ({count}; on_unreadable=skip leaves them out)")
    kept = {part: [item for item in getattr(splits, part) if item.path not in problems] for part in parts}
    for part, items in kept.items():
        lost = {item.label for item in getattr(splits, part)} - {item.label for item in items}
        if lost and (part == "train" or not items):
            of_class = "" if min(lost) < 0 else f" of '{splits.class_names[min(lost)]}'"
            raise VlpromptError(f"{count}, and none of the {part} images{of_class} can: {sentences[0]}")
    note = f"{count} and are left out: {'; '.join(sentences[:SHOWN])}"
    note += f"; and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    warn(note)
    return replace(splits.with_parts(kept), notes=(*splits.notes, note), unreadable=tuple(problems))
