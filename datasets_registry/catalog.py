"""From a dataset's name to its splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from datasets_registry.acquire import download_dataset
from datasets_registry.card import Card, card_names, locate_images
from datasets_registry.layout_hints import where_or_how
from datasets_registry.listed import (
    LEAVE_OUT,
    dataset_info,
    domains_of,
    find_card,
    in_memory,
    is_own,
    list_collections,
    list_datasets,
    registered_name,
    scheme_of,
)
from datasets_registry.readers import readers
from datasets_registry.readers.generated import read_generated
from vlprompt.data.images import open_listed
from vlprompt.data.name_hints import hint_names
from vlprompt.data.splits import PARTS, DatasetSplits
from vlprompt.data.subsets import leave_domain_out, select_domains
from vlprompt.errors import VlpromptError, nearest, warn

# what is known of datasets before one is read can be imported from here, too
__all__ = [
    "SplitChoice",
    "check_classes",
    "dataset_info",
    "domains_of",
    "find_card",
    "find_folder",
    "is_own",
    "list_collections",
    "list_datasets",
    "load_split",
    "register_dataset",
    "registered_name",
    "rename_classes",
]
SplitChoice = Literal["published", "generated"]


def register_dataset(splits: DatasetSplits) -> str:
    """Let ``load_split``, and so every run of this process, find a dataset in memory by its name; return the name.

    A dataset of the same name, classes and items replaces the former one, as when a notebook's cell is run again.

    Raises:
        VlpromptError: the name is a registered dataset's or contains ``/`` or ``:``; another dataset in memory has it;
            or the classes are unusable.
    """
    if splits.name in card_names() or "/" in splits.name or ":" in splits.name:
        raise VlpromptError(
            f"the name '{splits.name}' is a registered dataset's, or contains a character that names may not contain: "
            "choose another"
        )
    former = in_memory.get(splits.name)
    if former is not None and former is not splits and former.fingerprint() != splits.fingerprint():
        raise VlpromptError(
            f"another dataset of this process is called '{splits.name}' and has other classes or images: choose "
            "another name, since results and features are found again by it"
        )
    check_classes(splits, shared_names=False)
    in_memory[splits.name] = splits
    return splits.name


def load_split(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    split: SplitChoice = "published",
    class_names: Mapping[str, str] | Sequence[str] | None = None,
    follow_links: bool = False,
) -> DatasetSplits:
    """Return a dataset's train, val and test items. Images are neither opened nor checked for (see ``check_items``).

    Args:
        name: a name from ``list_datasets()``; ``folder:PATH``, ``csv:PATH``, ``json:PATH`` or ``wds:PATTERN`` for your
            own data; ``NAME/DOMAIN`` for one domain of a dataset that has several, ``NAME/to-DOMAIN`` to train on all
            other domains and test on that one.
        root: folder that contains the datasets' folders; embedded datasets do not need it. For ``csv:`` and ``json:``,
            the folder that paths are relative to, by default that of the file.
        download: download missing images if the dataset's card names an archive.
        split: ``published`` reads the dataset's published split from its file on disk or, for seven of CoOp's datasets,
            from this package (a file that differs from it causes a warning). ``generated`` splits the images itself,
            the same way on every machine, if you do not have the published file. The result's ``source`` says which.
        class_names: other names for the classes: by current name, or one per label.
        follow_links: follow links that lead out of your own folder; other datasets refuse them.

    Anything worth knowing about your own data, such as files that were left out, is given as a warning and in
    ``notes``.

    Raises:
        VlpromptError: the name is unknown, files are not where they are expected, the split file is malformed or
            unsafe, or the classes are unusable (fewer than two, an empty one, two with the same name).
    """
    if split not in ("published", "generated"):
        raise VlpromptError(f"unknown split '{split}': {nearest(split, ['published', 'generated'])}")
    if name in in_memory:
        splits, shared_names = in_memory[name], False
    elif scheme_of(name):
        splits, shared_names = _load_own(name, root, follow_links), False
    else:
        card, variant = find_card(name)
        splits, shared_names = _load_registered(card, variant, root, download, split), card.shared_names
    if class_names is not None:
        splits = rename_classes(splits, class_names)
    check_classes(splits, shared_names)
    if is_own(name):
        hint = hint_names(splits.class_names)
        splits = replace(splits, notes=(*splits.notes, f"{splits.name}: {hint}") if hint else splits.notes)
    for note in splits.notes:
        warn(note)
    return splits


def rename_classes(splits: DatasetSplits, names: Mapping[str, str] | Sequence[str]) -> DatasetSplits:
    """Return ``splits`` with other class names: a mapping from present names, or a list of one per label."""
    if isinstance(names, Mapping):
        unknown = sorted(set(names) - set(splits.class_names))
        if unknown:
            raise VlpromptError(f"{splits.name} has no class '{unknown[0]}': {nearest(unknown[0], splits.class_names)}")
        names = [names.get(name, name) for name in splits.class_names]
    if isinstance(names, str) or len(names) != len(splits.class_names):
        raise VlpromptError(f"{splits.name} has {len(splits.class_names)} classes, and {len(names)} names were given")
    parts = {p: [replace(i, class_name=names[i.label]) for i in getattr(splits, p)] for p in PARTS}
    return replace(splits.with_parts(parts), class_names=tuple(names))


def find_folder(card: Card, root: str | os.PathLike[str] | None) -> Path | None:
    """Return the dataset's folder, which may not exist; None if it needs none."""
    if not card.folder:
        return None
    if root is None:
        raise VlpromptError(f"dataset '{card.name}' needs data_root, the folder that contains {card.folder}/")
    return Path(root).expanduser() / card.folder


