"""The embedded `emoji` dataset: the same things drawn by three artists.

It is split by emoji, not by image, so that a test emoji is unseen in every style.
"""

from __future__ import annotations

import io
import json
import os
import threading
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from vlprompt.data.splits import DatasetSplits, Item

ARCHIVE = Path(__file__).with_name("emoji.zip")
STYLES = ("noto", "twemoji", "fluent")
TEMPLATES = ("an emoji of a {}.",)

_opened = threading.local()


@lru_cache(maxsize=1)
def emoji_index() -> dict[str, Any]:
    """Return the archive's index: `classes`, `licenses`, and `emoji` with code, name, class, split and styles."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        index: dict[str, Any] = json.loads(archive.read("index.json"))
        return index


def emoji_sentences() -> dict[str, list[str]]:
    """Return sentences about each class: what the emoji of the training split are called, one of each.

    A class is a group, such as mammals, which its members' names describe; test emoji are others.
    """
    index = emoji_index()
    known = [emoji for emoji in index["emoji"] if emoji["split"] == "train"]
    return {c: [f"an emoji of a {e['name']}." for e in known if e["class"] == c] for c in index["classes"]}


def _archive() -> zipfile.ZipFile:
    # A ZipFile shares one file position: a thread, or a forked worker, needs its own.
    if getattr(_opened, "pid", None) != os.getpid():
        _opened.pid, _opened.archive = os.getpid(), zipfile.ZipFile(ARCHIVE)
    archive: zipfile.ZipFile = _opened.archive
    return archive


def open_emoji(item: Item) -> Image.Image:
    """Open an item's image as RGB, 64 × 64, on white."""
    return Image.open(io.BytesIO(_archive().read(item.path))).convert("RGB")


def read_emoji() -> DatasetSplits:
    """Return the dataset: 22 Unicode subgroups as classes; an item's `domain` is its style.

    Items are ordered by class, then by the Unicode order of the emoji, then by style.
    """
    index = emoji_index()
    classes = tuple(index["classes"])
    splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(classes):
        for emoji in (e for e in index["emoji"] if e["class"] == name):
            splits[emoji["split"]] += [Item(f"{s}/{emoji['code']}.webp", label, name, s) for s in emoji["styles"]]
    return DatasetSplits(
        name="emoji",
        class_names=classes,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        open_image=open_emoji,
        templates=TEMPLATES,
        source="embedded",
    )
