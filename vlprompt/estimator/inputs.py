"""What ``PromptClassifier`` is given: images in any form or rows of features, labels, and names for them."""

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

from vlprompt.base.checks import listed, told
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import DatasetSplits, Item, as_rgb
from vlprompt.data.images import open_listed
from vlprompt.data.in_hand import class_names_of, image_of
from vlprompt.data.streaming import is_preprocessed
from vlprompt.errors import VlpromptError
from vlprompt.learner.facts import Facts

PUBLISHED_SHOTS = (1, 2, 4, 8, 16)  # images a class that few-shot recipes are published for
PATHS = (str, os.PathLike)


def holds_images(X: Any) -> bool:
    """Tell images from a table of features: paths, PIL images, arrays of three or four axes, or a torch ``Dataset``."""
    if isinstance(X, (*PATHS, Image.Image)):
        raise VlpromptError("X must be a list of images: write [image] for a single one")
    shape = getattr(X, "shape", None)
    if shape is None and isinstance(X, (bytes, Mapping, Set, Iterator, IOBase, IterableDataset)):
        raise VlpromptError(f"X must be a list of images or a table of features, not {told(X)}: list(…) makes one")
    if isinstance(X, Dataset) or (shape is not None and len(shape) > 2):
        return True
    if shape is not None and (len(shape) != 1 and tuple(shape[1:]) != (1,)):
        _refuse_paths_among_columns(X)
        return False
    values = np.asarray(X).ravel() if shape is not None else X
    if not isinstance(values, (Sequence, np.ndarray)):
        return False
    if not isinstance(values, (list, tuple, np.ndarray)):
        values = values[:1]  # it may read its images when they are asked for
    if isinstance(values, (list, tuple)) and not values:
        raise VlpromptError("X is empty")
    images = [_is_image(value) for value in values]
    odd = next((i for i, image in enumerate(images) if image != images[0] or _is_nothing(values[i])), None)
    if odd is not None:
        raise VlpromptError(
            f"X[{odd}] is {told(values[odd])}: X must hold images throughout (paths, PIL images, arrays; what is in "
            "memory is opened by PIL.Image.open), or rows of features"
        )
    return any(images)


def _is_image(value: Any) -> bool:
    value = value[0] if isinstance(value, tuple) and value else value  # a sample of a dataset
    return isinstance(value, (*PATHS, Image.Image)) or getattr(value, "ndim", 0) > 1


def _is_nothing(value: Any) -> bool:
    """Whether a value of a list is neither an image nor a row of numbers, as scikit-learn would take it."""
    return value is None or isinstance(value, (bytes, bytearray, IOBase, Mapping))


def _refuse_paths_among_columns(X: Any) -> None:
    """Say which column of a table of several holds paths, if one does."""
    columns = getattr(X, "columns", None)
    if columns is None or not len(X):
        return
    for name in columns:
        if isinstance(X[name].iloc[0], PATHS):
            raise VlpromptError(f"X has {len(columns)} columns, and '{name}' holds texts: give X['{name}'] for paths")


def as_images(X: Any) -> Sequence[Any]:
    """Return images as a sequence of them: paths, PIL images, arrays or tensors of single images.

    Raises:
        VlpromptError: there are none, or an array of three axes is a single image.
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
        return map(self.__getitem__, range(len(self)))  # a dataset need not know its own end

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]  # nobody asks for slices
        return image_of(self.dataset[index])


def training_set(
    images: Sequence[Any], labels: Sequence[int], class_names: Sequence[str], **facts: Any
) -> DatasetSplits:
    """Return images to train on as a dataset. Its name or paths tell images apart, as feature banks need it."""
    facts |= {"val": (), "test": (), "class_names": tuple(class_names)}
    if all(isinstance(image, PATHS) for image in images):
        items = [_item(os.path.abspath(p), y, class_names) for p, y in zip(images, labels, strict=True)]
        root = Path(os.sep)
        return DatasetSplits("X", train=items, open_image=partial(open_listed, root), image_dir=root, **facts)
    items = [_item(str(i), y, class_names) for i, y in enumerate(labels)]
    name = f"images-{uuid.uuid4().hex if isinstance(images, _Images) else _content_hash(images)}"

    return DatasetSplits(name, train=items, open_image=partial(_open_given, images), **facts)


def _item(path: str, label: int, class_names: Sequence[str]) -> Item:
    return Item(path, label, "" if label < 0 else class_names[label])


def _open_given(images: Sequence[Any], item: Item) -> Image.Image:
    """Open an image in memory; a function of the module, which a process that is started anew can be handed."""
    return as_rgb(images[int(item.path)], f"image {item.path} of X")


def _content_hash(images: Sequence[Any]) -> str:
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
    """Return the class names of labels, in their order.

    Args:
        classes: (C,) the labels.
        class_names: by label, or one for each in their order; None takes the labels themselves.
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


