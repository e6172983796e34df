"""``split=generated``: a split that is the same on every machine, for those who lack the published file.

Where the authors of a dataset fix test images, these stay the test part and 20% of the others are val; else images are
split 50/20/30 a class (of a domain: 70/30, tested on val, as in the published splits). Neither is the published split.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets_registry.card import Card
from datasets_registry.readers.base import folders, generated_split, images_below, on_disk, read_lines, spaced_name
from vlprompt.base.files import is_relative_inside
from vlprompt.base.registry import Registry
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError


@dataclass
class ClassImages:
    """A class: its name, the images to split, and its authors' test images."""

    name: str
    images: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)


Lister = Callable[[Card, Path], list[ClassImages]]
listers: Registry[Lister] = Registry("lister")


def read_generated(card: Card, folder: Path) -> DatasetSplits:
    """Return a dataset with a split of our own, marked ``source="generated"``."""
    if card.lister == "domains":
        names, parts = _domains(card, folder)
    else:
        if not card.lister:
            raise VlpromptError(f"{card.title} needs no generated split: its own is {card.split}")
        try:
            classes = listers.get(card.lister)(card, folder)
        except VlpromptError:
            raise
        except (LookupError, ValueError) as error:
            raise VlpromptError(f"the lists of {card.title} in {folder} are not as expected ({error!r})") from error
        names, parts = [c.name for c in classes], _split(classes)
        for item in (i for part in parts.values() for i in part):
            if not is_relative_inside(item.path):
                raise VlpromptError(f"a list of {card.title} leads out of the image folder: '{item.path}'")
    return on_disk(card, folder, names, parts, source="generated")


def _split(classes: list[ClassImages]) -> dict[str, list[Item]]:
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for label, one in enumerate(classes):
        if one.test:
            train, _, val = generated_split(one.images, (0.8, 0))
            test = one.test
        else:
            train, val, test = generated_split(one.images)
        for part, paths in zip(PARTS, (train, val, test), strict=True):
            parts[part] += [Item(path, label, one.name) for path in paths]
    return parts


def _domains(card: Card, folder: Path) -> tuple[list[str], dict[str, list[Item]]]:
    image_dir = folder / card.images
    names = list(card.class_names.values())
    labels = {key.lower(): label for label, key in enumerate(card.class_names)}
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for domain in card.domains:
        by_label: dict[int, list[str]] = {}
        for path in images_below(image_dir, domain):
            label = next((labels[p] for p in reversed(path.lower().split("/")[1:-1]) if p in labels), None)
            if label is not None:
                by_label.setdefault(label, []).append(path)
        if not by_label:
            raise VlpromptError(f"no class folders of {card.title} were found in {image_dir / domain}")
        for label, paths in sorted(by_label.items()):
            train, _, val = generated_split(paths, (0.7, 0))
            for part, chosen in zip(PARTS, (train, val, val), strict=True):
                parts[part] += [Item(path, label, names[label], domain) for path in chosen]
    return names, parts


@listers.register("folders")
def list_folders(card: Card, folder: Path) -> list[ClassImages]:
    """One folder per class, as the card names them."""
    image_dir = folder / card.images
    absent = sorted(set(card.class_names) - set(folders(image_dir)))
    if absent:
        raise VlpromptError(f"{len(absent)} class folders are missing in {image_dir}, the first is {absent[0]}")
    return [ClassImages(name, images_below(image_dir, key)) for key, name in card.class_names.items()]


@listers.register("pets")
def list_pets(card: Card, folder: Path) -> list[ClassImages]:
    """``annotations/trainval.txt`` and ``test.txt``: lines "Abyssinian_100 1 1 1", image and 1-based class first."""
    classes = [ClassImages(name) for name in card.class_names.values()]
    for part, file in (("images", "trainval.txt"), ("test", "test.txt")):
        for line in read_lines(folder / "annotations" / file, f"the official list {file} of {card.title}"):
            image, label = line.split()[:2]
            getattr(classes[int(label) - 1], part).append(f"{image}.jpg")
    return classes


