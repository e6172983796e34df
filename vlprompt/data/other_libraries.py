"""Datasets of torch, torchvision and Hugging Face: their samples, labels and class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from vlprompt.errors import VlpromptError

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "pixel_values"), ("label", "labels", "fine_label", "class")


class HubRows(Dataset[Any]):
    """A Hugging Face ``Dataset`` as a torch one: of (image, label) pairs, or of images if there is no label column.

    Labels are read as one column, without decoding images.

    Args:
        rows: the ``Dataset``.

    Attributes:
        classes: names by label: those of the ``ClassLabel``, or the sorted labels if these are names.
        targets: (N,) labels; None if there are none.

    Raises:
        VlpromptError: there is no image column.
    """

    def __init__(self, rows: Any):
        features = rows.features
        self.rows, self.image = rows, _column(features, IMAGE_COLUMNS, "Image")
        label = _column(features, LABEL_COLUMNS, "ClassLabel")
        if self.image is None:
            raise VlpromptError(f"an image column is needed, among {', '.join(features)}: rename it to image")
        self.classes = list(getattr(features[label], "names", None) or ()) if label else []
        self.targets = None
        if label:  # without the user's transform, which would decode every image to get its label
            plain = rows.with_format(None) if hasattr(rows, "with_format") else rows
            self.targets = list(plain[label])
            if not self.classes and self.targets and all(isinstance(value, str) for value in self.targets):
                self.classes = sorted(set(self.targets))
                self.targets = [self.classes.index(value) for value in self.targets]

    def __len__(self) -> int:
        return len(self.rows if self.targets is None else self.targets)

    def __getitem__(self, index: int) -> Any:
        image = self.rows[index][self.image]
        return image if self.targets is None else (image, self.targets[index])


def _column(features: Mapping[str, Any], names: Sequence[str], kind: str) -> str | None:
    """The first column of these names, or else the only one of a kind of feature."""
    of_kind = [name for name, feature in features.items() if type(feature).__name__ == kind]
    return next((name for name in names if name in features), of_kind[0] if len(of_kind) == 1 else None)


def is_of_hub(dataset: Any) -> bool:
    """Whether this is a Hugging Face ``Dataset``; that library need not be installed."""
    if type(dataset).__module__.startswith("datasets."):
        return True
    return isinstance(getattr(dataset, "features", None), Mapping) and not isinstance(dataset, Dataset)


def hub_parts(dataset: Any) -> dict[str, HubRows]:
    """Return ``train``, ``val`` and ``test`` of a ``DatasetDict``, as far as it has them; a ``Dataset`` is train.

    Raises:
        VlpromptError: it has none of them, or one is streamed.
    """
    splits = dict(dataset) if isinstance(dataset, Mapping) else {"train": dataset}
    parts = {
        "train": splits.get("train"),
        "val": splits.get("validation", splits.get("val")),
        "test": splits.get("test"),
    }
    if not any(rows is not None for rows in parts.values()):
        raise VlpromptError(f"the dataset has the splits {', '.join(map(str, splits))}: one must be called train")
    for rows in parts.values():
        if rows is not None and (isinstance(rows, IterableDataset) or not hasattr(rows, "__getitem__")):
            raise VlpromptError(
                "a streamed dataset has no known length to split it by: load it without streaming=True, or give "
                "Dataset.from_list(list(dataset.take(N)), features=dataset.features)"
            )
    return {part: HubRows(rows) for part, rows in parts.items() if rows is not None}


def as_torch(dataset: Any) -> Any:
    """Return a Hugging Face dataset, or the train part of several, as a torch one; anything else unchanged.

    Raises:
        VlpromptError: its samples cannot be indexed: an ``IterableDataset`` or a ``DataLoader``.
    """
    if isinstance(dataset, DataLoader):
        raise VlpromptError("a DataLoader gives batches: give its dataset (loader.dataset)")
    if is_of_hub(dataset) or _are_parts(dataset):
        parts = hub_parts(dataset)
        if "train" not in parts:
            raise VlpromptError(f"the dataset has the splits {', '.join(map(str, dataset))}: one must be called train")
        return parts["train"]
    if isinstance(dataset, IterableDataset):
        raise VlpromptError(
            "an IterableDataset has no length and no random access: give list(dataset) if it fits in memory, "
            "with its class names"
        )
    return dataset


def _are_parts(dataset: Any) -> bool:
    """Whether this is a dictionary of Hugging Face datasets."""
    # bool(dataset) is not used: a sparse matrix may be a mapping, and has no truth value
    items = list(dataset.items()) if isinstance(dataset, Mapping) else []
    return bool(items) and all(isinstance(name, str) and is_of_hub(rows) for name, rows in items)


def class_names_of(dataset: Any) -> list[str]:
    """Return the class names of a dataset, or of the dataset that it wraps, by label; empty if it has none.

    They are read from ``classes``, as in torchvision (if a class has several names, the first), ``categories``,
    ``class_to_idx`` or Hugging Face's ``ClassLabel``.

    Raises:
        VlpromptError: concatenated datasets have different classes.
    """
    if isinstance(dataset, ConcatDataset):
        lists = [class_names_of(part) for part in dataset.datasets]
        if any(names != lists[0] for names in lists):
            raise VlpromptError(
                "the concatenated datasets have different classes: give them as splits_from_pairs(pairs, class_names) "
                "with labels from one list, or run them with protocol=multitask"
            )
        return lists[0]
    if is_of_hub(dataset):
        return HubRows(dataset).classes
    label_of = getattr(dataset, "class_to_idx", None)
    classes = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if not classes and isinstance(label_of, Mapping) and sorted(label_of.values()) == list(range(len(label_of))):
        classes = sorted(label_of, key=lambda name: label_of[name])
    if not isinstance(classes, (list, tuple)) or not classes:
        inner = getattr(dataset, "dataset", None)  # of a Subset, or a wrapper written by the user
        return [] if inner is None else class_names_of(inner)
    return [name if isinstance(name, str) else str(name[0]) for name in classes]


def known_labels(dataset: Any) -> Sequence[Any] | None:
    """Return the labels (N,) that a dataset, or the one that it wraps, stores apart from its images; None if none."""
    if isinstance(dataset, Subset):
        labels = known_labels(dataset.dataset)
        return None if labels is None else [labels[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        lists = [labels for labels in map(known_labels, dataset.datasets) if labels is not None]
        return [label for labels in lists for label in labels] if len(lists) == len(dataset.datasets) else None
    labels = getattr(dataset, "labels", getattr(dataset, "targets", None))
    if labels is None or callable(labels) or not hasattr(labels, "__len__") or len(labels) != len(dataset):
        return None
    change = getattr(dataset, "target_transform", None)
    return [change(label) for label in labels] if change else labels


def image_of(sample: Any) -> Any:
    """Return the image of a sample: the first element of a tuple, the image column of a row, or the sample itself."""
    if isinstance(sample, Mapping):
        return next((sample[column] for column in IMAGE_COLUMNS if column in sample), sample)
    return sample[0] if isinstance(sample, (tuple, list)) else sample


def image_and_rest(sample: Any) -> tuple[Any, ...]:
    """Return a sample, which is a tuple or a row of named columns, as (image, label) or (image, label, domain).

    Raises:
        VlpromptError: it is neither.
    """
    if isinstance(sample, Mapping):
        image, label = (next((c for c in names if c in sample), None) for names in (IMAGE_COLUMNS, LABEL_COLUMNS))
        if image is not None and label is not None:
            return sample[image], sample[label]
    if not isinstance(sample, (tuple, list)) or len(sample) not in (2, 3):
        raise VlpromptError(f"expected (image, label) or (image, label, domain), not {type(sample).__name__}")
    return tuple(sample)


def plain_label(label: Any) -> Any:
    """Return a label that is an array or tensor of one number as a Python number; others unchanged."""
    if isinstance(label, Tensor) or hasattr(label, "dtype"):
        return label.item() if label.size == 1 or (isinstance(label, Tensor) and label.numel() == 1) else label
    return label
