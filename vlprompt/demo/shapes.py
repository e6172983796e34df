"""The embedded dataset `shapes`: symbols among others, with masks that show which one is meant.

Each image contains one symbol, its region, among symbols of other classes. So the image alone hardly shows which one is
meant, and the mask does. An image depends only on its split and number.
"""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.demo.glyph_painting import painted_over, random_glyph
from vlprompt.demo.glyph_sets import code_point_name
from vlprompt.demo.glyphs import TEMPLATES

CODES = "☊☏♦⚀⚡✌✗✠❁❉❧🐭♗♘♚♜♝♞♟♈♎↪😐😴"  # the embedded model can tell them apart when drawn alone
TRAIN, VAL, TEST = 16, 4, 32  # images per class
MASK = "mask/"  # prefix of the path of an image's mask
OTHERS = 4, 8  # number of symbols around: smallest, and one more than the largest


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
        templates=TEMPLATES,
        source="embedded",
        mirror=False,
    )


def shape_classes() -> dict[str, int]:
    """Code points by class name, in label order."""
    return {code_point_name(ord(sign)): ord(sign) for sign in CODES}


def draw_shape(item: Item) -> Image.Image:
    """Draw an item's image as RGB, 64 x 64, or the mask of its region if the path begins with ``mask/``."""
    path = item.path.removeprefix(MASK)
    seed = hashlib.blake2b(f"shapes/{path}".encode(), digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(seed, "big"))
    code = int(path.split("/")[1], 16)
    mask = random_glyph(code, rng, (0.5, 0.85))
    if path != item.path:
        return Image.fromarray(np.uint8(255) * (mask[:, :, 0] > 0.5).astype(np.uint8))
    others = [ord(sign) for sign in CODES if ord(sign) != code]
    around = [random_glyph(int(other), rng, (0.35, 0.7)) for other in rng.choice(others, rng.integers(*OTHERS))]
    return painted_over(mask, around, rng)