@listers.register("cars")
def list_cars(card: Card, folder: Path) -> list[ClassImages]:
    """The devkit's MATLAB files; a class name gets its year moved to the front."""
    names = [str(name) for name in _mat(folder / "devkit/cars_meta.mat")["class_names"]]
    classes = [ClassImages(year_first(name)) for name in names]
    for part, file, images in (
        ("images", "devkit/cars_train_annos.mat", "cars_train"),
        ("test", "cars_test_annos_withlabels.mat", "cars_test"),
    ):
        for annotation in _mat(folder / file)["annotations"]:
            getattr(classes[int(annotation["class"]) - 1], part).append(f"{images}/{annotation['fname']}")
    return classes


def year_first(name: str) -> str:
    """Move a car's year to the front.

    >>> year_first("AM General Hummer SUV 2000")
    '2000 AM General Hummer SUV'
    """
    words = name.split(" ")
    return " ".join([words[-1], *words[:-1]])


@listers.register("flowers")
def list_flowers(card: Card, folder: Path) -> list[ClassImages]:
    """``imagelabels.mat``, a 1-based label for each image in order, and ``cat_to_name.json`` if it exists."""
    names, path = dict(card.class_names), folder / "cat_to_name.json"
    if path.is_file():
        names |= json.loads(path.read_text("utf-8"))
    assert card.classes is not None
    classes = [ClassImages(spaced_name(names[str(k + 1)])) for k in range(card.classes)]
    for number, label in enumerate(_mat(folder / "imagelabels.mat")["labels"], start=1):
        classes[int(label) - 1].images.append(f"image_{number:05d}.jpg")
    return classes


@listers.register("sun397")
def list_sun397(card: Card, folder: Path) -> list[ClassImages]:
    """``ClassName.txt``, ``Training_01.txt`` and ``Testing_01.txt``: lines "/a/abbey" and "/a/abbey/sun_aa.jpg"."""
    keys = read_lines(folder / "ClassName.txt", f"the class list of {card.title}")
    classes = {key: ClassImages(place_name(key)) for key in keys}
    for part, file in (("images", "Training_01.txt"), ("test", "Testing_01.txt")):
        for line in read_lines(folder / file, f"the official list {file} of {card.title}"):
            getattr(classes[line.rpartition("/")[0]], part).append(line.lstrip("/"))
    return list(classes.values())


def place_name(key: str) -> str:
    """Put a place's qualifier before it.

    >>> place_name("/a/apartment_building/outdoor")
    'outdoor apartment building'
    """
    return spaced_name(" ".join(reversed(key.split("/")[2:])))


@listers.register("ucf101")
def list_ucf101(card: Card, folder: Path) -> list[ClassImages]:
    """``ucfTrainTestlist``: lines "ApplyLipstick/v_ApplyLipstick_g08_c01.avi 2"; one middle frame per clip."""
    lists = folder / "ucfTrainTestlist"
    keys = [line.split()[-1] for line in read_lines(lists / "classInd.txt", f"the class list of {card.title}")]
    classes = {key: ClassImages(card.class_names.get(key, key)) for key in keys}
    for part, file in (("images", "trainlist01.txt"), ("test", "testlist01.txt")):
        for line in read_lines(lists / file, f"the official list {file} of {card.title}"):
            key, _, clip = line.split()[0].partition("/")
            frame = f"{classes[key].name.replace(' ', '_')}/{Path(clip).stem}.jpg"
            getattr(classes[key], part).append(frame)
    return list(classes.values())


def _mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat  # here, since it takes a while to import; scikit-learn needs SciPy

    try:
        content: dict[str, Any] = loadmat(path, squeeze_me=True)
        return content
    except FileNotFoundError:
        raise VlpromptError(f"the annotations are expected at {path}, which does not exist") from None
    except Exception as error:  # SciPy raises exceptions of any kind for damaged files
        raise VlpromptError(f"{path} cannot be read as a MATLAB file ({error})") from error
