"""What readers share: their registry, natural names, and a dataset made of class folders or lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets_registry.card import Card
from vlprompt.base.files import inside, text_lines
from vlprompt.base.registry import Registry
from vlprompt.data.images import open_inside
from vlprompt.data.listing import folders, list_images
from vlprompt.data.sampling import generated_split
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError

Reader = Callable[..., DatasetSplits]  # takes a card, its folder (None if it is embedded), and what follows its name

readers: Registry[Reader] = Registry("dataset reader")

# words for a part of a dataset, in lower case, as folders, tables and shards name them
PART_NAMES = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}

__all__ = ["PART_NAMES", "Reader", "folders", "generated_split", "images_below", "on_disk", "readers", "spaced_name"]


def spaced_name(name: str) -> str:
    """Return a class name as prompts use it: underscores become spaces."""
    return name.replace("_", " ")


def on_disk(
    card: Card, folder: Path, names: Iterable[str], parts: Mapping[str, Sequence[Item]], **facts: Any
) -> DatasetSplits:
    """Return a dataset of items whose images are below the card's image folder."""
    image_dir = folder / card.images
    train, val, test = (parts.get(part, ()) for part in PARTS)
    opener = partial(open_inside, image_dir)
    return DatasetSplits(card.name, tuple(names), train, val, test, opener, image_dir=image_dir, **facts)


def split_items(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Split the items of each class and domain 50/20/30 by their paths, the same on every machine."""
    groups: dict[tuple[int, str], dict[str, Item]] = {}
    for item in items:
        groups.setdefault((item.label, item.domain), {})[item.path] = item
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for group in groups.values():
        for part, paths in zip(parts.values(), generated_split(list(group)), strict=True):
            part += [group[path] for path in paths]
    return parts


def images_below(image_dir: Path, folder: str) -> list[str]:
    """Return the images anywhere below ``image_dir / folder`` as sorted paths relative to ``image_dir``.

    A folder that is a link out of ``image_dir`` is refused.
    """
    if folder:
        inside(image_dir, folder)
    return list_images(image_dir, folder).images


def read_lines(path: Path, what: str, by_place: bool = False) -> list[str]:
    """Return the non-empty lines of a text file.

    Args:
        path: the file.
        what: the word for the file in errors.
        by_place: whether the number of a line matters, so that an empty line between others is refused.

    Raises:
        VlpromptError: the file does not exist or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise VlpromptError(f"{what} in {path} is no file")  # reading a pipe may never end
        return text_lines(path, by_place)
    except FileNotFoundError:
        raise VlpromptError(f"{what} is expected at {path}, which does not exist") from None
    except OSError as error:
        raise VlpromptError(f"{what} in {path} cannot be read ({error})") from error
