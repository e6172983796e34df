"""The embedded `glyphs/*` datasets: symbols drawn on demand from the fonts that matplotlib ships, named by Unicode.

`glyphs/symbols` takes the part of ImageNet, ten more sets are the targets (`MINI11` in total), and four shifts redraw
the source's test set as ImageNet's variants do (`MINI_DG4`). An image depends only on its dataset, split and number.
"""

from __future__ import annotations

import hashlib
from functools import cache, partial

import numpy as np
from PIL import Image, ImageFilter

from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.demo.glyph_painting import PAINTERS, place, stamp
from vlprompt.demo.glyph_sets import EVERYDAY_FONTS, OTHER_FONTS, SOURCE, fonts_with, glyph_sets
from vlprompt.errors import VlpromptError, nearest

TARGETS = (
    "arrows",
    "cards",
    "chess",
    "cyrillic",
    "dominoes",
    "faces",
    "georgian",
    "greek",
    "hexagrams",
    "zodiac",
)
SHIFTS = ("v2", "sketch", "a", "r")
MINI11 = tuple(f"glyphs/{name}" for name in (SOURCE, *TARGETS))
MINI_DG4 = tuple(f"glyphs/{SOURCE}-{shift}" for shift in SHIFTS)
TEMPLATES = ("a symbol of a {}.",)
TRAIN, VAL, TEST, SHIFT_TEST = 32, 8, 32, 16  # images per class
FEW_CLASSES, TEST_OF_FEW = 32, 64  # sets with fewer classes have more test images per class


def draw_glyph(item: Item, dataset: str) -> Image.Image:
    """Draw an item's image as RGB, SIZE × SIZE; `dataset` is a name without `glyphs/`, such as `symbols-v2`."""
    seed = hashlib.blake2b(f"glyphs/{dataset}/{item.path}".encode(), digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(seed, "big"))
    name, _, shift = dataset.partition("-")
    codes = _codes_by_first(name)[int(item.path.split("/")[1], 16)]  # a pool's item has no class name
    code = codes[rng.integers(len(codes))]
    if name == SOURCE and shift != "v2":
        fonts = EVERYDAY_FONTS  # the other fonts are the part of symbols-v2
    else:
        fonts = fonts_with(code, OTHER_FONTS if shift == "v2" else EVERYDAY_FONTS + OTHER_FONTS)
    glyph = stamp(fonts[rng.integers(len(fonts))], code)
    if shift == "v2":
        mask = place(glyph, rng, turn=28, shear=0.35, scale=(0.4, 0.95))
    else:
        mask = place(glyph, rng, turn=14, shear=0.15, scale=(0.5, 0.95))
    picture = PAINTERS[shift](mask, rng)
    picture = picture + rng.uniform(0, 0.06) * rng.standard_normal(picture.shape, dtype=np.float32)
    image = Image.fromarray((255 * picture.clip(0, 1)).astype(np.uint8))
    blur = rng.uniform(-0.6, 1.0)  # six in ten images are blurred
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0 else image


@cache
def _codes_by_first(name: str) -> dict[int, tuple[int, ...]]:
    """Return the code points of each class of a set by the first one, which is in the paths of its items."""
    return {codes[0]: codes for codes in glyph_sets()[name].values()}


def read_glyphs(dataset: str) -> DatasetSplits:
    """Return a dataset by its name, with or without `glyphs/`; a shift (`symbols-sketch`, …) has only test images."""
    dataset = dataset.removeprefix("glyphs/")
    known = [name.removeprefix("glyphs/") for name in MINI11 + MINI_DG4]
    if dataset not in known:
        raise VlpromptError(f"unknown glyph set '{dataset}': {nearest(dataset, known)}")
    name, _, shift = dataset.partition("-")
    classes = glyph_sets()[name]
    n_test = SHIFT_TEST if shift else TEST_OF_FEW if len(classes) < FEW_CLASSES else TEST

    def items(split: str, count: int) -> list[Item]:
        return [
            Item(f"{split}/{codes[0]:x}/{number:02d}", label, class_name, shift)
            for label, (class_name, codes) in enumerate(classes.items())
            for number in range(count)
        ]

    return DatasetSplits(
        name=f"glyphs/{dataset}",
        class_names=tuple(classes),
        train=items("train", 0 if shift else TRAIN),
        val=items("val", 0 if shift else VAL),
        test=items("test", n_test),
        open_image=partial(draw_glyph, dataset=dataset),
        templates=TEMPLATES,
        source="embedded",
        mirror=False,
    )
