"""Images in any form, or rows of features, as ``PromptClassifier`` accepts them, and the names of their classes."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from io import IOBase
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from vlprompt.base.checks import brief, listed
from vlprompt.data import DatasetSplits, Item, as_rgb
from vlprompt.data.images import open_listed
from vlprompt.data.other_libraries import class_names_of, image_of
from vlprompt.data.streaming import is_preprocessed
from vlprompt.errors import VlpromptError

PUBLISHED_SHOTS = (1, 2, 4, 8, 16)  # images a class that few-shot recipes are published for
PATHS = (str, os.PathLike)


def holds_images(X: Any) -> bool:
    """Whether X is images (paths, PIL images, arrays of 3 or 4 axes, a torch ``Dataset``), not a table of features.

    Raises:
        VlpromptError: it is neither, is empty, or mixes both.
    """
    if isinstance(X, (*PATHS, Image.Image)):
        raise VlpromptError("X must be a list of images: write [image] for a single one")
    shape = getattr(X, "shape", None)
    if shape is None and isinstance(X, (bytes, Mapping, Set, Iterator, IOBase, IterableDataset)):
        raise VlpromptError(f"X must be a list of images or a table of features, not {brief(X)}: list(…) makes one")
    if isinstance(X, Dataset) or (shape is not None and len(shape) > 2):
        return True
    if shape is not None and (len(shape) != 1 and tuple(shape[1:]) != (1,)):
        _refuse_paths_among_columns(X)
        return False
    values = np.asarray(X).ravel() if shape is not None else X
    if not isinstance(values, (Sequence, np.ndarray)):
        return False
    if not isinstance(values, (list, tuple, np.ndarray)):
        values = values[:1]  # indexing may read an image
    if isinstance(values, (list, tuple)) and not values:
        raise VlpromptError("X is empty")
    images = [_is_image(value) for value in values]
    odd = next((i for i, image in enumerate(images) if image != images[0] or _is_nothing(values[i])), None)
    if odd is not None:
        raise VlpromptError(
            f"X[{odd}] is {brief(values[odd])}: X must hold images throughout (paths, PIL images, arrays; what is in "
            "memory is opened by PIL.Image.open), or rows of features"
        )
    return any(images)


def _is_image(value: Any) -> bool:
    """Whether an element of X is an image, or a sample that starts with one."""
    value = value[0] if isinstance(value, tuple) and value else value  # a sample of a dataset
    return isinstance(value, (*PATHS, Image.Image)) or getattr(value, "ndim", 0) > 1


def _is_nothing(value: Any) -> bool:
    """Whether an element of X is neither an image nor a row of numbers."""
    return value is None or isinstance(value, (bytes, bytearray, IOBase, Mapping))


def _refuse_paths_among_columns(X: Any) -> None:
    """Raise a ``VlpromptError`` if a data frame of several columns has paths in one of them."""
    columns = getattr(X, "columns", None)
    if columns is None or not len(X):
        return
    for name in columns:
        if isinstance(X[name].iloc[0], PATHS):
            raise VlpromptError(f"X has {len(columns)} columns, and '{name}' holds texts: give X['{name}'] for paths")


def as_images(X: Any) -> Sequence[Any]:
    """Return X as a sequence of single images: paths, PIL images, arrays or tensors.

    Raises:
        VlpromptError: it is empty, or a single image.
    """
    if isinstance(X, Dataset):
        return _Images(X)
    if isinstance(X, (list, tuple)):
        images = [image[0] if isinstance(image, tuple) else image for image in X]
    else:
        values = X if isinstance(X, Tensor) else np.asarray(X)
        if values.ndim == 3 and 3 in (values.shape[0], values.shape[2]):
            raise VlpromptError(f"X of shape {tuple(values.shape)} is a single image: write [image]")
        images = list(values.ravel() if values.ndim == 2 else values)
    if not len(images):
        raise VlpromptError("X holds no images")
    return images


class _Images(Sequence[Any]):
    """The images of a dataset of (image, label) pairs."""

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self.class_names = dict(enumerate(class_names_of(dataset))) or None

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))  # not every Dataset raises IndexError at its end

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]  # nobody asks for slices
        return image_of(self.dataset[index])


def training_set(
    images: Sequence[Any], labels: Sequence[int], class_names: Sequence[str], **facts: Any
) -> DatasetSplits:
    """Return training images as a dataset.

    Its paths, or a name that contains a hash of the images, identify them in feature banks.

    Args:
        images: N paths or images in memory.
        labels: (N,) class indices; -1 for none.
        class_names: C names.
        facts: other fields of ``DatasetSplits``.
    """
    facts |= {"val": (), "test": (), "class_names": tuple(class_names)}
    if all(isinstance(image, PATHS) for image in images):
        items = [_item(os.path.abspath(p), y, class_names) for p, y in zip(images, labels, strict=True)]
        root = Path(os.sep)
        return DatasetSplits("X", train=items, open_image=partial(open_listed, root), image_dir=root, **facts)
    items = [_item(str(i), y, class_names) for i, y in enumerate(labels)]
    name = f"images-{uuid.uuid4().hex if isinstance(images, _Images) else _content_hash(images)}"

    return DatasetSplits(name, train=items, open_image=partial(_open_given, images), **facts)


def _item(path: str, label: int, class_names: Sequence[str]) -> Item:
    """An image with its label, which may be -1."""
    return Item(path, label, "" if label < 0 else class_names[label])


def _open_given(images: Sequence[Any], item: Item) -> Image.Image:
    """Open an image in memory; a module-level function, so that worker processes can receive it."""
    return as_rgb(images[int(item.path)], f"image {item.path} of X")


def _content_hash(images: Sequence[Any]) -> str:
    """Sixteen hexadecimal digits of what the images contain; those that are files go by their path."""
    digest = hashlib.sha256()
    for image in images:
        if isinstance(image, PATHS):
            content = os.path.abspath(image)
        elif is_preprocessed(image):
            digest.update(image.cpu().numpy().tobytes())
            content = tuple(image.shape)
        else:
            content = as_rgb(image, "an image of X")
            digest.update(content.tobytes())
            content = content.size
        digest.update(repr(content).encode())
    return digest.hexdigest()[:16]


def names_of(classes: np.ndarray, class_names: Sequence[str] | Mapping[Any, str] | None) -> list[str]:
    """Return the name of each class, in the order of their labels.

    Args:
        classes: (C,) the labels.
        class_names: a dictionary by label, or a list in the order of the labels; None uses the labels as names.

    Raises:
        VlpromptError: a class has no name, or the list has another length.
    """
    if class_names is None:
        return [str(label) for label in classes]
    if not isinstance(class_names, Mapping):
        class_names = listed(class_names, "class_names")
    else:
        missing = [label for label in classes.tolist() if label not in class_names]
        if missing:
            raise VlpromptError(f"class_names has no name for the label {missing[0]!r}")
        return [class_names[label] for label in classes.tolist()]
    if len(class_names) != len(classes):
        raise VlpromptError(
            f"class_names must be {len(classes)} names, one for each class in the order of {classes[:5].tolist()}, or "
            "a dictionary from labels to names"
        )
    return list(class_names)


def published_shots(labels: np.ndarray) -> int:
    """Return the largest published number of shots that the labelled classes have on average.

    Args:
        labels: (N,) class indices; -1 for none.
    """
    labels = labels[labels >= 0]
    if not len(labels):
        return PUBLISHED_SHOTS[-1]
    mean = len(labels) / len(np.unique(labels))
    return max((shots for shots in PUBLISHED_SHOTS if shots <= mean), default=PUBLISHED_SHOTS[0])


def names_of_dataset(X: Any, labels: np.ndarray) -> Mapping[Any, str] | None:
    """The class names of a torch ``Dataset`` by label, if it names all the labels (C,); else None."""
    names = getattr(X, "class_names", None)
    return names if names and set(labels.tolist()) <= names.keys() else None
