"""Published splits that come with the package: ``splits/<card>.tsv`` says the same as the file that CoOp published.

A line is a label, a class name, a pattern and what stands for its ``*`` in each path, in the published order, which
fixes the few-shot draws. A part whose paths are sorted over all classes says ``sorted``. ``original_bytes`` gives the
published file back byte for byte, and its SHA-256 stands in the first lines.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from datasets_registry.card import Card
from datasets_registry.readers.base import spaced_name
from vlprompt.data.splits import PARTS, Item

FOLDER = Path(__file__).parents[1] / "splits"
LISTED, SORTED = "listed", "sorted"
Content = dict[str, list[list[Any]]]  # part to [path, label, class name]


def packaged_names() -> list[str]:
    """Return the sorted names of the cards whose published split comes with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.tsv"))


def has_packaged(name: str) -> bool:
    """Tell whether a card's published split comes with the package."""
    return (FOLDER / f"{name}.tsv").is_file()


def split_words(card: Card) -> str:
    """Return the kind of a card's split; ``included`` for a published one that comes with the package."""
    return "included" if has_packaged(card.name) else card.split


def packaged_content(name: str) -> Content:
    """Return the content of a card's published split file: ``{"train": [[path, label, class name], ...], ...}``."""
    content: Content = {}
    order = LISTED
    entries: list[list[Any]] = []
    for line in _lines(name)[2:]:
        first, *rest = line.split("\t")
        if len(rest) == 1:
            entries = content[first] = []
            order = rest[0]
            continue
        class_name, pattern, middles = rest
        before, after = pattern.split("*")
        entries += [[before + middle + after, int(first), class_name] for middle in middles.split(" ")]
        if order == SORTED:
            entries.sort()
    return content


def packaged_split(name: str) -> tuple[tuple[str, ...], dict[str, list[Item]]]:
    """Return class names in label order and the items of each part, as ``read_split_file`` does for the original."""
    content = packaged_content(name)
    parts = {part: [Item(path, label, spaced_name(own)) for path, label, own in content[part]] for part in PARTS}
    names = {item.label: item.class_name for items in parts.values() for item in items}
    return tuple(names[label] for label in range(len(names))), parts


def packaged_sha256(name: str) -> str:
    """Return the SHA-256 of the published file."""
    return _lines(name)[1].partition("\t")[2]


def original_bytes(content: Content) -> bytes:
    """Return a split as its authors' code writes it."""
    return json.dumps(content, indent=4, separators=(",", ": ")).encode()


def pack(file_name: str, original: bytes) -> str:
    """Return the compact form of a published split file, the inverse of ``packaged_content``."""
    lines = [f"file\t{file_name}", f"sha256\t{hashlib.sha256(original).hexdigest()}"]
    for part, entries in json.loads(original).items():
        # StanfordCars' test part is sorted by path, so that its classes would come in thousands of short runs
        in_order = entries == sorted(entries)
        lines.append(f"{part}\t{SORTED if in_order else LISTED}")
        by_class = sorted(entries, key=lambda entry: entry[1]) if in_order else entries
        for (label, name), run in groupby(by_class, key=lambda entry: entry[1:]):
            lines.append(f"{label}\t{name}\t{_pattern([path for path, _, _ in run])}")
    return "\n".join(lines) + "\n"


def _pattern(paths: list[str]) -> str:
    """Return the common beginning and end of paths around a ``*``, a tab, and what differs, separated by spaces."""
    if len(paths) == 1:  # all of it would be shared
        return f"*\t{paths[0]}"
    before = shared_start(paths)
    after = shared_start([path[len(before) :][::-1] for path in paths])[::-1]
    middles = [path[len(before) : len(path) - len(after)] for path in paths]
    return f"{before}*{after}\t{' '.join(middles)}"


def shared_start(texts: list[str]) -> str:
    """Return the longest beginning that all texts share.

    >>> shared_start(["image_01.jpg", "image_02.jpg"])
    'image_0'
    """
    first, last = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


@cache
def _lines(name: str) -> list[str]:
    return (FOLDER / f"{name}.tsv").read_text("utf-8").splitlines()