def _load_own(name: str, root: str | os.PathLike[str] | None, follow_links: bool = False) -> DatasetSplits:
    scheme = scheme_of(name)
    path = Path(name.partition(":")[2]).expanduser()
    if scheme == "folder" and not path.is_dir():
        raise VlpromptError(f"dataset '{name}': the folder {path} does not exist")
    if scheme in ("csv", "json") and not path.is_file():
        reason = f"{path} is no file" if path.exists() else f"the file {path} does not exist"
        raise VlpromptError(f"dataset '{name}': {reason}")
    folder = path if scheme == "folder" else Path(root).expanduser() if root and scheme != "wds" else path.parent
    card = Card(name=name, title=name, reader=scheme)
    options = {"follow_links": follow_links} if scheme == "folder" else {}
    splits = replace(readers.get(scheme)(card, folder, str(path), **options), root=folder)
    if follow_links and splits.image_dir:
        splits = replace(splits, open_image=partial(open_listed, splits.image_dir))
    return splits


def _load_registered(
    card: Card, variant: str, root: str | os.PathLike[str] | None, download: bool, split: SplitChoice
) -> DatasetSplits:
    folder = find_folder(card, root)
    if folder is not None:
        card = locate_images(card, folder)
        images = folder / card.images
        if download and not images.is_dir():
            download_dataset(card, folder.parent)
        if not images.is_dir():
            raise VlpromptError(
                f"the images of {card.title} are expected in {images}, which is not a folder: "
                f"{where_or_how(card, folder)}"
            )
    if split == "generated" and card.split == "published":
        assert folder is not None  # every dataset with a published split has a folder
        splits = read_generated(card, folder)
    else:
        splits = readers.get(card.reader)(card, folder, variant)
    splits = replace(
        splits,
        name=f"{card.name}/{variant}" if variant else card.name,
        templates=tuple(card.templates) or splits.templates,
        mirror=card.mirror and splits.mirror,
        version=card.version,
        root=folder,
    )
    if variant and not card.variants:
        leave_out = variant.startswith(LEAVE_OUT) and variant not in card.domains
        return leave_domain_out(splits, variant[len(LEAVE_OUT) :]) if leave_out else select_domains(splits, [variant])
    return splits


def check_classes(splits: DatasetSplits, shared_names: bool = False) -> None:
    """Raise for fewer than two classes, two of one name, no test images, or a class without training images."""
    names = splits.class_names
    if len(names) < 2:
        raise VlpromptError(f"dataset '{splits.name}' has one class ('{''.join(names)}'): at least two are needed")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice and not shared_names:
        labels = [label for label, name in enumerate(names) if name == twice[0]]
        raise VlpromptError(
            f"dataset '{splits.name}' has the class name '{twice[0]}' for the labels {labels}: "
            "rename all but one, since a prompt cannot tell them apart"
        )
    if not splits.test:
        raise VlpromptError(f"dataset '{splits.name}' has no test images")
    # without any training images the dataset is a target of what is learnt elsewhere
    empty = sorted(set(range(len(names))) - {item.label for item in splits.train})
    if splits.train and empty:
        raise VlpromptError(f"class '{names[empty[0]]}' of dataset '{splits.name}' has no training images")
