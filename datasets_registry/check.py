"""Checks of a dataset on disk, with one line per defect; nothing unsafe is opened."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from datasets_registry.card import Card, card_names, load_card, locate_images
from datasets_registry.catalog import SplitChoice, check_classes, find_card, find_folder, load_split
from datasets_registry.layout_hints import where_or_how
from datasets_registry.listed import is_own
from datasets_registry.readers.coop_json import audit_published
from datasets_registry.readers.domains import audit_spg_files
from datasets_registry.readers.folder import audit_folder
from vlprompt.base.files import inside
from vlprompt.data.images import open_inside, open_listed
from vlprompt.data.listing import folders, similar_name
from vlprompt.data.name_hints import hint_names
from vlprompt.data.sampling import describe_imbalance
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from vlprompt.clip.frozen import FrozenCLIP

FOLDER = "folder:"
OWN_FOLDER = 0.9  # share of a folder's images with one label, from which all others look misplaced


@dataclass(frozen=True)
class Report:
    """What was found of a dataset.

    Attributes:
        name: as given.
        found: whether its folder is there.
        counts: images in each part.
        classes: number of classes.
        class_hash: SHA-256 of the class names in label order, the first 12 digits.
        source: where the split comes from, see ``DatasetSplits``; ``own`` of data of one's own that bring it.
        opened: number of images read whole.
        defects: a line for each.
        notes: what is no defect and a user should know, a line each.
        classes_of_own: of a user's own dataset, the images of each class in label order.
    """

    name: str
    found: bool = True
    counts: dict[str, int] = field(default_factory=dict)
    classes: int = 0
    class_hash: str = ""
    source: str = ""
    opened: int = 0
    defects: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    classes_of_own: dict[str, int] = field(default_factory=dict)


def _alike(clip: FrozenCLIP, class_names: Sequence[str]) -> tuple[list[str], list[str]]:
    from vlprompt.clip.name_checks import describe_alike  # which imports torch; nothing else here does

    return describe_alike(clip, class_names)


def class_hash(class_names: Sequence[str]) -> str:
    """Return twelve hexadecimal digits that identify a list of classes in its order."""
    return hashlib.sha256("\n".join(class_names).encode()).hexdigest()[:12]


def datasets_below(root: str | Path) -> list[str]:
    """Return the names of the registered datasets whose folder is below a data root."""
    cards = (load_card(name) for name in card_names())
    return [card.name for card in cards if card.folder and (Path(root).expanduser() / card.folder).is_dir()]


def check_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    deep: bool = False,
    split: SplitChoice = "published",
    follow_links: bool = False,
    progress: Callable[[int, int], None] | None = None,
    clip: FrozenCLIP | None = None,
) -> Report:
    """Check a dataset's split, files and, if ``deep``, each image.

    Defects are: missing folders, malformed or unsafe entries of the split file, duplicates, images in two parts, counts
    and class names other than the card's, images in another class's folder, missing and empty files, links out of the
    folder, and with ``deep`` images that cannot be read.

    Args:
        name: as for ``load_split``.
        root: the folder that contains the datasets' folders.
        deep: decode every image.
        split, follow_links: as for ``load_split``.
        progress: called with the number of images read and in all.
        clip: the frozen model to find class names with that it cannot distinguish; None for no such check.
    """
    registered = not is_own(name)
    card, _ = find_card(name) if registered else (Card(name=name, title=name, reader=""), "")
    folder = find_folder(card, root) if registered else None
    if folder is not None:
        card = locate_images(card, folder)
        missing = _missing_folder(card, folder)
        if missing:
            return Report(name, found=folder.is_dir(), defects=(missing,))
    splits, defects = _read(name, root, card, folder, split, follow_links)
    if splits is None:
        exists = ":" not in name or _exists(name.split(":", 1)[1])
        return Report(name, found=exists, defects=tuple(defects))
    if registered and splits.source != "generated" and "/" not in name:
        defects += _against_card(card, splits)
    safe, wrong = _check_files(splits, follow_links)
    same, alike = _alike(clip, splits.class_names) if clip and not card.shared_names else ([], [])
    defects += [*_duplicates(splits), *_misplaced(splits), *same, *wrong]
    opened = 0
    if deep:
        for opened, item in enumerate(safe, start=1):
            try:
                splits.open_image(item)
            except VlpromptError as error:
                defects.append(str(error))
            if progress:
                progress(opened, len(safe))
    counts = {part: len(getattr(splits, part)) for part in PARTS}
    source = "own" if not registered and splits.source == "official" else splits.source
    facts = (len(splits.class_names), class_hash(splits.class_names), source, opened, tuple(defects))
    if registered:
        return Report(name, True, counts, *facts, (*splits.notes, *alike))
    uneven = filter(None, [describe_imbalance(splits)])
    return Report(name, True, counts, *facts, (*splits.notes, *uneven, *alike), _images_of_classes(splits))


def _read(
    name: str,
    root: str | os.PathLike[str] | None,
    card: Card,
    folder: Path | None,
    split: SplitChoice,
    follow_links: bool,
) -> tuple[DatasetSplits | None, list[str]]:
    """Read a dataset and all its defects; if it has any, the dataset is what is sound in it, or None."""
    if name.startswith(FOLDER) and Path(name.removeprefix(FOLDER)).expanduser().is_dir():
        return _audit_own(name, follow_links)
    if folder is not None and split == "published" and card.split == "published":
        splits, defects = _audit(card, folder)
        if defects:
            return splits, defects
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            splits = load_split(name, root, split=split, follow_links=follow_links)
    except VlpromptError as error:
        return None, [str(error)]
    ours = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]  # not those of other packages
    return splits, [message for message in ours if message not in splits.notes]


def _exists(place: str) -> bool:
    """Whether a user's file or folder exists; for a pattern of shards, whether its folder does."""
    path = Path(place).expanduser()
    return path.exists() or (any(sign in path.name for sign in "*?[{") and path.parent.is_dir())


