"""Reading images: from a file to an upright RGB image, or to an error that names the file."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlprompt.base.checks import is_tensor
from vlprompt.base.files import inside, is_relative_inside
from vlprompt.data.formats import readable_formats
from vlprompt.data.listing import similar_name
from vlprompt.data.modes import MAX_PIXELS, check_size, to_rgb
from vlprompt.data.remote import Stored, is_url, read_url
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.errors import VlpromptError

# check_size has its own limit and message; Pillow's warning would call a photo of 100 megapixels an attack.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_rgb(
    path: str | os.PathLike[str] | BinaryIO, decode: Callable[[Image.Image], Any] = to_rgb, *, name: str | None = None
) -> Any:
    """Read an image file as RGB, or as whatever ``decode`` returns.

    Args:
        path: the file's path, or its bytes as a file object.
        decode: receives the opened image, whose pixels are not read yet, and returns the result.
        name: the image's name in errors; by default its path.

    Raises:
        VlpromptError: the file is missing, empty, truncated, not a regular file, not in a format of
            ``vlprompt.data.formats``, or has more than ``MAX_PIXELS`` pixels.
    """
    name = name or str(path)
    try:
        if not hasattr(path, "read"):
            _check_regular(path)
        with Image.open(path, formats=readable_formats()) as image:
            check_size(image)
            return decode(image)
    except FileNotFoundError:
        raise VlpromptError(f"the image {name} does not exist") from None
    # Pillow's decoders raise whatever they meet (OSError, SyntaxError, struct.error, DecompressionBombError, ...).
    except Exception as error:
        raise VlpromptError(f"cannot read the image {name} ({_reason(error, path)}): replace or remove it") from error


def _check_regular(path: str | os.PathLike[str]) -> None:
    """Raise a ``VlpromptError`` if a path is not a regular file: reading a pipe, device or socket may never end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise VlpromptError(
            "it is a folder" if stat.S_ISDIR(mode) else "it is a pipe, a device or a socket, not a file"
        )


