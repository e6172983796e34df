"""Datasets that are already in memory: (image, label) pairs, or a Hugging Face ``datasets`` object."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from vlprompt.data.images import as_rgb
from vlprompt.data.in_hand import (
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
    are asked for an image when it is needed; without test pairs, 50/20/30 of each class are train, val and test.

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
    sources = {part: _source(given) for part, given in zip(PARTS, (train, val, test), strict=True)}
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

    The image and label columns are found by name or kind; class names come from the label's ``ClassLabel``, or are the
    labels themselves where these are texts, unless given. Nothing is downloaded and no code of the dataset is run here:
    load it first.
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
    for part, rows in parts.items():
        if rows.targets is None:
            columns = ", ".join(rows.rows.features)
            raise VlpromptError(f"a label column is needed in {part}, among {columns}: rename it to label")


def samples(images: Iterable[Any]) -> Iterable[Any]:
    """Return what iterates over images, or over the samples of a dataset of torch or Hugging Face."""
    if isinstance(images, (str, os.PathLike)):
        raise VlpromptError(f"several images are expected, and one path was given: write [{str(images)!r}]")
    if isinstance(images, DataLoader) or (is_of_hub(images) and hasattr(images, "__len__")):
        images = as_torch(images)  # or say that a loader gives batches
    if isinstance(images, Dataset) and not isinstance(images, IterableDataset):
        several: Any = images
        return (several[position] for position in range(len(several)))  # which need not know its own end
    return images


def as_splits(dataset: Any, part: Literal["train", "test"] = "train", class_names: Sequence[str] = ()) -> DatasetSplits:
    """Return a dataset in hand as splits; splits are returned as they are.

    Args:
        dataset: a torch ``Dataset`` of (image, label) pairs, a ``Subset`` or ``ConcatDataset`` of such, or Hugging
            Face's ``Dataset`` or ``DatasetDict``; its images are as they are: transforms of ours follow.
        part: ``train`` takes the parts that the dataset has, or divides it as ``splits_from_pairs`` does; ``test``
            takes all pairs to test on, of a dataset with parts those of its test part, or else of validation.
        class_names: by label, where the dataset has none.

    Raises:
        VlpromptError: it has no classes, or is of a kind that cannot be come back to.
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
        raise VlpromptError("the dataset has no classes: give splits_from_pairs(dataset, class_names) in its place")
    return splits_from_pairs(dataset if part == "train" else (), names, test=dataset if part == "test" else ())


def labels_of(source: Any) -> Sequence[Any]:
    """Return the labels of a sequence of (image, label) pairs, from its ``targets`` where it has them."""
    labels = known_labels(source)
    labels = [image_and_rest(source[i])[1] for i in range(len(source))] if labels is None else labels
    return [plain_label(label) for label in labels]


def _source(given: Any) -> Any:
    """What a part's samples are asked of: a sequence, or an iterable's list."""
    if is_of_hub(given):
        given = as_torch(given)
    return list(given) if isinstance(given, IterableDataset) or not hasattr(given, "__getitem__") else given


def _open_pair(sources: Mapping[str, Any], item: Item) -> Image.Image:
    part, _, position = item.path.partition("/")
    return as_rgb(image_and_rest(sources[part][int(position)])[0], item.path)


def _items(source: Any, names: Sequence[str], part: str) -> list[Item]:
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
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for label in range(classes):
        by_path = {item.path: item for item in items if item.label == label}
        for part, paths in zip(PARTS, generated_split(list(by_path)), strict=True):
            parts[part] += [by_path[path] for path in paths]
    return parts
