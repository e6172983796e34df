"""The image formats that are read: an explicit list of raster formats, the same in folders, shards and ``predict``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import cache

from PIL import Image

# Pillow's name of each format, and the endings of its files. Vector formats (EPS, PDF, SVG, WMF) are left out, since
# reading them starts an interpreter. TGA has no signature, so it is tried last.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "ICO": (".ico",),
    "PSD": (".psd",),
    "PCX": (".pcx",),
    "DDS": (".dds",),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "TGA": (".tga",),
}
CURES = {"HEIF": "pip install pillow-heif", "AVIF": "pip install 'pillow>=11.3'"}
BARE = "without ending"  # how files without one are counted


@cache
def readable_formats() -> tuple[str, ...]:
    """Return the formats that the installed Pillow can read, with HEIF if ``pillow-heif`` is installed."""
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def image_suffixes() -> tuple[str, ...]:
    """Return the file endings, in lower case, of the formats that can be read."""
    return tuple(suffix for name in readable_formats() for suffix in FORMATS[name])


def describe_left_out(left_out: Mapping[str, int], place: str) -> str:
    """Return a sentence about files that are not images, counted by ending; empty if there are none.

    >>> describe_left_out({".pdf": 1, ".heic": 2}, "photos")
    '3 files in photos are left out because of their endings: 2 .heic (pip install pillow-heif), 1 .pdf'
    """
    if not left_out:
        return ""
    total = sum(left_out.values())
    cures = {suffix: f" ({cure})" for name, cure in CURES.items() for suffix in FORMATS[name]}
    counts = [
        f"{count:,} {suffix}{cures.get(suffix, '')}"
        for suffix, count in sorted(left_out.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    files, are, their = ("files", "are", "their endings") if total > 1 else ("file", "is", "its ending")
    return f"{total:,} {files} in {place} {are} left out because of {their}: {', '.join(counts)}"


def is_image_name(name: str) -> bool:
    """Whether a file is read as an image, by its ending."""
    return name.lower().endswith(image_suffixes())


def count_suffix(left_out: Counter[str], name: str) -> None:
    """Count a file that is left out by its ending."""
    _, dot, suffix = name.rpartition(".")
    left_out[f".{suffix.lower()}" if dot else BARE] += 1
