"""``DatasetSplits``: the items of a dataset in three splits, its class names, and how to open an image."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from PIL import Image

Half = Literal["all", "base", "new"]
PARTS = ("train", "val", "test")
DEFAULT_TEMPLATE = "a photo of a {}."
NO_LABEL = -1
NO_MASKS = (  # of an error that starts with the dataset's name
    "has no masks of regions: put NAME_mask.png beside NAME.jpg, give a table a column mask, or use dataset=shapes"
)


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a dataset.

    Attributes:
        path: relative to the image folder, or another unique name.
        label: index of its class; -1 for none.
        class_name: name of its class; empty for none.
        domain: such as ``sketch``; empty if the dataset has none.
        mask: path of its region mask, if that is not ``<name>_mask.png`` beside it (see ``vlprompt.data.masks``).
    """

    path: str
    label: int
    class_name: str
    domain: str = ""
    mask: str = ""


def without_labels(items: Sequence[Item]) -> tuple[Item, ...]:
    """Return items without labels and class names, for a pool, so that no method can read them."""
    return tuple(replace(item, label=NO_LABEL, class_name="") for item in items)


@dataclass(frozen=True)
class DatasetSplits:
    """The train, val and test items of a dataset, and how to open them.

    Attributes:
        name: registry name, or ``folder:PATH`` as the user typed it.
        class_names: one natural-language name per label, in label order.
        train, val, test: items; the few-shot draw depends on their order.
        open_image: opens an item's image as an RGB ``PIL.Image``. For images on disk it also accepts a function of the
            opened file, see ``vlprompt.data.images.reads_from_disk``.
        templates: the dataset's hand-written prompt templates, each with one ``{}``.
        source: where the split comes from: ``published``, ``official``, ``generated``, ``embedded``, or ``own file`` if
            the user has put another file in the place of the published one.
        root: the dataset's folder on disk, or None if it needs none.
        image_dir: the folder that items' paths are relative to, or None if the images are not files.
        half: which classes are kept: ``all``, ``base`` or ``new``.
        mirror: whether a mirrored image keeps its class (not so for digits and letters).
        version: the version of the dataset's card; it increases when images or splits change.
        tasks: for joined datasets, the index of the dataset that each class comes from; empty otherwise.
        notes: sentences about how it was read, such as on files that were left out.
        unreadable: paths of images that were left out because they cannot be read.
        pool: training images without labels, see ``without_labels``.
        class_places: if the classes are a subset of another dataset's, as ImageNet-A's are of ImageNet's, their labels
            there; empty otherwise.
        pool_classes: labels that the pool's images may have, if known; empty for all.
        region: how images are reduced to their regions, see ``vlprompt.data.regions``; empty for whole images.
        open_whole: with ``region``, what opens whole images; None otherwise.
    """

    name: str
    class_names: tuple[str, ...]
    train: Sequence[Item]
    val: Sequence[Item]
    test: Sequence[Item]
    open_image: Callable[..., Image.Image] = field(repr=False, compare=False)
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    source: str = "generated"
    root: Path | None = None
    image_dir: Path | None = None
    half: Half = "all"
    mirror: bool = True
    version: int = 1
    tasks: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    pool: tuple[Item, ...] = ()
    pool_classes: tuple[int, ...] = ()
    class_places: tuple[int, ...] = ()
    region: str = ""
    open_whole: Callable[..., Image.Image] | None = field(default=None, repr=False, compare=False)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of the items, in order of first appearance; empty if they have none."""
        domains = dict.fromkeys(item.domain for part in (self.train, self.val, self.test) for item in part)
        return tuple(domain for domain in domains if domain)

    def with_parts(self, parts: Mapping[str, Sequence[Item]]) -> DatasetSplits:
        """Return the dataset with other items in the splits that ``parts`` names."""
        train, val, test = (parts.get(part, getattr(self, part)) for part in PARTS)
        return replace(self, train=train, val=val, test=test, pool=tuple(parts.get("pool", self.pool)))

    def keep_classes(self, labels: Sequence[int]) -> DatasetSplits:
        """Return a dataset with only the classes of these labels, relabelled from 0 in their order, in every split.

        Raises:
            VlpromptError: a label is unknown, or occurs twice.
        """
        unknown = sorted(set(labels) - set(range(len(self.class_names))))
        if unknown or len(set(labels)) < len(labels):
            raise VlpromptError(
                f"{self.name} has no label {unknown[0]}" if unknown else f"a label is twice in {labels}"
            )
        new = {label: position for position, label in enumerate(labels)}

        def keep(items: Sequence[Item]) -> list[Item]:
            return [replace(i, label=new[i.label]) for i in items if i.label in new]

        return replace(
            self,
            class_names=tuple(self.class_names[label] for label in labels),
            tasks=tuple(self.tasks[label] for label in labels) if self.tasks else (),
            class_places=tuple(self.class_places[label] for label in labels) if self.class_places else (),
            train=keep(self.train),
            val=keep(self.val),
            test=keep(self.test),
        )

    def select(self, half: Half) -> DatasetSplits:
        """Return the base or new half of the classes, relabelled from 0 in every split.

        The first ⌈C/2⌉ labels are base (CoOp's ``subsample_classes``). Draw a few-shot subset before this, over all
        classes, so that the base half's subset is a part of the all-class one.
        """
        if half == "all":
            return self
        middle = math.ceil(len(self.class_names) / 2)
        labels = range(middle) if half == "base" else range(middle, len(self.class_names))
        return replace(self.keep_classes(labels), half=half)

    def fingerprint(self) -> str:
        """Return a SHA-256 over class names and items, which shows whether two results are on the same data."""
        listing = [list(self.class_names)] + [
            [[i.path, i.label, i.domain] for i in items] for items in (self.train, self.val, self.test)
        ]
        return hashlib.sha256(json.dumps(listing, separators=(",", ":")).encode()).hexdigest()


def mask_beside(path: str) -> str:
    """The path of an image's region mask, if it has one beside it.

    >>> mask_beside("birds/wren.jpg")
    'birds/wren_mask.png'
    """
    return f"{os.path.splitext(path)[0]}_mask.png"


def mask_of(splits: DatasetSplits, item: Item) -> str:
    """The path of an item's region mask (see ``vlprompt.data.masks``); empty if it has none."""
    if item.mask:
        return item.mask
    beside = mask_beside(item.path)
    on_disk = splits.image_dir is not None or os.path.isabs(item.path)
    return beside if on_disk and os.path.isfile(os.path.join(splits.image_dir or "", beside)) else ""


def has_masks(splits: DatasetSplits, items: Sequence[Item]) -> bool:
    """Whether any of the items has a mask, or there are no items; nothing is opened."""
    return not items or any(mask_of(splits, item) for item in items)
