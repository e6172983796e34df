"""How a glyph becomes a picture: placed at random, and painted plainly, as a sketch, among clutter or in textures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from vlprompt.demo.glyph_sets import EVERYDAY_FONTS, SOURCE, font_path, glyph_sets

SIZE = 64  # pixels per side

Colour = np.ndarray  # (3,) float32 in [0, 1]
Picture = np.ndarray  # (SIZE, SIZE, 3) float32 in [0, 1]
Mask = np.ndarray  # (SIZE, SIZE, 1) float32 in [0, 1]


@lru_cache(maxsize=4096)
def stamp(font: str, code: int) -> Image.Image:
    """Return a glyph as a mask of 2·SIZE × 2·SIZE, centred, with its longer side scaled to SIZE."""
    drawn = _font(font)
    left, top, right, bottom = drawn.getbbox(chr(code))
    mask = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), chr(code), fill=255, font=drawn)
    scale = SIZE / max(mask.size)
    mask = mask.resize([max(1, round(side * scale)) for side in mask.size], Image.Resampling.LANCZOS)
    centred = Image.new("L", (2 * SIZE, 2 * SIZE))
    centred.paste(mask, (SIZE - mask.width // 2, SIZE - mask.height // 2))
    return centred


@cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    # Pillow's own layout engine: the optional one (raqm) may differ between machines.
    return ImageFont.truetype(str(font_path(name)), 2 * SIZE, layout_engine=ImageFont.Layout.BASIC)


def place(glyph: Image.Image, rng: np.random.Generator, turn: float, shear: float, scale: tuple[float, float]) -> Mask:
    """Return a glyph from `stamp` turned (degrees), sheared, scaled (share of the image) and shifted at random."""
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
    placed = glyph.transform((SIZE, SIZE), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
    return _as_mask(placed)


def _as_mask(image: Image.Image) -> Mask:
    """Convert a greyscale image."""
    return np.asarray(image, dtype=np.float32)[:, :, None] / 255


def _colours(rng: np.random.Generator, contrast: float) -> tuple[Colour, Colour]:
    """Return the colours of a glyph and its background, whose mean brightness differs by at least `contrast`."""
    while True:
        ink, paper = rng.random((2, 3), dtype=np.float32)
        if abs(ink.mean() - paper.mean()) >= contrast:
            return (ink, paper) if ink.mean() < paper.mean() or rng.random() < 0.3 else (paper, ink)


_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)[:, :, :, None] / SIZE


def _waves(rng: np.random.Generator, lowest: float, highest: float) -> Mask:
    """Return stripes of a random direction and a random frequency between two, as a mask."""
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
    """Return `ink` where the mask is 1 and `paper` where it is 0."""
    painted: Picture = paper + (ink - paper) * mask
    return painted


def _plain(mask: Mask, rng: np.random.Generator) -> Picture:
    """Paint a glyph on a flat or lightly textured surface."""
    ink, paper = _colours(rng, 0.3)
    tint = rng.random(3, dtype=np.float32)
    surface = _texture(rng, paper, tint, rng.uniform(0.05, 0.25)) if rng.random() < 0.6 else paper
    return _paint(mask, ink, surface)


def _sketch(mask: Mask, rng: np.random.Generator) -> Picture:
    """Paint only the outline of a glyph, as in pencil on paper."""
    image = Image.fromarray((255 * mask[:, :, 0]).astype(np.uint8))
    outline = _as_mask(image.filter(ImageFilter.MaxFilter(3))) - _as_mask(image.filter(ImageFilter.MinFilter(3)))
    pressure = 0.55 + 0.45 * _clouds(rng, 9)
    paper = np.float32(rng.uniform(0.85, 1.0)) - 0.08 * _clouds(rng, 16)
    grey = np.full(3, rng.uniform(0.0, 0.3), dtype=np.float32)
    return _paint(outline * pressure, grey, np.repeat(paper, 3, axis=2))


def _adverse(mask: Mask, rng: np.random.Generator) -> Picture:
    """Paint a glyph with parts of other glyphs behind it, and bars and discs before it."""
    ink, paper = _colours(rng, 0.3)
    codes = list(glyph_sets()[SOURCE].values())
    picture = np.broadcast_to(paper, (SIZE, SIZE, 3))
    for _ in range(rng.integers(2, 5)):
        other = stamp("DejaVuSans", codes[rng.integers(len(codes))][0])
        clutter = np.roll(place(other, rng, 180, 0.2, (0.4, 0.7)), rng.integers(0, SIZE, 2), axis=(0, 1))
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
    """Paint a glyph and its surroundings in strong textures and colours."""
    ink, paper = _colours(rng, 0.4)
    second_ink, second_paper = rng.random((2, 3), dtype=np.float32)
    return _paint(mask, _texture(rng, ink, second_ink, 0.7), _texture(rng, paper, second_paper, 0.6))


def random_glyph(code: int, rng: np.random.Generator, scale: tuple[float, float]) -> Mask:
    """Return a glyph in an everyday font, turned, scaled (share of the image) and shifted at random, as a mask."""
    return place(stamp(EVERYDAY_FONTS[rng.integers(len(EVERYDAY_FONTS))], code), rng, 14, 0.15, scale)


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
