"""A folder with one sub-folder of images a class, with or without train, val and test folders above them."""

from __future__ import annotations

from pathlib import Path

from datasets_registry.card import Card
from datasets_registry.readers.base import (
    folders,
    generated_split,
    images_below,
    natural_name,
    on_disk,
    read_lines,
    readers,
)
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError

LAYOUT = "it needs one sub-folder of images a class, or such sub-folders in train/ and test/ (and val/)"


@readers.register("folder", takes_path=True)
def read_folder(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """A folder of class folders; a split that is not there is made, the same on every machine.

    Classes are the folders' names in the order of their code points, or those of the card. A file ``classnames.txt``
    beside them gives other names, one a line: the folder, a tab (or a space, if it has none in it) and the name.
    """
    image_dir = folder / card.images
    below = set(folders(image_dir))
    # a card that names the classes tells a folder called train from a class
    only_parts = below <= set(PARTS) or (card.class_names and below.isdisjoint(card.class_names))
    if {"train", "test"} <= below and only_parts:
        listed = {part: images_by_class(image_dir, part) for part in PARTS if (image_dir / part).is_dir()}
    else:
        listed = {"": images_by_class(image_dir)}
    names = card.class_names or named_classes(image_dir / "classnames.txt", list(next(iter(listed.values()))))
    labels = {key: label for label, key in enumerate(names)}
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for part, by_class in listed.items():
        for key, paths in by_class.items():
            if key not in labels:
                raise VlpromptError(f"{image_dir / part} has a class folder '{key}' that the training images lack")
            for target, chosen in ({part: paths} if part else _generated(key, paths, image_dir)).items():
                parts[target] += [Item(path, labels[key], names[key]) for path in chosen]
    return on_disk(card, folder, names.values(), parts, source="official" if "train" in listed else "generated")


def load_folder(path: str | Path) -> tuple[list[str], list[str]]:
    """Return the images of a folder of class folders: their paths, and the class name of each.

    Class names are the folders' names, with spaces for underscores, or those in ``classnames.txt`` beside the folders,
    as for ``dataset=folder:PATH``. Nothing is opened.

    Raises:
        VlpromptError: there is no such folder, it has no class folders, or one of them holds no images.

    >>> paths, names = load_folder("photos")  # doctest: +SKIP
    >>> PromptClassifier().fit(paths, names).predict(["another.jpg"])  # doctest: +SKIP
    array(['red fox'], dtype='<U7')
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise VlpromptError(f"there is no folder {folder}: {LAYOUT}")
    if {"train", "test"} <= set(folders(folder)) <= set(PARTS):
        raise VlpromptError(f"{folder} has its classes in train and test: give one of them, such as {folder / 'train'}")
    by_class = images_by_class(folder)
    names = named_classes(folder / "classnames.txt", list(by_class))
    pairs = [(str(folder / image), names[key]) for key, images in by_class.items() for image in images]
    return [image for image, _ in pairs], [name for _, name in pairs]


def named_classes(path: Path, keys: list[str]) -> dict[str, str]:
    """Return class folder to class name, as the file says or by the folder's own name."""
    names = {key: natural_name(key) for key in keys}
    for line in read_lines(path, "the list of class names") if path.exists() else []:
        key, _, name = line.partition("\t" if "\t" in line else " ")
        if key not in names or not name.strip():
            raise VlpromptError(f"a line of {path} must be a class folder and its class name, not '{line:.60}'")
        names[key] = name.strip()
    return names


def images_by_class(image_dir: Path, part: str = "") -> dict[str, list[str]]:
    """Return the images below each class folder, as sorted paths relative to ``image_dir``."""
    top = image_dir / part
    by_class = {key: images_below(image_dir, (Path(part) / key).as_posix()) for key in folders(top)}
    if not any(by_class.values()):
        raise VlpromptError(f"no images were found in the folder {top}: {LAYOUT}")
    empty = [key for key, paths in by_class.items() if not paths]
    if empty:
        raise VlpromptError(f"the class folder {top / empty[0]} holds no images: add some, or delete the folder")
    return by_class


def _generated(key: str, paths: list[str], image_dir: Path) -> dict[str, list[str]]:
    if len(paths) < 2:
        raise VlpromptError(f"the class folder {image_dir / key} holds one image: a split needs at least two")
    return dict(zip(PARTS, generated_split(paths), strict=True))
