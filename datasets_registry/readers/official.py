"""Splits by a dataset's own authors: FGVC-Aircraft's lists and CIFAR's files."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from datasets_registry.card import Card
from datasets_registry.readers.base import on_disk, read_lines, readers, spaced_name
from datasets_registry.readers.folder import read_folder
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError


@readers.register("fgvc")
def read_fgvc(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """FGVC-Aircraft by variant: labels are the lines of ``variants.txt``, items those of ``images_variant_*.txt``."""
    names = [spaced_name(n) for n in read_lines(folder / "variants.txt", f"the list of {card.title}'s variants")]
    labels = {name: label for label, name in enumerate(names)}
    parts: dict[str, list[Item]] = {}
    for part in PARTS:
        path = folder / f"images_variant_{part}.txt"
        parts[part] = []
        for line in read_lines(path, f"the official {part} list of {card.title}"):
            image, _, name = line.partition(" ")
            if spaced_name(name) not in labels:
                raise VlpromptError(
                    f"a line of {path} must be an image and a variant of variants.txt, not '{line:.60}'"
                )
            parts[part].append(Item(f"{image}.jpg", labels[spaced_name(name)], spaced_name(name)))
    return on_disk(card, folder, names, parts, source="official")


# bytes before an image's pixels in a record: the label, in CIFAR-100 after a coarse one
CIFAR = {
    "cifar10": ("cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", 1),
    "cifar100": ("cifar-100-binary", ["train.bin"], "test.bin", 2),
}
SIDE = 32


@readers.register("cifar")
def read_cifar(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """CIFAR in its binary version, or as folders ``train`` and ``test`` of class folders."""
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return read_folder(card, folder, variant)
    below, train, test, header = CIFAR[card.name]
    names = tuple(card.class_names.values())
    parts: dict[str, list[Item]] = {"train": [], "test": []}
    for part, files in (("train", train), ("test", [test])):
        for file in files:
            labels = _records(folder / below / file, header)[:, header - 1]
            if labels.max(initial=0) >= len(names):
                raise VlpromptError(f"{folder / below / file} has the label {labels.max()}: it is not of {card.title}")
            parts[part] += [Item(f"{file}/{i:05d}", int(k), names[k]) for i, k in enumerate(labels)]
    opener = partial(open_cifar, folder / below, header)
    return DatasetSplits(card.name, names, parts["train"], (), parts["test"], opener, source="official")


def open_cifar(folder: Path, header: int, item: Item) -> Image.Image:
    """Open a record of a binary file as RGB, 32 x 32."""
    file, _, number = item.path.partition("/")
    pixels = _records(folder / file, header)[int(number), header:].reshape(3, SIDE, SIDE)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


@cache
def _records(path: Path, header: int) -> np.ndarray:
    """Map a file of records: (N, header + 3 * 32 * 32) bytes."""
    size = header + 3 * SIDE * SIDE
    if not path.is_file():
        raise VlpromptError(
            f"CIFAR's binary version is expected at {path}, which does not exist (the pickled one is not read)"
        )
    if not path.stat().st_size or path.stat().st_size % size:
        raise VlpromptError(f"{path} is damaged: its size is no multiple of {size} bytes; get it again")
    return np.memmap(path, np.uint8, "r").reshape(-1, size)
