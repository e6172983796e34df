"""A folder with one sub-folder of images per class, with or without train, val and test folders above them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets_registry.card import Card
from datasets_registry.readers.base import PART_NAMES, generated_split, on_disk, read_lines, readers, spaced_name
from datasets_registry.readers.layout import LAYOUT, find_parts, nesting_defects, nesting_notes
from vlprompt.base.checks import checked
from vlprompt.base.files import inside
from vlprompt.data.formats import describe_left_out
from vlprompt.data.listing import folders, list_images, loose_images
from vlprompt.data.name_hints import hint_names
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError, nearest, warn


@dataclass
class ClassFolders:
    """The content of a folder of class folders.

    Attributes:
        images: by part (an empty name if there are no splits) and class folder, paths relative to the image folder.
        names: class folder to class name, in label order.
        left_out: the number of files that are not read as images, by ending.
        defects: a sentence for each reason why the folder cannot be used as it is.
        notes: a sentence for each thing that a user should know.
    """

    images: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@readers.register("folder", takes_path=True)
def read_folder(card: Card, folder: Path, variant: str, *, follow_links: bool = False) -> DatasetSplits:
    """A folder of class folders; if it has no splits, they are generated, the same on every machine.

    Classes are the folders' names in the order of their code points, or those of the card. A file ``classnames.txt``
    beside them gives other names, one per line: the folder, a tab (or a space if the line has no tab) and the name.
    Folders called train, val and test (or another word in ``PART_NAMES``, in any case) are splits; without test, val is
    the test part.
    """
    splits, defects = audit_folder(card, folder, follow_links=follow_links)
    if defects:
        raise VlpromptError(defects[0])
    return splits


def audit_folder(card: Card, folder: Path, *, follow_links: bool = False) -> tuple[DatasetSplits, list[str]]:
    """Return the dataset of what is sound in a folder of class folders, and a sentence for each defect."""
    image_dir = folder / card.images
    found = look_at_folder(image_dir, card.class_names, follow_links=follow_links)
    labels = {key: label for label, key in enumerate(found.names)}
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for part, by_class in found.images.items():
        for key, paths in by_class.items():
            if key not in labels:
                found.defects.append(
                    f"{image_dir / part} has a class folder '{key}' that the training images lack: "
                    f"{nearest(key, labels)}"
                )
                continue
            if not part and len(paths) == 1:
                found.defects.append(f"the class folder {image_dir / key} holds one image: a split needs at least two")
            split = {part: paths} if part else dict(zip(PARTS, generated_split(paths), strict=True))
            for target, chosen in split.items():
                parts[target] += [Item(path, labels[key], found.names[key]) for path in chosen]
    if "" not in found.images and parts["val"] and not parts["test"]:
        parts["test"], parts["val"] = parts["val"], []
        found.notes.append(f"{image_dir} has no test folder: the images of its validation folder are the test images")
    source = "generated" if "" in found.images else "official"
    splits = on_disk(card, folder, found.names.values(), parts, source=source, notes=tuple(found.notes))
    return splits, found.defects


def look_at_folder(
    image_dir: Path, class_names: Mapping[str, str] | None = None, *, follow_links: bool = False
) -> ClassFolders:
    """List the content of a folder of class folders and all its defects; no image is opened.

    Args:
        image_dir: the folder.
        class_names: a card's names by class folder, which also say whether a folder called train is a class.
        follow_links: read links that lead out of the folder.
    """
    found = ClassFolders()
    try:
        words = _parts_of(image_dir, class_names)
        for part, word in words.items():
            found.images[part] = _class_folders(image_dir, word, found, follow_links)
            if not class_names:
                classes = list(found.images[part])
                found.defects[:0] = nesting_defects(image_dir / word, classes)
                found.notes += nesting_notes(image_dir / word, classes)
        keys = next(iter(found.images.values()))
        found.names = {key: spaced_name(key) for key in keys}  # if the file of names is damaged
        found.names = class_names or named_classes(image_dir / "classnames.txt", list(keys))
    except VlpromptError as error:
        found.defects.append(str(error))
    left_out = describe_left_out(found.left_out, str(image_dir))
    found.notes += [left_out] if left_out else []
    return found


def _parts_of(image_dir: Path, class_names: Mapping[str, str] | None) -> dict[str, str]:
    """Return the folder of each part; an empty part and folder if all folders are classes."""
    if not class_names:
        return find_parts(image_dir) or {"": ""}
    below = set(folders(image_dir))
    if {"train", "test"} <= below and below.isdisjoint(class_names):
        return {part: part for part in PARTS if part in below}
    return {"": ""}


def _class_folders(image_dir: Path, word: str, found: ClassFolders, follow_links: bool) -> dict[str, list[str]]:
    """Return the images below each class folder as sorted paths relative to ``image_dir``; defects go to ``found``."""
    top, by_class, empty = image_dir / word, {}, []
    for key in folders(top):
        place = (Path(word) / key).as_posix()
        try:
            if not follow_links:
                inside(image_dir, place)
            listing = list_images(image_dir, place, follow_links=follow_links)
        except VlpromptError as error:
            found.defects.append(str(error))
            continue
        found.left_out.update(listing.left_out)
        found.defects += [
            f"{image_dir / link} is a link to a folder: follow_links=true reads what it leads to"
            for link in listing.links
        ]
        if listing.images:
            by_class[key] = listing.images
        elif not listing.links:
            left_out = describe_left_out(listing.left_out, "it")
            files = f" ({left_out})" if left_out else ""
            empty.append(f"the class folder {top / key} holds no images{files}: add some, or delete the folder")
    if not by_class and not found.defects:
        loose = loose_images(top)
        outside = f" ({len(loose)} directly in it)" if loose else ""
        empty.insert(0, f"no class folders with images were found in the folder {top}{outside}: {LAYOUT}")
    found.defects += empty
    return by_class


@checked
def load_folder(path: str | Path, *, follow_links: bool = False) -> tuple[list[str], list[str]]:
    """Return the images in a folder with one sub-folder per class: their paths, and the class name of each.

    Class names are the names of the sub-folders with underscores turned into spaces, or those in a ``classnames.txt``
    next to them, as for ``dataset=folder:PATH``. No image is opened. A warning counts files that are left out.

    Args:
        path: the folder.
        follow_links: follow links that lead out of the folder.

    Raises:
        VlpromptError: there is no such folder, it has no class folders, a class folder has no images, or the folder
            contains splits (then give one of them).

    >>> paths, names = load_folder("photos")  # doctest: +SKIP
    >>> PromptClassifier().fit(paths, names).predict(["another.jpg"])  # doctest: +SKIP
    array(['red fox'], dtype='<U7')
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise VlpromptError(f"there is no folder {folder}: {LAYOUT}")
    words = sorted(folders(folder), key=lambda name: PART_NAMES.get(name.lower()) != "train")
    if words and all(word.lower() in PART_NAMES for word in words):
        raise VlpromptError(
            f"{folder} has its classes in {' and '.join(words)}: give one of them, such as {folder / words[0]}"
        )
    found = look_at_folder(folder, follow_links=follow_links)
    if found.defects:
        raise VlpromptError(found.defects[0])
    names = hint_names(list(found.names.values()))
    for note in [*found.notes, *([names] if names else [])]:
        warn(note)
    pairs = [(str(folder / image), found.names[key]) for key, images in found.images[""].items() for image in images]
    return [image for image, _ in pairs], [name for _, name in pairs]


def named_classes(path: Path, keys: list[str]) -> dict[str, str]:
    """Return class folder to class name, from the file or else from the folder's name."""
    names = {key: spaced_name(key) for key in keys}
    for line in read_lines(path, "the list of class names") if path.exists() else []:
        key, _, name = line.partition("\t" if "\t" in line else " ")
        if key not in names or not name.strip():
            raise VlpromptError(f"a line of {path} must be a class folder and its class name, not '{line:.60}'")
        names[key] = name.strip()
    return names