def _reason(error: Exception, path: Any) -> str:
    """Why an image cannot be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        if isinstance(path, (str, os.PathLike)) and not os.path.getsize(path):
            return "it is empty"
        return "it is not an image in a supported format, such as JPEG, PNG or WebP"
    if isinstance(error, Image.DecompressionBombError):
        return f"{error}".partition(",")[0] + f"; at most {MAX_PIXELS:,} are read"
    return str(error) or type(error).__name__


def as_rgb(image: Any, place: str = "the image") -> Image.Image:
    """Return an image of any kind as an RGB ``PIL.Image``.

    Args:
        image: a ``PIL.Image``, a path, a URL that fsspec can open (``s3://…``), an array (H, W) or (H, W, 1 or 3), or a
            tensor (1 or 3, H, W); arrays and tensors may have each other's order of axes. Values are bytes, or floats
            in [0, 1] as from torchvision's ``ToTensor``, not normalised.
        place: name of the image in errors.

    Raises:
        VlpromptError: it is none of these, or its file cannot be read.
    """
    if isinstance(image, Image.Image):
        return _convert(image, place)
    if is_url(image):
        image = Stored(image, read_url(image))
    if isinstance(image, (str, os.PathLike)):
        stored = image.open() if isinstance(image, Stored) else image
        read: Image.Image = open_rgb(stored, name=os.fspath(image))
        return read
    try:
        pixels = image.detach().cpu().numpy() if is_tensor(image) else image
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and (is_tensor(image) or pixels.shape[2] not in (1, 3, 4)):
            pixels = pixels.transpose(1, 2, 0)
        pixels = _as_bytes(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
        opened = Image.fromarray(pixels)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        kind = f"{type(image).__name__} {getattr(image, 'dtype', '')} {getattr(image, 'shape', '')}".strip()
        raise VlpromptError(f"{place} is no image, path or array of (H, W, 3) bytes, but {kind} ({error})") from error
    return _convert(opened, place)


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    """Convert floats in [0, 1], or whole numbers in [0, 255], to bytes; other types are returned as they are."""
    whole = pixels.dtype.kind in "iu" and pixels.ndim == 3
    if pixels.dtype == np.uint8 or not (pixels.dtype.kind == "f" or whole):
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind == "f" and low >= 0 and high <= 1:
        scaled: np.ndarray = (pixels * 255).round().astype(np.uint8)
        return scaled
    if low >= 0 and high <= 255 and (pixels == np.round(pixels)).all():
        return pixels.astype(np.uint8)
    raise ValueError(
        f"it holds numbers from {low:.3g} to {high:.3g}: give images as they are, before Normalize or clip.preprocess, "
        "since the model's own transform follows"
    )


def _convert(image: Image.Image, place: str) -> Image.Image:
    """Convert an opened image to RGB, and name it in errors."""
    if 0 in image.size:
        raise VlpromptError(f"{place} has no pixels: {image.width} x {image.height}")
    try:
        return to_rgb(image)
    except (VlpromptError, OSError, SyntaxError, ValueError) as error:
        raise VlpromptError(f"{place} cannot be read ({error})") from error


def open_listed(folder: Path, item: Item, decode: Callable[[Image.Image], Any] = to_rgb) -> Any:
    """Open an item whose path the caller chose, relative to ``folder`` or absolute; it may lead anywhere."""
    return open_rgb(os.path.join(folder, item.path), decode)


def open_inside(image_dir: Path, item: Item, decode: Callable[[Image.Image], Any] = to_rgb) -> Any:
    """Open an item of a dataset on disk as ``open_rgb`` does; a path that leaves ``image_dir`` is refused.

    Each folder is resolved once per process, since resolving takes a third as long as opening a small image.
    """
    folder, _, name = item.path.rpartition("/")
    path: str | Path = os.path.join(_folder_inside(image_dir, folder), name)
    if not is_relative_inside(item.path) or os.path.islink(path):
        path = inside(image_dir, item.path)
    return open_rgb(path, decode)


@cache
def _folder_inside(image_dir: Path, folder: str) -> Path:
    return inside(image_dir, folder) if folder else image_dir


def open_either(open_own: Callable[..., Any], item: Item, *decode: Callable[[Image.Image], Any]) -> Any:
    """Open an item that has an absolute path, as in a pool of the user's, or else one of the dataset's own."""
    if os.path.isabs(item.path):
        return open_listed(Path(os.sep), item, *decode)
    return open_own(item, *decode)


def reads_from_disk(splits: DatasetSplits) -> bool:
    """Whether a dataset's ``open_image`` reads files, and so accepts ``decode`` as ``open_rgb`` does."""
    opens: Any = splits.open_image
    while getattr(opens, "func", None) is open_either:
        opens = opens.args[0]
    return getattr(opens, "func", None) in (open_inside, open_listed)


def check_items(splits: DatasetSplits, items: Sequence[Item]) -> None:
    """Raise a ``VlpromptError`` if images of ``items`` are missing on disk.

    Each folder is listed once, which is faster than checking files one by one; nothing is opened.
    """
    if splits.image_dir is None:
        return
    listings: dict[str, set[str]] = {}
    missing = []
    for item in items:
        folder, name = os.path.split(os.path.join(splits.image_dir, item.path))
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        # A file system may ignore case where a set does not.
        if name not in listings[folder] and not os.path.exists(os.path.join(folder, name)):
            missing.append(os.path.join(folder, name))
    if missing:
        folder, name = os.path.split(missing[0])
        other = similar_name(name, listings[folder])
        advice = "complete the image folder, or remove it and get the dataset again"
        raise VlpromptError(
            f"{len(missing)} of {len(items)} images of {splits.name} are missing, the first is {missing[0]}: "
            + (f"{other} is there, so rename them" if other else advice)
        )
