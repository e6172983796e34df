"""What tells that images or a backbone are no longer what they were, under the same names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vlprompt.data.splits import DatasetSplits, Item, mask_of
from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from vlprompt.clip.frozen import FrozenCLIP

T = TypeVar("T")

BUDGET = 2**28  # bytes that are read for it: 256 MB take a fraction of a second
MOST_IN_MEMORY = 256  # images that are opened for it where they are not files


def images_fingerprint(splits: DatasetSplits, items: Sequence[Item]) -> str:
    """Return a SHA-256 over images: the size of every file, and the bytes of as many as 256 MB hold, evenly spaced.

    Dates do not count, so that a copy of a dataset has the same. Masks of regions count as images do. Of images in
    memory it is over the pixels of 256, evenly spaced; of embedded ones over their version, since they come with the
    package.

    Args:
        splits: the dataset that the items belong to.
        items: whose images are asked for, in their order.

    Raises:
        VlpromptError: an image is missing or cannot be read.
    """
    digest = hashlib.sha256(f"{len(items)}{splits.region}".encode())
    whole = [] if splits.image_dir is not None else [item for item in items if os.path.isabs(item.path)]
    if whole:  # of a pool beside images that are no files
        items = [item for item in items if not os.path.isabs(item.path)]
        for part in _of_files(Path(os.sep), whole):
            digest.update(part)
    if splits.image_dir is not None:
        parts: Iterable[bytes] = _of_files(splits.image_dir, items)
    elif set(splits.source.split("+")) == {"embedded"}:
        parts = [f"{splits.name} {splits.version}".encode()]
    else:
        parts = _of_pixels(splits, _spaced(items, len(items) / MOST_IN_MEMORY))
    for part in parts:
        digest.update(part)
    if splits.image_dir is not None and items and mask_of(splits, items[0]):
        masked = [replace(item, path=mask) for item in items if (mask := mask_of(splits, item))]
        for part in _of_files(splits.image_dir, masked):
            digest.update(part)
    return digest.hexdigest()


def backbone_fingerprint(clip: FrozenCLIP, class_names: Sequence[str]) -> str:
    """Return a SHA-256 over all that learning takes from a frozen model: weights, image preparation, names' tokens."""
    tokens = clip.tokenizer(list(class_names), context_length=clip.context_length).tolist()
    facts = [clip.identity(), clip.precision, clip.preprocess_cfg, tokens]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _of_pixels(splits: DatasetSplits, items: Sequence[Item]) -> Iterator[bytes]:
    for item in items:
        yield item.path.encode(errors="surrogateescape")
        try:
            yield splits.open_image(item).tobytes()
        except VlpromptError:
            yield b"unreadable"  # told where it matters


def _of_files(folder: Path, items: Sequence[Item]) -> Iterator[bytes]:
    paths = [os.path.join(folder, item.path) for item in items]
    try:
        sizes = [os.stat(path).st_size for path in paths]
        for item, size in zip(items, sizes, strict=True):
            yield f"{item.path} {size}\n".encode(errors="surrogateescape")
        for path in _spaced(paths, sum(sizes) / BUDGET):
            with open(path, "rb") as file:
                yield file.read(BUDGET)
    except OSError as error:
        raise VlpromptError(f"the image {error.filename} cannot be read ({error.strerror})") from error


def _spaced(values: Sequence[T], share: float) -> Sequence[T]:
    """Every value, or where that is ``share`` times too many, evenly spaced ones."""
    count = max(1, int(len(values) / max(share, 1.0))) if len(values) else 0
    return [values[i * len(values) // count] for i in range(count)]
