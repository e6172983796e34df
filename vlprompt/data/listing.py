"""What lies below a folder: images, files that are none, and links; what systems leave there is not seen."""

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

# what macOS, Windows, network drives and vlprompt itself put beside images, besides names that start with a dot
IGNORED = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"}
    | {"thumbs.db", "ehthumbs.db", "desktop.ini", "classnames.txt"}
)


@dataclass
class Listing:
    """What was found below a folder.

    Attributes:
        images: sorted paths relative to the folder that was asked about, with forward slashes; without the masks of
            regions beside them (``mask_beside``).
        left_out: files that are not read as images, by ending.
        links: linked folders that were not followed.
    """

    images: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)


def is_ignored(name: str) -> bool:
    """Tell whether a file or folder is none of the user's."""
    return name.startswith(".") or name.lower() in IGNORED


def list_images(root: str | Path, folder: str = "", *, follow_links: bool = False) -> Listing:
    """List what lies anywhere below ``root / folder``, with paths relative to ``root``; nothing is opened.

    Args:
        root: an existing folder.
        folder: in it; empty for ``root`` itself.
        follow_links: go into linked folders too, each once, so that a link to a folder above ends.
    """
    found, seen = Listing(), set()
    top = os.path.join(root, folder) if folder else str(root)
    start = len(os.path.join(root, ""))
    for parent, inner, names in os.walk(top, followlinks=follow_links, onerror=_refuse):
        if follow_links:
            place = os.path.realpath(parent)
            inner[:] = [] if place in seen else inner
            names = [] if place in seen else names
            seen.add(place)
        prefix = os.path.join(parent, "")[start:].replace(os.sep, "/")
        inner[:] = sorted(name for name in inner if not is_ignored(name))
        if not follow_links:
            found.links += [prefix + name for name in inner if os.path.islink(os.path.join(parent, name))]
        for name in names:
            if is_ignored(name):
                continue
            if is_image_name(name):
                found.images.append(prefix + name)
            else:
                count_suffix(found.left_out, name)
    masks = {mask_beside(name) for name in found.images}
    found.images = sorted(name for name in found.images if name not in masks)
    return found


def folders(folder: str | Path) -> list[str]:
    """Return the sorted names of the folders in a folder, without those that are none of the user's."""
    return _entries(folder, lambda entry: entry.is_dir())


def loose_images(folder: str | Path) -> list[str]:
    """Return the sorted names of the images in a folder itself."""
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
    """Return the name that differs in the case of letters or in its ending alone, such as ``x.JPG`` from ``x.jpg``."""
    others = {other.lower(): other for other in names if other != name}
    if name.lower() in others:
        return others[name.lower()]
    stem, ending = os.path.splitext(name.lower())
    return next((o for low, o in others.items() if ending and os.path.splitext(low)[0] == stem), None)