def _distinct(splits: DatasetSplits) -> list[Item]:
    """The items of all parts, each path once."""
    return list({item.path: item for part in PARTS for item in getattr(splits, part)}.values())


def _images_of_classes(splits: DatasetSplits) -> dict[str, int]:
    labels = Counter(item.label for item in _distinct(splits))
    return {name: labels[label] for label, name in enumerate(splits.class_names)}


def _audit_own(name: str, follow_links: bool) -> tuple[DatasetSplits | None, list[str]]:
    """Read a folder of class folders and its defects; if it has any, the dataset is what is sound in it, or None."""
    folder = Path(name.removeprefix(FOLDER)).expanduser()
    splits, defects = audit_folder(Card(name=name, title=name, reader="folder"), folder, follow_links=follow_links)
    if not any(getattr(splits, part) for part in PARTS):
        return None, defects
    if not defects or len(set(splits.class_names)) < len(splits.class_names):
        try:
            check_classes(splits)
        except VlpromptError as error:
            defects.append(str(error))
    hint = hint_names(splits.class_names)
    notes = [*splits.notes, *([hint] if hint else [])]
    if follow_links:
        splits = replace(splits, open_image=partial(open_listed, folder))
    return replace(splits, notes=tuple(notes)), defects


def _missing_folder(card: Card, folder: Path) -> str:
    if not folder.is_dir():
        return f"the folder {folder} is missing: {where_or_how(card, folder)}"
    if not (folder / card.images).is_dir():
        return f"the image folder {folder / card.images} is missing: {where_or_how(card, folder)}"
    return ""


def _audit(card: Card, folder: Path) -> tuple[DatasetSplits | None, list[str]]:
    """Read a published split file and its defects; if it has any, the dataset is what is sound in it, or None."""
    try:
        names, parts, defects = (audit_spg_files if card.letters else audit_published)(card, folder)[:3]
    except VlpromptError as error:
        return None, [str(error)]
    if not any(parts.values()):
        return None, defects
    image_dir = folder / card.images
    train, val, test = (parts.get(part, ()) for part in PARTS)
    opener = partial(open_inside, image_dir)
    return DatasetSplits(card.name, names, train, val, test, opener, source="published", image_dir=image_dir), defects


