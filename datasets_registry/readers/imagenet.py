"""ImageNet and its variants: class folders named by WordNet id, and ``classnames.txt`` for their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets_registry.card import Card
from datasets_registry.readers.base import folders, images_below, natural_name, on_disk, read_lines, readers
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.errors import VlpromptError


@readers.register("imagenet")
def read_imagenet(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """ImageNet: labels follow the sorted ids; ``images/val`` is the test part."""
    names, images = _class_names(card, folder), folder / card.images
    parts = {}
    for part, source in (("train", "train"), ("test", "val")):
        if source == "train" and not (images / source).is_dir():
            continue  # enough for a target
        ids = _ids(card, images / source, names)
        parts[part] = _items(images, {f"{source}/{i}": names[i] for i in ids})
    return on_disk(card, folder, [names[i] for i in ids], parts, source="official", class_keys=tuple(ids))


@readers.register("imagenet_v2")
def read_imagenet_v2(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """ImageNetV2: a folder's number is the label, so ``10`` comes after ``2``."""
    names = _class_names(card, folder)
    if len(names) != card.classes:
        raise VlpromptError(f"{folder / 'classnames.txt'} has {len(names)} classes, {card.title} has {card.classes}")
    image_dir = folder / card.images
    absent = [label for label in range(card.classes) if not (image_dir / str(label)).is_dir()]
    if absent:
        raise VlpromptError(f"{len(absent)} class folders are missing in {image_dir}, the first is {absent[0]}")
    ids = sorted(names)
    parts = {"test": _items(image_dir, {str(label): names[i] for label, i in enumerate(ids)})}
    return on_disk(card, folder, [names[i] for i in ids], parts, source="official", class_keys=tuple(ids))


@readers.register("imagenet_subset")
def read_imagenet_subset(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """Test images of some or all classes: labels of their own, in the order of the sorted ids that are there."""
    names, image_dir = _class_names(card, folder), folder / card.images
    ids = _ids(card, image_dir, names)
    parts = {"test": _items(image_dir, {i: names[i] for i in ids})}
    return on_disk(card, folder, [names[i] for i in ids], parts, source="official", class_keys=tuple(ids))


def _class_names(card: Card, folder: Path) -> dict[str, str]:
    """Return id to name, in the file's order; the file may lie in ImageNet's own folder."""
    path = folder / "classnames.txt"
    if not path.exists() and (folder.parent / "imagenet" / path.name).exists():
        path = folder.parent / "imagenet" / path.name
    names = {}
    for line in read_lines(path, f"the list of ImageNet's class names (linked from {card.split_page})"):
        key, _, name = line.partition(" ")
        if not name or key in names:
            raise VlpromptError(f"a line of {path} must be an id of its own and a class name, not '{line:.60}'")
        names[key] = natural_name(name)
    return names


def _ids(card: Card, image_dir: Path, names: dict[str, str]) -> list[str]:
    """Return the sorted ids that have a folder; a number other than the card's would shift every label."""
    ids = [name for name in folders(image_dir) if name in names] if image_dir.is_dir() else []
    if len(ids) != card.classes:
        raise VlpromptError(
            f"{len(ids)} of the {card.classes} class folders of {card.title} are in {image_dir}: "
            f"they must be called as in classnames.txt, such as {image_dir / next(iter(names), 'n01440764')}/"
        )
    return ids


def _items(image_dir: Path, names: dict[str, str]) -> Sequence[Item]:
    return [
        Item(path, label, name)
        for label, (folder, name) in enumerate(names.items())
        for path in images_below(image_dir, folder)
    ]
