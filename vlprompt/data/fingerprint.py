"""Hashes that show whether images or a backbone have changed under the same name."""

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

BUDGET = 2**28  # bytes that are read: 256 MB take a fraction of a second
MOST_IN_MEMORY = 256  # images in memory that are opened


def images_fingerprint(splits: DatasetSplits, items: Sequence[Item]) -> str:
    """Return a SHA-256 over images: the sizes of all files, and the bytes of evenly spaced ones, 256 MB in total.

    Modification times are not included, so a copy of a dataset has the same hash. Masks of regions are included like
    images. For images in memory, the hash is over the pixels of 256 evenly spaced ones; for embedded datasets, over
    their version, since they come with the package.

    Args:
        splits: the dataset that the items belong to.
        items: the images, in order.

    Raises:
        VlpromptError: an image is missing or cannot be read.
    """
    digest = hashlib.sha256(f"{len(items)}{splits.region}".encode())
    whole = [] if splits.image_dir is not None else [item for item in items if os.path.isabs(item.path)]
    if whole:  # files of a pool, beside images that are not files
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
    """Return a SHA-256 over what training uses of a frozen model: weights, preprocessing, and the names' tokens."""
    tokens = clip.tokenizer(list(class_names), context_length=clip.context_length).tolist()
    facts = [clip.identity(), clip.precision, clip.preprocess_cfg, tokens]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _of_pixels(splits: DatasetSplits, items: Sequence[Item]) -> Iterator[bytes]:
    """Yield the paths and pixels of images."""
    for item in items:
        yield item.path.encode(errors="surrogateescape")
        try:
            yield splits.open_image(item).tobytes()
        except VlpromptError:
            yield b"unreadable"  # raises an error when it is used


def _of_files(folder: Path, items: Sequence[Item]) -> Iterator[bytes]:
    """Yield the paths and sizes of all files, and the bytes of evenly spaced ones."""
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
    """All values, or every ``share``-th if ``share`` is above 1."""
    count = max(1, int(len(values) / max(share, 1.0))) if len(values) else 0
    return [values[i * len(values) // count] for i in range(count)]