def _count(label: Any) -> int:
    """How many labels a value holds."""
    if isinstance(label, np.ndarray):
        return int(label.size)
    return len(label) if isinstance(label, (list, tuple, set, frozenset)) else 1


def check_one_label_each(labels: Any) -> None:
    """Refuse targets of several labels an image: an indicator of two columns or more, or lists of labels."""
    shape: tuple[int, ...] = getattr(labels, "shape", ())
    if len(shape) == 2 and shape[1] > 1:
        given = f"y of shape {tuple(shape)}"
    else:
        values = labels.tolist() if str(getattr(labels, "dtype", "")) == "object" and len(shape) == 1 else labels
        if not isinstance(values, (list, tuple)) or all(_count(value) == 1 for value in values):
            return
        given = "y of several labels an image"
    raise VlpromptError(
        f"{given} is multi-label, and here each image has one class: give one label per image, or fit a classifier for "
        "each label, as sklearn.multioutput does"
    )


def check_alike(labels: Any) -> None:
    """Refuse labels of several kinds, such as names and None, which have no order and which NumPy would make texts."""
    values = labels.tolist() if str(getattr(labels, "dtype", "")) == "object" else labels
    if not isinstance(values, (list, tuple)) or not values:
        return
    odd = next((i for i, value in enumerate(values) if isinstance(value, str) != isinstance(values[0], str)), None)
    odd = next((i for i, value in enumerate(values) if value is None), odd)
    if odd is not None:
        raise VlpromptError(f"labels must be all names or all numbers, and y[{odd}] is {told(values[odd])}")


def published_shots(labels: np.ndarray) -> int:
    """Return the largest published number of images a class that the classes have on average, of those with a label."""
    labels = labels[labels >= 0]
    if not len(labels):
        return PUBLISHED_SHOTS[-1]
    mean = len(labels) / len(np.unique(labels))
    return max((shots for shots in PUBLISHED_SHOTS if shots <= mean), default=PUBLISHED_SHOTS[0])


def names_of_dataset(X: Any, labels: np.ndarray) -> Mapping[Any, str] | None:
    """The class names that a dataset brings, if the labels are those that it names."""
    names = getattr(X, "class_names", None)
    return names if names and set(labels.tolist()) <= names.keys() else None


def check_fits(X: Any, method: str, facts: Facts, clip: FrozenCLIP, training: bool = False) -> None:
    """Refuse features of another width, and what a prompted image tower cannot use."""
    features = isinstance(X, np.ndarray)
    if features and X.shape[1] != clip.embed_dim:
        raise VlpromptError(
            f"X has {X.shape[1]} columns, and image features of {clip.name} have {clip.embed_dim}: "
            "vlprompt.image_features makes them"
        )
    if "mask" in facts.inputs and not features and not isinstance(X[0], PATHS):
        raise VlpromptError(f"{method} looks for the mask of a region beside each image: give paths in place of images")
    if not facts.cacheable_images and (features or (training and is_preprocessed(X[0]))):
        given = "features of them" if features else "tensors that were cropped already"
        raise VlpromptError(f"{method} prompts the image tower, so it needs images and not {given}")
