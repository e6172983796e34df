"""Datasets that need no files from the user: emoji, glyphs, shapes, and scikit-learn's handwritten digits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from datasets_registry.card import Card
from datasets_registry.readers.base import generated_split, readers
from vlprompt.data.splits import DatasetSplits, Item

DIGIT_SIZE = 64  # pixels; the scans are 8 x 8


@readers.register("emoji")
def read_emoji(card: Card, folder: Path | None, variant: str) -> DatasetSplits:
    """The emoji of three artists, split by emoji."""
    from vlprompt.demo import emoji

    return emoji.read_emoji()


@readers.register("glyphs")
def read_glyphs(card: Card, folder: Path | None, variant: str) -> DatasetSplits:
    """Symbols rendered on demand."""
    from vlprompt.demo import glyphs

    return glyphs.read_glyphs(variant)


@readers.register("shapes")
def read_shapes(card: Card, folder: Path | None, variant: str) -> DatasetSplits:
    """Symbols in front of other symbols, with masks of their regions."""
    from vlprompt.demo import shapes

    return shapes.read_shapes()


@readers.register("digits")
def read_digits(card: Card, folder: Path | None, variant: str) -> DatasetSplits:
    """1,797 handwritten digits scanned at 8 x 8 pixels (the UCI set's test part), each class split 50/20/30."""
    _, targets = _scans()
    train: list[Item] = []
    val: list[Item] = []
    test: list[Item] = []
    for label, (digit, name) in enumerate(card.class_names.items()):
        paths = [f"{digit}/{i:04d}" for i in np.flatnonzero(targets == label)]
        for part, drawn in zip((train, val, test), generated_split(paths), strict=True):
            part += [Item(path, label, name) for path in drawn]
    return DatasetSplits(
        card.name, tuple(card.class_names.values()), train, val, test, open_image=open_digit, source="embedded"
    )


def open_digit(item: Item) -> Image.Image:
    """Open a digit as RGB, dark ink on white paper, 64 x 64."""
    images, _ = _scans()
    ink = images[int(item.path.rpartition("/")[2])] / 16  # the scans count 0 to 16 inked pixels in each 4 x 4 block
    paper = Image.fromarray(np.uint8(255 * (1 - ink)))
    return paper.resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC).convert("RGB")


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # here, since scikit-learn takes a second to import

    data = load_digits()
    return data.images, data.target
