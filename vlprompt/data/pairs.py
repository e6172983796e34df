"""``DatasetSplits`` from (image, label) pairs, torch datasets, or Hugging Face ``datasets`` objects."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from vlprompt.data.images import as_rgb
from vlprompt.data.other_libraries import (
    HubRows,
    as_torch,
    class_names_of,
    hub_parts,
    image_and_rest,
    is_of_hub,
    known_labels,
    plain_label,
)
from vlprompt.data.sampling import generated_split
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError


def splits_from_pairs(
    train: Iterable[Any] | Dataset[Any],
    class_names: Sequence[str],
    val: Iterable[Any] | Dataset[Any] = (),
    test: Iterable[Any] | Dataset[Any] = (),
    *,
    name: str | None = None,
    **facts: Any,
) -> DatasetSplits:
    """Make a dataset of (image, label) pairs.

    An image is a ``PIL.Image``, a path, or an array or tensor (see ``as_rgb``). Sequences such as a torchvision dataset
    are indexed when an image is needed. Without test pairs, each class is divided into 50% train, 20% val and 30% test.

    Args:
        train, val, test: sequences or iterables of (image, label) or (image, label, domain).
        class_names: by label.
        name: the dataset's name in results and feature banks, so a name must always mean the same images; None makes up
            a new one each time.
        facts: other fields of ``DatasetSplits``, such as ``templates``.

    Raises:
        VlpromptError: a label is not an integer below the number of classes, or there are val but no test pairs.

    >>> from PIL import Image
    >>> pairs = [(Image.new("RGB", (8, 8)), i % 2) for i in range(20)]
    >>> len(splits_from_pairs(pairs, ["cat", "dog"]).train)
    10
    """
    name, names = name or f"pairs-{uuid.uuid4().hex[:8]}", tuple(class_names)
    sources = {part: _source(pairs) for part, pairs in zip(PARTS, (train, val, test), strict=True)}
    parts: dict[str, list[Item]] = {part: _items(source, names, part) for part, source in sources.items()}
    if not parts["test"]:
        if parts["val"]:
            raise VlpromptError(f"{name} has val pairs but no test pairs: give both, or neither")
        parts = _split(parts["train"], len(names))

    facts = {"source": "generated" if not len(sources["test"]) else "official", **facts}
    train, val, test = (parts[part] for part in PARTS)
    opener = partial(_open_pair, sources)
    return DatasetSplits(name, names, train, val, test, opener, **facts)


def splits_from_hf(
    dataset: Any, class_names: Sequence[str] = (), *, name: str | None = None, **facts: Any
) -> DatasetSplits:
    """Make a dataset of a Hugging Face ``Dataset``, or of a ``DatasetDict`` with train, validation and test.

    The image and label columns are found by name or type. Nothing is downloaded, and no code of the dataset is run.

    Args:
        dataset: loaded before.
        class_names: by label; by default those of the ``ClassLabel``, or the labels themselves if they are texts.
        name, facts: as in ``splits_from_pairs``.

    Raises:
        VlpromptError: a column, a split called train or the class names are missing.
    """
    parts = hub_parts(dataset)
    if "train" not in parts:
        raise VlpromptError(f"the dataset has the splits {', '.join(dataset)}: one must be called train")
    _check_labelled(parts)
    names = class_names or parts["train"].classes
    if not names:
        raise VlpromptError("the label column has no class names: give class_names")
    return splits_from_pairs(parts["train"], names, parts.get("val", ()), parts.get("test", ()), name=name, **facts)


def _check_labelled(parts: Mapping[str, HubRows]) -> None:
    """Raise a ``VlpromptError`` if a part has no label column."""
    for part, rows in parts.items():
        if rows.targets is None:
            columns = ", ".join(rows.rows.features)
            raise VlpromptError(f"a label column is needed in {part}, among {columns}: rename it to label")


def samples(images: Iterable[Any]) -> Iterable[Any]:
    """Return an iterable of images, or of the samples of a torch or Hugging Face dataset.

    Raises:
        VlpromptError: a single path or a ``DataLoader`` was given.
    """
    if isinstance(images, (str, os.PathLike)):
        raise VlpromptError(f"several images are expected, and one path was given: write [{str(images)!r}]")
    if isinstance(images, DataLoader) or (is_of_hub(images) and hasattr(images, "__len__")):
        images = as_torch(images)  # raises for a DataLoader
    if isinstance(images, Dataset) and not isinstance(images, IterableDataset):
        dataset: Any = images
        return (dataset[position] for position in range(len(dataset)))  # not every Dataset raises IndexError at its end
    return images


def as_splits(dataset: Any, part: Literal["train", "test"] = "train", class_names: Sequence[str] = ()) -> DatasetSplits:
    """Return a dataset object as ``DatasetSplits``; splits are returned unchanged.

    Args:
        dataset: a torch ``Dataset`` of (image, label) pairs, a ``Subset`` or ``ConcatDataset`` of such, or Hugging
            Face's ``Dataset`` or ``DatasetDict``. Images must not be normalised: the model's own transform follows.
        part: ``train`` uses the splits that the dataset has, or divides it as ``splits_from_pairs`` does; ``test``
            tests on all pairs, or on the test split (else validation) of a ``DatasetDict``.
        class_names: by label, if the dataset has none.

    Raises:
        VlpromptError: it has no class names, or its samples cannot be indexed.
    """
    if isinstance(dataset, DatasetSplits):
        return dataset
    if isinstance(dataset, Mapping):
        parts = hub_parts(dataset) if all(map(is_of_hub, dataset.values())) else {}
        if part == "train" or not parts:
            return splits_from_hf(dataset, class_names)
        tested = parts.get("test", parts.get("val"))
        if tested is None:
            raise VlpromptError("the dataset has no split called test or validation: give one of its splits by itself")
        _check_labelled({"test": tested})
        dataset = tested
    dataset = as_torch(dataset)
    if isinstance(dataset, HubRows):
        _check_labelled({part: dataset})
    names = class_names_of(dataset) or class_names
    if not names:
        raise VlpromptError("the dataset has no classes: give splits_from_pairs(dataset, class_names) instead")
    return splits_from_pairs(dataset if part == "train" else (), names, test=dataset if part == "test" else ())


def labels_of(source: Any) -> Sequence[Any]:
    """Return the labels (N,) of a sequence of (image, label) pairs, without opening images if it stores them apart."""
    labels = known_labels(source)
    labels = [image_and_rest(source[i])[1] for i in range(len(source))] if labels is None else labels
    return [plain_label(label) for label in labels]


def _source(pairs: Any) -> Any:
    """Return pairs as a sequence, which is indexed when an image is needed."""
    if is_of_hub(pairs):
        pairs = as_torch(pairs)
    return list(pairs) if isinstance(pairs, IterableDataset) or not hasattr(pairs, "__getitem__") else pairs


def _open_pair(sources: Mapping[str, Any], item: Item) -> Image.Image:
    """Open the image of an item, whose path is ``PART/POSITION``."""
    part, _, position = item.path.partition("/")
    return as_rgb(image_and_rest(sources[part][int(position)])[0], item.path)


def _items(source: Any, names: Sequence[str], part: str) -> list[Item]:
    """The items of a sequence of pairs, in order."""
    labels = known_labels(source)
    items = []
    for position in range(len(source)):
        if labels is not None:
            label, domain = labels[position], ""
        else:
            _, label, *rest = image_and_rest(source[position])
            domain = str(rest[0]) if rest else ""
        label = plain_label(label)
        if isinstance(label, bool) or not hasattr(label, "__index__") or not 0 <= label.__index__() < len(names):
            raise VlpromptError(f"the label of {part} pair {position} must be 0 to {len(names) - 1}, not {label!r:.60}")
        items.append(Item(f"{part}/{position}", label.__index__(), names[label.__index__()], domain))
    return items


def _split(items: Sequence[Item], classes: int) -> dict[str, list[Item]]:
    """Divide the items of each class into train, val and test."""
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for label in range(classes):
        by_path = {item.path: item for item in items if item.label == label}
        for part, paths in zip(PARTS, generated_split(list(by_path)), strict=True):
            parts[part] += [by_path[path] for path in paths]
    return parts
