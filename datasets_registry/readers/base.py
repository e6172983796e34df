"""What readers share: their registry, natural names, and a dataset made of class folders or lists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets_registry.card import Card
from vlprompt.data.formats import is_image_name
from vlprompt.data.images import open_inside
from vlprompt.data.sampling import generated_split
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError
from vlprompt.files import inside, text_lines
from vlprompt.registry import Registry

Reader = Callable[[Card, "Path | None", str], DatasetSplits]

readers: Registry[Reader] = Registry("dataset reader")

# words for a part of a dataset, in lower case, as folders, tables and shards name them
PART_NAMES = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}

__all__ = ["PART_NAMES", "Reader", "generated_split", "natural_name", "on_disk", "readers"]


def natural_name(name: str) -> str:
    """Return a class name as prompts use it: underscores become spaces."""
    return name.replace("_", " ")


def on_disk(
    card: Card, folder: Path, names: Iterable[str], parts: Mapping[str, list[Item]], **facts: Any
) -> DatasetSplits:
    """Return the dataset of items whose images lie below the card's image folder."""
    image_dir = folder / card.images
    whole = {part: parts.get(part, []) for part in PARTS}
    opener = partial(open_inside, image_dir)
    return DatasetSplits(card.name, tuple(names), **whole, open_image=opener, image_dir=image_dir, **facts)


def split_items(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Split items 50/20/30 a class and domain, by their paths alone."""
    groups: dict[tuple[int, str], dict[str, Item]] = {}
    for item in items:
        groups.setdefault((item.label, item.domain), {})[item.path] = item
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for group in groups.values():
        for part, paths in zip(parts.values(), generated_split(list(group)), strict=True):
            part += [group[path] for path in paths]
    return parts


def folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, hidden ones left out."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def images_below(image_dir: Path, folder: str) -> list[str]:
    """Return the images anywhere below ``image_dir / folder`` as sorted paths relative to ``image_dir``.

    A folder that is a link out of ``image_dir`` is refused.
    """
    top = inside(image_dir, folder) if folder else image_dir
    return sorted(
        os.path.relpath(os.path.join(parent, name), image_dir).replace(os.sep, "/")
        for parent, _, names in os.walk(top)
        for name in names
        if is_image_name(name) and not name.startswith(".")
    )


def read_lines(path: Path, what: str, by_place: bool = False) -> list[str]:
    """Return the lines of a text file, without empty ones; a missing file is told with what it is.

    Args:
        path: the file.
        what: it is, for errors.
        by_place: the number of a line counts, so that an empty one between others is refused.
    """
    try:
        return text_lines(path, by_place)
    except FileNotFoundError:
        raise VlpromptError(f"{what} is expected at {path}, which does not exist") from None
    except OSError as error:
        raise VlpromptError(f"{what} in {path} cannot be read ({error})") from error
