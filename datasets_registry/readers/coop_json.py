"""The published splits of `CoOp <https://github.com/KaiyangZhou/CoOp>`_: ``split_zhou_<Dataset>.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets_registry.card import Card
from datasets_registry.readers.base import on_disk, readers, spaced_name
from datasets_registry.readers.packaged import has_packaged, packaged_sha256, packaged_split
from vlprompt.base.files import is_relative_inside, sha256_file
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError, warn

Parts = Mapping[str, Sequence[Item]]


@readers.register("coop_json")
def read_coop_json(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """A published split: from the file beside the image folder, or from the package."""
    class_names, parts, defects, other = audit_published(card, folder)
    if defects:
        raise VlpromptError(defects[0])
    if other:
        warn(other)
    return on_disk(card, folder, class_names, parts, source="own file" if other else "published")


def audit_published(card: Card, folder: Path) -> tuple[tuple[str, ...], dict[str, list[Item]], list[str], str]:
    """Read a published split, as ``audit_split_file`` does.

    A file on disk takes precedence over the split that comes with the package.

    Returns:
        Class names, items and defects, and a sentence if the file is known to differ from the published one.
    """
    path = folder / card.split_file
    if not has_packaged(card.name):
        return *audit_split_file(find_split_file(card, path)), ""
    if not path.is_file():
        return *packaged_split(card.name), [], ""
    names, parts, defects = audit_split_file(path)
    if defects or sha256_file(path) == packaged_sha256(card.name):
        return names, parts, defects, ""
    difference = describe_difference(parts, packaged_split(card.name)[1])
    if not difference:
        return names, parts, [], ""
    sentence = (
        f"{path} is not the published split of {card.title} ({difference}): it is used, and numbers on it do not "
        "compare with published ones; without the file the published split, which comes with the package, is used"
    )
    return names, parts, [], sentence


def describe_difference(parts: Parts, published: Parts) -> str:
    """Return how a split differs from the published one, in a phrase; empty if the items are the same."""
    ours, theirs = ({(part, item): None for part, items in p.items() for item in items} for p in (parts, published))
    if list(ours) == list(theirs):
        return ""
    paths = dict.fromkeys(item.path for _, item in [*(ours.keys() - theirs.keys()), *(theirs.keys() - ours.keys())])
    if not paths:
        return "its images stand in another order, so few-shot draws are others"
    what = f"{len(paths):,} images, such as {min(paths)}," if len(paths) > 1 else f"the image {min(paths)}"
    return f"{what} of another part or class, or in one of the two alone"


@readers.register("json", takes_path=True)
def read_json(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """A split file of your own in CoOp's format; ``variant`` is its path, and its paths are relative to ``folder``."""
    class_names, parts = read_split_file(variant)
    return on_disk(card, folder, class_names, parts, source="official")


def find_split_file(card: Card, path: Path) -> Path:
    """Return ``path``; if it does not exist, the error says where to get the published split or what to use instead."""
    if not path.is_file():
        raise VlpromptError(
            f"the published split of {card.title} is expected at {path}, which does not exist: "
            f"get it from the links in {card.split_page}, or use split=generated, which results will name"
        )
    return path


def read_split_file(path: str | Path) -> tuple[tuple[str, ...], dict[str, list[Item]]]:
    """Read ``{"train": [[path, label, class name], ...], "val": ..., "test": ...}``.

    Items keep the order of the file, which determines the few-shot draw, and labels their numbers.

    Returns:
        The class names in label order, with spaces for underscores, and the items of each part.

    Raises:
        VlpromptError: anything else is in the file, a path leads out of the image folder, or labels have gaps.
    """
    class_names, parts, defects = audit_split_file(path)
    if defects:
        raise VlpromptError(defects[0])
    return class_names, parts


def audit_split_file(path: str | Path, fields: int = 3) -> tuple[tuple[str, ...], dict[str, list[Item]], list[str]]:
    """Read the valid entries of a split file, and collect a sentence for each defect.

    Args:
        path: the file.
        fields: the number in an entry: 3 in CoOp's files; 4 with the domain's number between label and class name.

    Returns:
        Class names in label order, the items of each part, and the defects.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return (), {part: [] for part in PARTS}, [f"the split file {path} is not JSON ({error})"]
    if not isinstance(content, dict) or set(content) != set(PARTS):
        actual = f"the keys {', '.join(content) or '(none)'}" if isinstance(content, dict) else type(content).__name__
        wrong = f"the split file {path} must have the keys train, val and test, not {actual}"
        return (), {part: [] for part in PARTS}, [wrong]
    names: dict[int, str] = {}
    defects: list[str] = []
    parts = {p: _items(content[p], names, f"of '{p}' in the split file {path}", fields, defects) for p in PARTS}
    if max(names, default=0) >= len(names):  # only the first few gaps are listed, since a label may be any number
        gaps = islice((label for label in range(max(names, default=0)) if label not in names), 5)
        missing = ", ".join(map(str, gaps)) or "all"
        defects.append(f"the labels in the split file {path} must run from 0 without gaps; missing: {missing}")
    return tuple(names[label] for label in sorted(names)), parts, defects


def _items(entries: Any, names: dict[int, str], where: str, fields: int, defects: list[str]) -> list[Item]:
    """Check and convert one part's entries; ``names`` collects the class name of each label."""
    if not isinstance(entries, list):
        defects.append(f"the content {where} must be a list, not {type(entries).__name__}")
        return []
    types = [str, int, str] if fields == 3 else [str, int, int, str]
    form = "[path, label, class name]" if fields == 3 else "[path, label, domain, class name]"
    items = []
    for position, entry in enumerate(entries):
        # type(), since True is an int to isinstance
        if not isinstance(entry, list) or [type(value) for value in entry] != types or entry[1] < 0:
            defects.append(f"entry {position} {where} must be {form}, not {entry!r:.80}")
            continue
        path, label, name = entry[0], entry[1], spaced_name(entry[-1])
        if not is_relative_inside(path):
            defects.append(f"entry {position} {where} leads out of the image folder: '{path}'")
        elif names.setdefault(label, name) != name:
            defects.append(f"entry {position} {where} calls label {label} '{name}', others '{names[label]}'")
        else:
            items.append(Item(path, label, name, str(entry[2]) if fields == 4 else ""))
    return items