def _against_card(card: Card, splits: DatasetSplits) -> list[str]:
    """A line for each count and class name that differs from the card's."""
    says = "the literature says" if card.approximate else "the card says"
    counts = {part: len(getattr(splits, part)) for part in PARTS}
    items = _distinct(splits)
    counts["total"] = len(items)
    counts |= {half: len(splits.select(half).test) for half in ("base", "new") if half in card.counts}
    defects = [
        f"{part} has {counts[part]:,} images, {says} {expected:,}"
        for part, expected in card.counts.items()
        if part in counts and counts[part] != expected
    ]
    by_domain = Counter(item.domain for item in items)
    defects += [
        f"the domain {domain} has {by_domain[domain]:,} images, {says} {expected:,}"
        for domain, expected in card.domain_counts.items()
        if by_domain[domain] != expected
    ]
    if card.classes and len(splits.class_names) != card.classes:
        defects.append(f"there are {len(splits.class_names)} classes, the card says {card.classes}")
    elif card.class_names:
        defects += [
            f"label {label} is called '{name}', the card says '{expected}'"
            for label, (name, expected) in enumerate(zip(splits.class_names, card.class_names.values(), strict=True))
            if name.lower() != expected.lower()
        ]
    return defects


def _duplicates(splits: DatasetSplits) -> list[str]:
    """A line for each path that is twice in a part or in two parts; val and test may be equal, as in PACS."""
    parts = {part: [item.path for item in getattr(splits, part)] for part in PARTS}
    defects = [
        f"{path} stands {count} times in {part}"
        for part, paths in parts.items()
        for path, count in Counter(paths).items()
        if count > 1
    ]
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if parts[one] != parts[other]:
            defects += [f"{path} is in {one} and in {other}" for path in sorted(set(parts[one]) & set(parts[other]))]
    return defects


def _misplaced(splits: DatasetSplits) -> list[str]:
    """A line for each image whose folder, or name up to its number, has another label in nearly all other images."""
    items = _distinct(splits)
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        folder, _, name = item.path.rpartition("/")
        groups[folder or re.sub(r"_?\d+\.\w+$", "", name)].append(item)
    defects = []
    for place, group in groups.items():
        (label, count), *others = Counter(item.label for item in group).most_common()
        if others and count >= OWN_FOLDER * len(group):
            defects += [
                f"{item.path} is labelled '{item.class_name}', the others in {place} '{splits.class_names[label]}'"
                for item in group
                if item.label != label and label < len(splits.class_names)
            ]
    return defects


def _check_files(splits: DatasetSplits, follow_links: bool = False) -> tuple[list[Item], list[str]]:
    """Return the items that are safe to open, and a line for each that is missing, empty or linked from elsewhere."""
    items = _distinct(splits)
    if splits.image_dir is None:
        return items, []
    by_folder: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_folder[os.path.dirname(item.path)].append(item)
    safe, defects = [], []
    for folder, group in by_folder.items():
        try:
            place = splits.image_dir / folder if follow_links else _place(splits.image_dir, folder)
            entries = {entry.name: entry for entry in os.scandir(place)}
        except VlpromptError as error:
            defects.append(f"{error} ({len(group)} images)")
            continue
        except OSError:
            hint = _though(similar_name(place.name, folders(place.parent)) if place.parent.is_dir() else None)
            defects.append(f"the folder {splits.image_dir / folder} with {len(group):,} images is missing{hint}")
            continue
        wrong, sound = _check_entries(splits.image_dir, group, entries, follow_links)
        defects += wrong
        safe += sound
    return safe, defects


def _place(image_dir: Path, folder: str) -> Path:
    return inside(image_dir, folder) if folder else image_dir


def _though(other: str | None) -> str:
    return f", though {other} is there: rename it" if other else ""


def _check_entries(
    image_dir: Path, group: Iterable[Item], entries: dict[str, os.DirEntry[str]], follow_links: bool
) -> tuple[list[str], list[Item]]:
    defects, safe = [], []
    for item in group:
        entry = entries.get(os.path.basename(item.path))
        try:
            if entry is None:
                hint = _though(similar_name(os.path.basename(item.path), entries))
                defects.append(f"the image {image_dir / item.path} is missing{hint}")
                continue
            if entry.is_symlink() and not follow_links:
                inside(image_dir, item.path)
            state = entry.stat()
            if not stat.S_ISREG(state.st_mode):
                defects.append(f"the image {image_dir / item.path} is a pipe, a device or a folder, no file")
                continue
            if not state.st_size:
                defects.append(f"the image {image_dir / item.path} is empty")
                continue
        except FileNotFoundError:
            defects.append(f"the image {image_dir / item.path} is a link to what is not there")
            continue
        except (VlpromptError, OSError) as error:
            defects.append(str(error))
            continue
        safe.append(item)
    return defects, safe
