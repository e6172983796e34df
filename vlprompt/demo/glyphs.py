"""The embedded `glyphs/*` datasets: symbols drawn on demand from the fonts that matplotlib ships, named by Unicode.

`glyphs/symbols` plays ImageNet's part, ten more sets are the targets (`MINI11` in all), and four shifts redraw the
source's test set as ImageNet's variants do (`MINI_DG4`). An image depends on its dataset, split and number alone.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.errors import VlpromptError, nearest

SIZE = 64  # pixels a side
SOURCE = "symbols"
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
TRAIN, VAL, TEST, SHIFT_TEST = 32, 8, 32, 16  # images a class
FEW_CLASSES, TEST_OF_FEW = 32, 64  # sets of fewer classes get more test images a class

EVERYDAY_FONTS: tuple[str, ...] = ("DejaVuSans", "DejaVuSans-Bold")
OTHER_FONTS = (
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
)

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ARROWS = "←↑→↓↔↕↖↗↘↙↜↝↞↠↢↣↤↥↦↧↩↪↫↬↭↯↰↱↲↳↴↵↶↷↺↻⇄⇅⇆⇇⇈⇉⇊⇋⇌⇐⇑⇒⇓⇔⇕⇚⇛⇠⇡⇢⇣⇦⇧⇨⇩"


@cache
def font_path(name: str) -> Path:
    """Return the file of one of matplotlib's fonts, such as `DejaVuSans-Bold`."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


@cache
def font_codes(name: str) -> frozenset[int]:
    """Return the code points that a font really draws."""
    from fontTools.ttLib import TTFont

    with TTFont(font_path(name), lazy=True) as font:
        return frozenset(font.getBestCmap())


def code_point_name(code: int) -> str:
    """Return a code point's Unicode name as natural lower-case words.

    >>> code_point_name(0x2654), code_point_name(0x1F0A1), code_point_name(0x431), code_point_name(0x1F064)
    ('white chess king', 'ace of spades', 'cyrillic letter be', 'domino zero one')
    """
    name = unicodedata.name(chr(code)).lower()
    if name.startswith("domino tile vertical-"):
        first, second = (DIGITS[int(part)] for part in name.split("-")[1:])
        return f"domino {first} {second}"
    return name.removeprefix("playing card ").replace("small letter", "letter").replace("-", " ")


def _codes(*spans: tuple[int, int]) -> list[int]:
    return [code for start, stop in spans for code in range(start, stop)]


def _symbols() -> list[int]:
    """Return the source's code points: miscellaneous symbols and dingbats without the targets' and the oddest ones."""
    left_out = _codes(
        (0x2619, 0x261A),
        (0x2630, 0x2638),  # trigrams, close to the hexagrams
        (0x2648, 0x2660),  # zodiac and chess
        (0x2673, 0x267A),  # numbered recycling signs
        (0x2686, 0x2690),
        (0x269E, 0x26A0),
        (0x26A2, 0x26AA),
        (0x26AC, 0x26B0),
    )
    faces = _codes((0x1F42D, 0x1F42F), (0x1F431, 0x1F432), (0x1F435, 0x1F436))  # of four animals
    codes = _codes((0x2600, 0x26C4), (0x2701, 0x2753), (0x2761, 0x2768)) + faces
    return [code for code in codes if code not in set(left_out)]


@cache
def glyph_sets() -> dict[str, dict[str, tuple[int, ...]]]:
    """Return `{set: {class name: code points}}` for the source and the targets, as far as DejaVu Sans draws them."""
    cards = [start + rank for start in (0x1F0A0, 0x1F0B0, 0x1F0C0, 0x1F0D0) for rank in range(1, 15) if rank != 12]
    sets = {
        "symbols": _symbols(),
        "arrows": [ord(arrow) for arrow in ARROWS],
        "cards": cards,
        "chess": _codes((0x2654, 0x2660)),
        "cyrillic": _codes((0x430, 0x450)),
        "dominoes": _codes((0x1F063, 0x1F094)),
        "faces": _codes((0x1F600, 0x1F641)),
        "georgian": _codes((0x10D0, 0x10F1)),
        "greek": [code for code in _codes((0x3B1, 0x3CA)) if code != 0x3C2],  # without the final sigma
        "hexagrams": _codes((0x4DC0, 0x4E00)),
        "zodiac": _codes((0x2648, 0x2654)),
    }
    drawn = font_codes("DejaVuSans")
    upper = {"cyrillic", "greek"}  # the capital is a second drawing of the same letter
    return {
        name: {
            code_point_name(code): (code, ord(chr(code).upper())) if name in upper else (code,)
            for code in codes
            if code in drawn
        }
        for name, codes in sets.items()
    }


