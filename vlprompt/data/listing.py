"""Listing the images, other files and links below a folder; files that operating systems create are ignored."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from vlprompt.data.formats import count_suffix, is_image_name
from vlprompt.data.splits import mask_beside
from vlprompt.errors import VlpromptError

# files and folders that macOS, Windows, network drives and vlprompt put beside images, besides hidden ones
IGNORED = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"}
    | {"thumbs.db", "ehthumbs.db", "desktop.ini", "classnames.txt"}
)


@dataclass
class Listing:
    """The content of a folder.

    Attributes:
        images: sorted paths relative to ``root``, with forward slashes, without masks of regions (``mask_beside``).
        left_out: number of files that are not images, by ending.
        links: linked folders that were not followed.
    """

    images: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)


def is_ignored(name: str) -> bool:
    """Whether a file or folder was created by an operating system or by vlprompt, by its name."""
    return name.startswith(".") or name.lower() in IGNORED


def list_images(root: str | Path, folder: str = "", *, follow_links: bool = False) -> Listing:
    """List everything below ``root / folder``; nothing is opened.

    Args:
        root: an existing folder, which paths are relative to.
        folder: a folder in it; empty for ``root`` itself.
        follow_links: also list linked folders, each once, so that a link to a parent folder ends.

    Raises:
        VlpromptError: a folder cannot be read.
    """
    listing, visited = Listing(), set()
    top = os.path.join(root, folder) if folder else str(root)
    start = len(os.path.join(root, ""))
    for parent, inner, names in os.walk(top, followlinks=follow_links, onerror=_refuse):
        if follow_links:
            real = os.path.realpath(parent)
            inner[:] = [] if real in visited else inner
            names = [] if real in visited else names
            visited.add(real)
        prefix = os.path.join(parent, "")[start:].replace(os.sep, "/")
        inner[:] = sorted(name for name in inner if not is_ignored(name))
        if not follow_links:
            listing.links += [prefix + name for name in inner if os.path.islink(os.path.join(parent, name))]
        for name in names:
            if is_ignored(name):
                continue
            if is_image_name(name):
                listing.images.append(prefix + name)
            else:
                count_suffix(listing.left_out, name)
    masks = {mask_beside(name) for name in listing.images}
    listing.images = sorted(name for name in listing.images if name not in masks)
    return listing


def folders(folder: str | Path) -> list[str]:
    """Return the sorted names of the folders in a folder, without ignored ones."""
    return _entries(folder, lambda entry: entry.is_dir())


def loose_images(folder: str | Path) -> list[str]:
    """Return the sorted names of the images directly in a folder."""
    return _entries(folder, lambda entry: is_image_name(entry.name) and not entry.is_dir())


def _entries(folder: str | Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not is_ignored(entry.name) and wanted(entry))
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise VlpromptError(f"the folder {error.filename} cannot be read ({error.strerror})") from error


def similar_name(name: str, names: Iterable[str]) -> str | None:
    """Return the name that differs only in case or in its ending, such as ``x.JPG`` for ``x.jpg``, or None."""
    others = {other.lower(): other for other in names if other != name}
    if name.lower() in others:
        return others[name.lower()]
    stem, ending = os.path.splitext(name.lower())
    return next((o for low, o in others.items() if ending and os.path.splitext(low)[0] == stem), None)
