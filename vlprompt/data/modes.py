"""From any of Pillow's modes to RGB: upright, with transparency over white, and with the right brightness."""

from __future__ import annotations

from typing import cast

import numpy as np
from PIL import ExifTags, Image

from vlprompt.errors import VlpromptError

MAX_PIXELS = 120_000_000  # 360 MB as RGB; phones with a 108-megapixel camera stay below
MAX_SIDE = 65_535  # the limit of JPEG; resizing a longer line of pixels to a square takes gigabytes
DEPTHS = (*range(8, 31, 2), 31)  # bits that sensors and files use for integers
DARK = 64  # 16-bit colours whose brightest upper byte is below this probably have fewer than 16 bits
ROUND_OFF = 1e-3
DRAWN = ("EPS", "WMF")  # formats whose decoding starts an interpreter
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image as RGB, upright, as a viewer shows it.

    EXIF orientation is applied if the EXIF can be read, and transparency (alpha, palette or colour key) becomes white.
    Integers of more than 8 bits are scaled by the smallest depth (8, 10, 12, … 31 bits) that holds the largest value,
    floats from the range 0 to 1 or 0 to 255. Pillow converts CMYK and other modes.

    Raises:
        VlpromptError: it has too many pixels, or values in an unknown range; the message does not name the image.
    """
    check_size(image)
    if getattr(image, "format", None) in DRAWN:
        raise VlpromptError(f"it is a drawing ({image.format}), not pixels: save it as PNG")
    deep = any(";16" in str(tile) for tile in getattr(image, "tile", None) or ())
    image.load()  # some formats have the EXIF after the pixels
    turn = _TURNS.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):
        return Image.fromarray(_bytes_of_integers(np.asarray(image).astype(np.int64))).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_bytes_of_floats(np.asarray(image))).convert("RGB")
    if deep:
        _check_brightness(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def check_size(image: Image.Image) -> None:
    """Raise a ``VlpromptError`` for an image with too many pixels or too long a side, before it is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise VlpromptError(
            f"it has {width:,} x {height:,} = {width * height:,} pixels; at most {MAX_PIXELS:,} with no side beyond "
            f"{MAX_SIDE:,} are read"
        )


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 (upright) if there is none or the EXIF is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF makes Pillow raise anything; the pixels may be fine
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _bytes_of_integers(values: np.ndarray) -> np.ndarray:
    """Scale integers (H, W) to bytes; Pillow's own conversion would clip values above 255 to white."""
    least, most = int(values.min(initial=0)), int(values.max(initial=0))
    if least < 0:
        raise VlpromptError(
            f"its values range from {least} to {most}, so it is unclear which is black: scale them to 0 to 255"
        )
    bits = next((bits for bits in DEPTHS if most < 1 << bits), DEPTHS[-1])
    scaled: np.ndarray = (values >> (bits - DEPTHS[0])).astype(np.uint8)
    return scaled


def _bytes_of_floats(values: np.ndarray) -> np.ndarray:
    """Scale floats (H, W) in the range 0 to 1 or 0 to 255 to bytes."""
    least, most = float(values.min(initial=0)), float(values.max(initial=0))
    if least >= -ROUND_OFF and most <= 1 + ROUND_OFF:
        scaled: np.ndarray = values.clip(0, 1) * 255
    elif least >= -ROUND_OFF and DARK <= most <= 255 + ROUND_OFF:
        scaled = values.clip(0, 255)
    else:
        raise VlpromptError(
            f"its values range from {least:g} to {most:g}, and neither from 0 to 1 nor from 0 to 255: scale them"
        )
    scaled = scaled.round()
    return scaled.astype(np.uint8)


def _check_brightness(image: Image.Image) -> None:
    """Raise a ``VlpromptError`` if 16-bit colours use fewer bits: Pillow keeps only the upper byte, nearly black."""
    bands = [band for band in image.getbands() if band not in "Aa"]
    most = max(cast("tuple[int, int]", image.getchannel(band).getextrema())[1] for band in bands)  # a pair for one band
    if 0 < most < DARK:
        raise VlpromptError(
            f"its 16-bit colours reach {most + 1}/256 of their range, so it would be nearly black: save it with 8 bits"
        )
