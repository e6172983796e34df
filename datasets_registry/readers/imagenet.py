"""ImageNet and its variants: class folders named by WordNet id; ``classnames.txt`` may give them other names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from datasets_registry.card import Card
from datasets_registry.readers.base import folders, images_below, on_disk, read_lines, readers, spaced_name
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.errors import VlpromptError, warn


@readers.register("imagenet")
def read_imagenet(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """ImageNet: labels follow the sorted ids; ``val`` is the test part."""
    names, images = _class_names(card, folder), folder / card.images
    parts = {}
    for part, source in (("train", "train"), ("test", "val")):
        if source == "train" and not (images / source).is_dir():
            continue  # a target needs no training images
        ids = _ids(card, images / source, names)
        parts[part] = _items(images, {f"{source}/{i}": names[i] for i in ids})
    places = tuple(range(len(ids)))
    return on_disk(card, folder, [names[i] for i in ids], parts, source="official", class_places=places)


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
    return on_disk(card, folder, [names[i] for i in ids], parts, source="official")


@readers.register("imagenet_subset")
def read_imagenet_subset(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """Test images of some or all classes, with labels in the order of the sorted ids that exist.

    Their places among ImageNet's classes go by the ids, since two names stand there twice.
    """
    names, image_dir = _class_names(card, folder), folder / card.images
    ids = _ids(card, image_dir, names)
    parts = {"test": _items(image_dir, {i: names[i] for i in ids})}
    label_of = {key: label for label, key in enumerate(sorted(names))}
    places = tuple(label_of[i] for i in ids)
    return on_disk(card, folder, [names[i] for i in ids], parts, source="official", class_places=places)


@cache
def imagenet_names() -> dict[str, str]:
    """Return id to class name of ImageNet's 1,000 classes in label order: OpenCLIP's names, which are CoOp's."""
    from timm.data import ImageNetInfo  # type: ignore[attr-defined]  # which does not say what it exports

    from vlprompt.clip.openclip import IMAGENET_CLASSNAMES  # takes seconds, which no other dataset needs

    ids = ImageNetInfo().label_names()  # type: ignore[no-untyped-call]  # nor which types it has
    return dict(zip(ids, IMAGENET_CLASSNAMES, strict=True))


def _class_names(card: Card, folder: Path) -> dict[str, str]:
    """Return id to name: from a file in the dataset's folder or in ImageNet's, or else the known names."""
    known = imagenet_names()
    path = folder / "classnames.txt"
    if not path.exists():
        path = folder.parent / "imagenet" / path.name
    if not path.exists():
        return known
    names = {}
    for line in read_lines(path, "the list of ImageNet's class names"):
        key, _, name = line.partition(" ")
        if not name or key in names:
            raise VlpromptError(f"a line of {path} must be an id of its own and a class name, not '{line:.60}'")
        names[key] = spaced_name(name)
    others = [key for key, name in names.items() if known.get(key) != name]
    if others:
        first = others[0]
        usual = f"'{known[first]}'" if first in known else "no class of ImageNet"
        warn(
            f"{path} has {len(others)} names other than CoOp's and OpenCLIP's, such as {first} '{names[first]}', which "
            f"is {usual} there: the file's are used; without it the usual ones are",
        )
    return names


def _ids(card: Card, image_dir: Path, names: dict[str, str]) -> list[str]:
    """Return the sorted ids that have a folder; a number other than the card's would shift every label."""
    ids = [name for name in folders(image_dir) if name in names] if image_dir.is_dir() else []
    if len(ids) != card.classes:
        first = next((name for name in sorted(names) if name not in ids), next(iter(names)))
        wanted = (
            "the first that is missing is" if ids and len(names) == card.classes else "they are called by their ids, as"
        )
        raise VlpromptError(
            f"{len(ids)} of the {card.classes} class folders of {card.title} are in {image_dir}: "
            + (_unsorted(image_dir) or f"{wanted} {image_dir / first}/")
        )
    return ids


def _unsorted(image_dir: Path) -> str:
    """Return what to do with a folder as the archives leave it: val's images together, or one archive per class."""
    files = [entry.name for entry in os.scandir(image_dir)] if image_dir.is_dir() else []
    if any(re.fullmatch(r"ILSVRC2012_val_\d+\.JPEG", name, re.IGNORECASE) for name in files):
        return (
            "its images lie side by side as in the archive; sort them into class folders, by running valprep.sh of "
            "https://github.com/soumith/imagenetloader.torch in this folder, or by letting "
            "torchvision.datasets.ImageNet(root, split='val') unpack ILSVRC2012_img_val.tar and "
            "ILSVRC2012_devkit_t12.tar.gz anew"
        )
    tars = sorted(name for name in files if re.fullmatch(r"n\d{8}\.tar", name))
    return f"unpack each archive into a folder of its name, such as {tars[0]} into {tars[0][:-4]}/" if tars else ""


def _items(image_dir: Path, names: dict[str, str]) -> Sequence[Item]:
    return [
        Item(path, label, name)
        for label, (folder, name) in enumerate(names.items())
        for path in images_below(image_dir, folder)
    ]
