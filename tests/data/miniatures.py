"""Every dataset of the registry in small: its true layout with all classes, a few images each, one and the same."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from timm.data import ImageNetInfo

from datasets_registry.card import Card, load_card
from datasets_registry.video import class_folder

PARTS = {"train": 2, "val": 1, "test": 1}  # images a class


def make_miniature(name: str, root: Path) -> Card:
    """Write the dataset below ``root`` and return its card."""
    card = load_card(name)
    folder = root / card.folder
    folder.mkdir(parents=True)
    MAKERS.get(name, _domains if card.letters else _coop)(card, folder)
    return card


def write_images(image_dir: Path, paths: Iterable[str]) -> None:
    """Write one image under many names: hard links, since thousands of files take a while."""
    first: Path | None = None
    made: set[str] = set()
    for path in paths:
        place = os.path.join(image_dir, path)
        folder = os.path.dirname(place)
        if folder not in made:
            os.makedirs(folder, exist_ok=True)
            made.add(folder)
        if first is None:
            encoded = io.BytesIO()
            Image.effect_noise((16, 12), 60).convert("RGB").save(encoded, "JPEG")
            first = Path(place)
            first.write_bytes(encoded.getvalue())
        else:
            os.link(first, place)


def _coop(card: Card, folder: Path) -> None:
    """A published split JSON, and the lists that its generated split needs."""
    split: dict[str, list] = {}
    number = 0
    for part, images in PARTS.items():
        split[part] = []
        for label, (key, name) in enumerate(card.class_names.items()):
            for _ in range(images):
                number += 1
                split[part].append([PATHS[card.name](key, number, part), label, name.replace(" ", "_")])
    write_images(folder / card.images, (entry[0] for entries in split.values() for entry in entries))
    (folder / card.split_file).write_text(json.dumps(split))
    LISTS.get(card.name, lambda *_: None)(card, folder, split)


PATHS = {
    "caltech101": lambda key, n, part: f"{key}/image_{n:04d}.jpg",
    "oxford_pets": lambda key, n, part: f"{key}_{n}.jpg",
    "stanford_cars": lambda key, n, part: f"cars_{'test' if part == 'test' else 'train'}/{n:05d}.jpg",
    "flowers102": lambda key, n, part: f"image_{n:05d}.jpg",
    "food101": lambda key, n, part: f"{key}/{n}.jpg",
    "sun397": lambda key, n, part: f"{key[1:]}/sun_{n:06x}.jpg",
    "dtd": lambda key, n, part: f"{key}/{key}_{n:04d}.jpg",
    "eurosat": lambda key, n, part: f"{key}/{key}_{n}.jpg",
    "ucf101": lambda key, n, part: f"{class_folder(key)}/v_{key}_g{n:02d}_c01.jpg",
}


def _official(split: dict[str, list]) -> dict[str, list]:
    return {"train": split["train"] + split["val"], "test": split["test"]}


def _pets_lists(card: Card, folder: Path, split: dict[str, list]) -> None:
    (folder / "annotations").mkdir()
    for part, entries in _official(split).items():
        lines = [f"{Path(path).stem} {label + 1} 1 1\n" for path, label, _ in entries]
        (folder / "annotations" / f"{part.replace('train', 'trainval')}.txt").write_text("".join(lines))


def _cars_lists(card: Card, folder: Path, split: dict[str, list]) -> None:
    (folder / "devkit").mkdir()
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(list(card.class_names), dtype=object)})
    for part, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(Path(path).name, label + 1) for path, label, _ in _official(split)[part]]
        savemat(folder / file, {"annotations": np.array(rows, dtype=[("fname", object), ("class", object)])})


def _flowers_lists(card: Card, folder: Path, split: dict[str, list]) -> None:
    labels = [label + 1 for entries in split.values() for _, label, _ in entries]
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels])})
    (folder / "cat_to_name.json").write_text(json.dumps(card.class_names))


def _sun_lists(card: Card, folder: Path, split: dict[str, list]) -> None:
    (folder / "ClassName.txt").write_text("\n".join(card.class_names))
    for part, file in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        (folder / file).write_text("".join(f"/{path}\n" for path, _, _ in _official(split)[part]))


def _ucf_lists(card: Card, folder: Path, split: dict[str, list]) -> None:
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    keys = list(card.class_names)
    (lists / "classInd.txt").write_text("".join(f"{i} {key}\n" for i, key in enumerate(keys, start=1)))
    for part, entries in _official(split).items():
        lines = [f"{keys[label]}/{Path(path).stem}.avi {label + 1}\n" for path, label, _ in entries]
        (lists / f"{part}list01.txt").write_text("".join(lines))


LISTS = {
    "oxford_pets": _pets_lists,
    "stanford_cars": _cars_lists,
    "flowers102": _flowers_lists,
    "sun397": _sun_lists,
    "ucf101": _ucf_lists,
}


def _fgvc(card: Card, folder: Path) -> None:
    (folder / "variants.txt").write_text("\n".join(card.class_names) + "\n")
    number = 0
    for part, images in PARTS.items():
        lines = []
        for name in card.class_names:
            for _ in range(images):
                number += 1
                lines.append(f"{number:07d} {name}\n")
        (folder / f"images_variant_{part}.txt").write_text("".join(lines))
    write_images(folder / card.images, (f"{i:07d}.jpg" for i in range(1, number + 1)))


IDS = ImageNetInfo().label_names()


def _imagenet(card: Card, folder: Path) -> None:
    paths = [f"train/{i}/{i}_{k}.JPEG" for i in IDS for k in (10, 9)] + [
        f"val/{i}/ILSVRC2012_val_{i}.JPEG" for i in IDS
    ]
    write_images(folder / card.images, paths)


def _imagenet_v2(card: Card, folder: Path) -> None:
    write_images(folder / card.images, (f"{label}/{label}.jpeg" for label in range(1000)))


def _imagenet_subset(card: Card, folder: Path) -> None:
    ids = IDS if card.classes == 1000 else IDS[3::5]
    write_images(folder / card.images, (f"{i}/{k}.JPEG" for i in ids for k in (0, 1)))
    (folder / card.images / "README.txt").touch()


def _domains(card: Card, folder: Path) -> None:
    """Four-field JSONs, one a domain, with test equal to val; layouts have folders between domain and class."""
    between = {"vlcs": {"train": "full/", "val": "test/"}, "office_home": {"train": "train/", "val": "val/"}}
    (folder / card.split_file).parent.mkdir()
    written: list[str] = []
    for number, (domain, letter) in enumerate(card.letters.items()):
        split: dict[str, list] = {"train": [], "val": []}
        for label, (key, name) in enumerate(card.class_names.items()):
            for part, images in (("train", 2), ("val", 1)):
                for i in range(images):
                    path = f"{domain}/{between.get(card.name, {}).get(part, '')}{key}/{part}_{i}.jpg"
                    written.append(path)
                    # the published code does not call all of its folders as its own documentation does
                    split[part].append([f"{card.folder.lower()}_dg/{card.images}/{path}", label, number, name])
        (folder / card.split_file.format(letter)).write_text(json.dumps({**split, "test": split["val"]}))
    write_images(folder / card.images, written)


def _cifar(card: Card, folder: Path) -> None:
    coarse = card.name == "cifar100"
    below = folder / ("cifar-100-binary" if coarse else "cifar-10-batches-bin")
    below.mkdir()
    files = ["train.bin", "test.bin"] if coarse else [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for file in files:
        pixels = np.random.default_rng(len(file)).integers(0, 256, (card.classes, 3072), dtype=np.uint8)
        labels = np.arange(card.classes, dtype=np.uint8)[:, None]
        record = [labels // 5, labels, pixels] if coarse else [labels, pixels]
        (below / file).write_bytes(np.hstack(record).tobytes())


MAKERS = {
    "fgvc_aircraft": _fgvc,
    "imagenet": _imagenet,
    "imagenet_v2": _imagenet_v2,
    "imagenet_sketch": _imagenet_subset,
    "imagenet_a": _imagenet_subset,
    "imagenet_r": _imagenet_subset,
    "cifar10": _cifar,
    "cifar100": _cifar,
}