Colour = np.ndarray  # (3,) float32 in [0, 1]
Picture = np.ndarray  # (SIZE, SIZE, 3) float32 in [0, 1]
Mask = np.ndarray  # (SIZE, SIZE, 1) float32 in [0, 1]


@lru_cache(maxsize=4096)
def _stamp(font: str, code: int) -> Image.Image:
    """Return a glyph as a mask of twice SIZE a side, its longer side scaled to SIZE, centred."""
    drawn = _font(font)
    left, top, right, bottom = drawn.getbbox(chr(code))
    mask = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), chr(code), fill=255, font=drawn)
    scale = SIZE / max(mask.size)
    mask = mask.resize([max(1, round(side * scale)) for side in mask.size], Image.Resampling.LANCZOS)
    stamp = Image.new("L", (2 * SIZE, 2 * SIZE))
    stamp.paste(mask, (SIZE - mask.width // 2, SIZE - mask.height // 2))
    return stamp


@cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    # Pillow's own layout engine: the optional one (raqm) may differ between machines.
    return ImageFont.truetype(str(font_path(name)), 2 * SIZE, layout_engine=ImageFont.Layout.BASIC)


@cache
def _fonts_with(code: int, wanted: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in wanted if code in font_codes(name)) or EVERYDAY_FONTS


def _place(stamp: Image.Image, rng: np.random.Generator, turn: float, shear: float, scale: tuple[float, float]) -> Mask:
    """Return a stamp turned (degrees), sheared, scaled (share of the image) and shifted at random."""
    angle, sx = math.radians(rng.uniform(-turn, turn)), rng.uniform(-shear, shear)
    factor = rng.uniform(*scale)
    stretch = rng.uniform(0.88, 1.12)
    room = 0.42 * (1 - factor) * SIZE
    dx, dy = rng.uniform(-room, room, 2)
    cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
    a, b, d, e = cos * stretch, sin + sx, -sin, cos / stretch
    middle = SIZE / 2
    c = SIZE - a * (middle + dx) - b * (middle + dy)
    f = SIZE - d * (middle + dx) - e * (middle + dy)
    placed = stamp.transform((SIZE, SIZE), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
    return _as_mask(placed)


def _as_mask(image: Image.Image) -> Mask:
    return np.asarray(image, dtype=np.float32)[:, :, None] / 255


def _colours(rng: np.random.Generator, contrast: float) -> tuple[Colour, Colour]:
    """Return a glyph's and its background's colour, whose mean brightness differs by `contrast` at least."""
    while True:
        ink, paper = rng.random((2, 3), dtype=np.float32)
        if abs(ink.mean() - paper.mean()) >= contrast:
            return (ink, paper) if ink.mean() < paper.mean() or rng.random() < 0.3 else (paper, ink)


_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)[:, :, :, None] / SIZE


def _waves(rng: np.random.Generator, lowest: float, highest: float) -> Mask:
    """Return stripes of a random direction, and of a frequency between the two, as a mask."""
    angle, frequency, phase = rng.uniform(0, math.tau), rng.uniform(lowest, highest), rng.uniform(0, math.tau)
    along = _ROWS * math.sin(angle) + _COLUMNS * math.cos(angle)
    waves: Mask = 0.5 + 0.5 * np.sin(math.tau * frequency * along + phase)
    return waves


def _clouds(rng: np.random.Generator, cells: int) -> Mask:
    """Return smooth blobs, about `cells` across, as a mask."""
    small = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return _as_mask(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _texture(rng: np.random.Generator, first: Colour, second: Colour, strength: float = 1.0) -> Picture:
    """Return a surface of two colours: stripes, checks, blobs or a gradient."""
    kind = rng.integers(4)
    if kind == 0:
        share = _waves(rng, 2, 9) > 0.5
    elif kind == 1:
        share = (_waves(rng, 2, 7) > 0.5) ^ (_waves(rng, 2, 7) > 0.5)
    elif kind == 2:
        share = _clouds(rng, int(rng.integers(3, 12)))
    else:
        share = _waves(rng, 0.2, 0.5)
    mixed: Picture = first + (second - first) * (strength * share)
    return mixed


def _paint(mask: Mask, ink: Colour | Picture, paper: Colour | Picture) -> Picture:
    painted: Picture = paper + (ink - paper) * mask
    return painted


def _plain(mask: Mask, rng: np.random.Generator) -> Picture:
    """Ink on a surface that is flat, or lightly textured."""
    ink, paper = _colours(rng, 0.3)
    tint = rng.random(3, dtype=np.float32)
    surface = _texture(rng, paper, tint, rng.uniform(0.05, 0.25)) if rng.random() < 0.6 else paper
    return _paint(mask, ink, surface)


def _sketch(mask: Mask, rng: np.random.Generator) -> Picture:
    """The outline alone, in pencil on paper."""
    image = Image.fromarray((255 * mask[:, :, 0]).astype(np.uint8))
    outline = _as_mask(image.filter(ImageFilter.MaxFilter(3))) - _as_mask(image.filter(ImageFilter.MinFilter(3)))
    pressure = 0.55 + 0.45 * _clouds(rng, 9)
    paper = np.float32(rng.uniform(0.85, 1.0)) - 0.08 * _clouds(rng, 16)
    grey = np.full(3, rng.uniform(0.0, 0.3), dtype=np.float32)
    return _paint(outline * pressure, grey, np.repeat(paper, 3, axis=2))


def _adverse(mask: Mask, rng: np.random.Generator) -> Picture:
    """Other glyphs' parts behind the glyph, and bars and discs before it."""
    ink, paper = _colours(rng, 0.3)
    codes = list(glyph_sets()[SOURCE].values())
    picture = np.broadcast_to(paper, (SIZE, SIZE, 3))
    for _ in range(rng.integers(2, 5)):
        other = _stamp("DejaVuSans", codes[rng.integers(len(codes))][0])
        clutter = np.roll(_place(other, rng, 180, 0.2, (0.4, 0.7)), rng.integers(0, SIZE, 2), axis=(0, 1))
        picture = _paint(0.6 * clutter, rng.random(3, dtype=np.float32), picture)
    picture = _paint(mask, ink, picture)
    cover = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(cover)
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(0.1, 0.9, 2) * SIZE
        if rng.random() < 0.5:
            radius = rng.uniform(0.07, 0.16) * SIZE
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        else:
            dx, dy = rng.uniform(-1, 1, 2) * SIZE
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=255, width=int(rng.integers(3, 8)))
    return _paint(_as_mask(cover), rng.random(3, dtype=np.float32), picture)


def _rendition(mask: Mask, rng: np.random.Generator) -> Picture:
    """Strong textures and colours, in the glyph and around it."""
    ink, paper = _colours(rng, 0.4)
    second_ink, second_paper = rng.random((2, 3), dtype=np.float32)
    return _paint(mask, _texture(rng, ink, second_ink, 0.7), _texture(rng, paper, second_paper, 0.6))


def random_glyph(code: int, rng: np.random.Generator, scale: tuple[float, float]) -> Mask:
    """Return a glyph in an everyday font, turned, scaled (share of the image) and shifted at random, as a mask."""
    return _place(_stamp(EVERYDAY_FONTS[rng.integers(len(EVERYDAY_FONTS))], code), rng, 14, 0.15, scale)


def painted_over(mask: Mask, others: Sequence[Mask], rng: np.random.Generator) -> Image.Image:
    """Paint a glyph in dark ink before others in any colour, rolled to anywhere, on a light and textured surface."""
    ink, (paper, tint) = 0.35 * rng.random(3, dtype=np.float32), 0.6 + 0.4 * rng.random((2, 3), dtype=np.float32)
    picture = _texture(rng, paper, tint)
    for other in others:
        away = np.roll(other, rng.integers(0, SIZE, 2), axis=(0, 1))
        picture = _paint(away, rng.random(3, dtype=np.float32), picture)
    picture = _paint(mask, ink, picture)
    return Image.fromarray((255 * picture.clip(0, 1)).astype(np.uint8))


PAINTERS = {"": _plain, "v2": _plain, "sketch": _sketch, "a": _adverse, "r": _rendition}


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
        fonts = _fonts_with(code, OTHER_FONTS if shift == "v2" else EVERYDAY_FONTS + OTHER_FONTS)
    stamp = _stamp(fonts[rng.integers(len(fonts))], code)
    if shift == "v2":
        mask = _place(stamp, rng, turn=28, shear=0.35, scale=(0.4, 0.95))
    else:
        mask = _place(stamp, rng, turn=14, shear=0.15, scale=(0.5, 0.95))
    picture = PAINTERS[shift](mask, rng)
    picture = picture + rng.uniform(0, 0.06) * rng.standard_normal(picture.shape, dtype=np.float32)
    image = Image.fromarray((255 * picture.clip(0, 1)).astype(np.uint8))
    blur = rng.uniform(-0.6, 1.0)  # six in ten images are blurred
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0 else image


@cache
def _codes_by_first(name: str) -> dict[int, tuple[int, ...]]:
    """Return the codes of each class of a set by the first of them, which the paths of its items have."""
    return {codes[0]: codes for codes in glyph_sets()[name].values()}


def read_glyphs(dataset: str) -> DatasetSplits:
    """Return a dataset by its name, with or without `glyphs/`; a shift (`symbols-sketch`, …) has a test split alone."""
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
