"""The embedded dataset `shapes`: a symbol before others of its kind, and the mask that says which it is.

Each image is a window around one symbol, its region, among symbols of other classes: what is cropped says little of
which is meant, and the mask says it. An image depends on its split and number alone.
"""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.demo import glyphs

CODES = "☊☏♦⚀⚡✌✗✠❁❉❧🐭♗♘♚♜♝♞♟♈♎↪😐😴"  # what the embedded model tells apart where each is alone on paper
TRAIN, VAL, TEST = 16, 4, 32  # images a class
MASK = "mask/"  # in front of a path, for the mask of its image
OTHERS = 4, 8  # symbols around, fewest and one more than the most


def read_shapes() -> DatasetSplits:
    """Return the dataset: 24 classes, with a mask of its region for each image."""
    classes = shape_classes()

    def items(split: str, count: int) -> list[Item]:
        return [
            Item(path, label, name, mask=MASK + path)
            for label, (name, code) in enumerate(classes.items())
            for path in (f"{split}/{code:x}/{number:02d}" for number in range(count))
        ]

    return DatasetSplits(
        name="shapes",
        class_names=tuple(classes),
        train=items("train", TRAIN),
        val=items("val", VAL),
        test=items("test", TEST),
        open_image=draw_shape,
        templates=glyphs.TEMPLATES,
        source="embedded",
        mirror=False,
    )


def shape_classes() -> dict[str, int]:
    """Code points by class name, in label order."""
    return {glyphs.code_point_name(ord(sign)): ord(sign) for sign in CODES}


def draw_shape(item: Item) -> Image.Image:
    """Draw an item's image as RGB, 64 x 64, or the mask of its region if the path begins with ``mask/``."""
    path = item.path.removeprefix(MASK)
    seed = hashlib.blake2b(f"shapes/{path}".encode(), digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(seed, "big"))
    code = int(path.split("/")[1], 16)
    mask = glyphs.random_glyph(code, rng, (0.5, 0.85))
    if path != item.path:
        return Image.fromarray(np.uint8(255) * (mask[:, :, 0] > 0.5).astype(np.uint8))
    others = [ord(sign) for sign in CODES if ord(sign) != code]
    around = [glyphs.random_glyph(int(other), rng, (0.35, 0.7)) for other in rng.choice(others, rng.integers(*OTHERS))]
    return glyphs.painted_over(mask, around, rng)
