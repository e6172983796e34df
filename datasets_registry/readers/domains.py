"""Sets of several domains, with the splits of `SPG <https://arxiv.org/abs/2404.19286>`_: one JSON a domain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from datasets_registry.card import Card
from datasets_registry.readers.base import on_disk, readers
from datasets_registry.readers.coop_json import audit_split_file, find_split_file
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError


@readers.register("spg_json")
def read_spg_json(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """One published split file per domain; the dataset has the items of all, each with its domain."""
    names, parts, defects = audit_spg_files(card, folder)
    if defects:
        raise VlpromptError(defects[0])
    return on_disk(card, folder, names, parts, source="published")


def audit_spg_files(card: Card, folder: Path) -> tuple[tuple[str, ...], dict[str, list[Item]], list[str]]:
    """Read every domain's file as ``audit_split_file`` does, with paths made relative to the image folder."""
    whole: dict[str, list[Item]] = {part: [] for part in PARTS}
    names: tuple[str, ...] = ()
    defects: list[str] = []
    for domain, letter in card.letters.items():
        path = find_split_file(card, folder / card.split_file.replace("{}", letter))
        found, parts, wrong = audit_split_file(path, fields=4)
        defects += wrong
        if names and found != names:
            defects.append(f"the split file {path} has the classes {', '.join(found)}, the others {', '.join(names)}")
        names = names or found
        for part, items in parts.items():
            for item in items:
                below = _below_images(item.path, card.images, domain)
                if below is None:
                    defects.append(
                        f"a path in '{part}' of {path} must be DATASET/{card.images}/{domain}/..., not '{item.path}'"
                    )
                else:
                    whole[part].append(replace(item, path=below, domain=domain))
    return names, whole, defects


def _below_images(path: str, images: str, domain: str) -> str | None:
    """Remove ``PACS/images/`` from a path; any first part will do, since published files and code disagree on it."""
    parts = PurePosixPath(path).parts
    return "/".join(parts[2:]) if parts[1:3] == (images, domain) else None
