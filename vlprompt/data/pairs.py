"""Datasets that are already in memory: (image, label) pairs, or a Hugging Face ``datasets`` object."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from vlprompt.data.images import as_rgb
from vlprompt.data.sampling import generated_split
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "pixel_values"), ("label", "labels", "fine_label", "class")


def splits_from_pairs(
    train: Iterable[Any],
    class_names: Sequence[str],
    val: Iterable[Any] = (),
    test: Iterable[Any] = (),
    *,
    name: str | None = None,
    **facts: Any,
) -> DatasetSplits:
    """Make a dataset of (image, label) pairs.

    An image is a ``PIL.Image``, a path, or an array or tensor of bytes (see ``as_rgb``). Sequences such as a
    torchvision dataset are asked for an image when it is needed; without test pairs, 50/20/30 of each class are train,
    val and test.

    Args:
        train, val, test: sequences of (image, label) or of (image, label, domain), or iterables of them.
        class_names: by label.
        name: of the dataset, in results. Feature banks are found again by it, so a name must always mean the same
            images; without one, a new name is made up each time.
        facts: other fields of ``DatasetSplits``, such as ``templates``.

    >>> from PIL import Image
    >>> pairs = [(Image.new("RGB", (8, 8)), i % 2) for i in range(20)]
    >>> len(splits_from_pairs(pairs, ["cat", "dog"]).train)
    10
    """
    name, names = name or f"pairs-{uuid.uuid4().hex[:8]}", tuple(class_names)
    sources = {p: s if hasattr(s, "__getitem__") else list(s) for p, s in zip(PARTS, (train, val, test), strict=True)}
    parts = {part: _items(source, names, part) for part, source in sources.items()}
    if not parts["test"]:
        if parts["val"]:
            raise VlpromptError(f"{name} has val pairs but no test pairs: give both, or neither")
        parts = _split(parts["train"], len(names))

    def open_pair(item: Item) -> Image.Image:
        part, _, position = item.path.partition("/")
        return as_rgb(sources[part][int(position)][0], item.path)

    facts = {"source": "generated" if not len(sources["test"]) else "official", **facts}
    return DatasetSplits(name=name, class_names=names, **parts, open_image=open_pair, **facts)


def splits_from_hf(
    dataset: Any, class_names: Sequence[str] = (), *, name: str | None = None, **facts: Any
) -> DatasetSplits:
    """Make a dataset of a Hugging Face ``Dataset``, or of a ``DatasetDict`` with train, validation and test.

    The image and label columns are found by name; class names come from the label's ``ClassLabel`` unless given.
    Nothing is downloaded and no code of the dataset is run here: load it first.
    """
    if isinstance(dataset, Mapping):
        by_part = {part: dataset.get(part) for part in PARTS}
        by_part["val"] = dataset.get("validation", by_part["val"])
    else:
        by_part = {"train": dataset}
    given = {part: rows for part, rows in by_part.items() if rows is not None}
    if "train" not in given:
        raise VlpromptError(f"the dataset has the splits {', '.join(dataset)}: one must be called train")
    columns = list(given["train"].features)
    image = next((c for c in IMAGE_COLUMNS if c in columns), None)
    label = next((c for c in LABEL_COLUMNS if c in columns), None)
    if image is None or label is None:
        raise VlpromptError(f"an image and a label column are needed, among {', '.join(columns)}: rename them")
    names = class_names or getattr(given["train"].features[label], "names", None)
    if not names:
        raise VlpromptError(f"the label column '{label}' has no class names: give class_names")
    pairs = {part: _Rows(rows, image, label) for part, rows in given.items()}
    return splits_from_pairs(pairs["train"], names, pairs.get("val", ()), pairs.get("test", ()), name=name, **facts)


def samples(images: Iterable[Any]) -> Iterable[Any]:
    """Return what iterates over images, or over the samples of a torch ``Dataset``, which need not know its own end."""
    if isinstance(images, (str, os.PathLike)):
        raise VlpromptError(f"several images are expected, and one path was given: write [{str(images)!r}]")
    if isinstance(images, Dataset) and not isinstance(images, IterableDataset):
        return (images[position] for position in range(len(images)))
    return images


def class_names_of(dataset: Any) -> list[str]:
    """Return the names in a dataset's ``classes``, as torchvision has them, the first where it has several; or none."""
    classes = getattr(dataset, "classes", None) or ()
    return [name if isinstance(name, str) else name[0] for name in classes]


def as_splits(
    dataset: DatasetSplits | Dataset, part: Literal["train", "test"] = "train", class_names: Sequence[str] = ()
) -> DatasetSplits:
    """Return a torch ``Dataset`` of (image, label) pairs as splits; splits are returned as they are.

    Args:
        dataset: its images are ``PIL.Image``s or bytes: transforms of ours follow.
        part: ``test`` takes all pairs to test on, ``train`` divides them as ``splits_from_pairs`` does.
        class_names: by label, where the dataset has no ``classes``.
    """
    if isinstance(dataset, DatasetSplits):
        return dataset
    names = class_names_of(dataset) or class_names
    if not names:
        raise VlpromptError("the dataset has no classes: give splits_from_pairs(dataset, class_names) in its place")
    return splits_from_pairs(dataset if part == "train" else (), names, test=dataset if part == "test" else ())


def labels_of(source: Any) -> Sequence[Any]:
    """Return the labels of a sequence of (image, label) pairs, from its ``targets`` where it has them."""
    labels = _labels(source)
    return list(labels) if labels is not None else [_label_and_domain(source[i])[0] for i in range(len(source))]


class _Rows:
    """Rows of a table as (image, label) pairs; labels are read as one column, without decoding an image."""

    def __init__(self, rows: Any, image: str, label: str):
        self.rows, self.image, self.labels = rows, image, list(rows[label])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.rows[index][self.image], self.labels[index]


def _items(source: Any, names: Sequence[str], part: str) -> list[Item]:
    labels = _labels(source)
    items = []
    for position in range(len(source)):
        label, domain = (labels[position], "") if labels is not None else _label_and_domain(source[position])
        if isinstance(label, bool) or not hasattr(label, "__index__") or not 0 <= label.__index__() < len(names):
            raise VlpromptError(f"the label of {part} pair {position} must be 0 to {len(names) - 1}, not {label!r}")
        items.append(Item(f"{part}/{position}", label.__index__(), names[label.__index__()], domain))
    return items


def _labels(source: Any) -> Sequence[int] | None:
    """Labels that a dataset keeps beside its images (torchvision's ``targets``); none is opened for its label."""
    labels = getattr(source, "labels", getattr(source, "targets", None))
    return labels if labels is not None and not callable(labels) and len(labels) == len(source) else None


def _label_and_domain(pair: Any) -> tuple[Any, str]:
    if not isinstance(pair, (tuple, list)) or len(pair) not in (2, 3):
        raise VlpromptError(f"expected (image, label) or (image, label, domain), not {type(pair).__name__}")
    return pair[1], str(pair[2]) if len(pair) == 3 else ""


def _split(items: Sequence[Item], classes: int) -> dict[str, list[Item]]:
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for label in range(classes):
        by_path = {item.path: item for item in items if item.label == label}
        for part, paths in zip(PARTS, generated_split(list(by_path)), strict=True):
            parts[part] += [by_path[path] for path in paths]
    return parts
