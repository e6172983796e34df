"""Shards of your own: ``wds:PATTERN``."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from datasets_registry.card import Card
from datasets_registry.readers.base import PART_NAMES, read_lines, readers, spaced_name, split_items
from vlprompt.data.formats import image_suffixes
from vlprompt.data.images import open_rgb
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError

MAX_SHARDS = 100_000
MAX_LABEL = 2**20  # bytes of a sample's class or JSON


@readers.register("wds", takes_path=True)
def read_wds(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """Tar shards in webdataset's form: ``KEY.jpg`` and ``KEY.cls``, or ``class`` or ``label`` in ``KEY.json``.

    ``variant`` is the pattern, such as ``shards/train-{000..009}.tar`` or ``shards/*.tar``. A shard whose name starts
    with train, val or test belongs to that part; otherwise each class is split 50/20/30. Names of numbered classes are
    the lines of ``classnames.txt`` beside the shards. Images are read where they lie in the shards, which must not be
    compressed.
    """
    shards = expand_shards(variant)
    if not shards:
        raise VlpromptError(f"no shard matches {variant}")
    index: dict[str, tuple[Path, int, int]] = {}
    samples: list[tuple[str, str, str]] = []  # part, path, class
    for shard in shards:
        part = PART_NAMES.get(re.split(r"[^a-z]", shard.name.lower())[0], "")
        for key, (offset, size), label in _samples(shard):
            path = f"{shard.name}/{key}"
            if path in index:
                raise VlpromptError(f"the sample {path} occurs twice in {variant}: shards and keys need unique names")
            index[path] = shard, offset, size
            samples.append((part, path, label))
    names = _wds_names(shards[0].parent, {label for _, _, label in samples})
    labels = {key: number for number, key in enumerate(names)}
    items: dict[str, list[Item]] = {"": [], **{part: [] for part in PARTS}}
    for part, path, key in samples:
        items[part].append(Item(path, labels[key], names[key]))
    unsplit = items.pop("")
    if unsplit and any(items.values()):
        raise VlpromptError(f"some shards of {variant} are called train, val or test and others are not")
    sizes = json.dumps([[shard.name, shard.stat().st_size] for shard in shards]).encode()
    parts = split_items(unsplit) if unsplit else items
    return DatasetSplits(
        card.name,
        tuple(names.values()),
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        open_image=partial(_open_member, index),
        source="generated" if unsplit else "official",
        version=int.from_bytes(hashlib.sha256(sizes).digest()[:4], "little"),  # other shards get other feature banks
    )


def expand_shards(pattern: str, most: int = MAX_SHARDS) -> list[Path]:
    """Return the files that a pattern with ``{000..009}`` and shell-style wildcards stands for, sorted.

    >>> [str(path) for path in expand_shards("nowhere/{08..10}.tar")]
    ['nowhere/08.tar', 'nowhere/09.tar', 'nowhere/10.tar']
    """
    brace = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not brace:
        wild = any(sign in pattern for sign in "*?[")
        return [Path(p) for p in sorted(glob.glob(pattern))] if wild else [Path(pattern)]
    first, last = brace.groups()
    count = int(last) - int(first) + 1 if max(map(len, brace.groups())) < 20 else 0
    if not 0 < count <= most:
        raise VlpromptError(f"{brace[0]:.60} does not stand for 1 to {most:,} shards: write which shards there are")
    numbers = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    halves = pattern[: brace.start()], pattern[brace.end() :]
    return [path for n in numbers for path in expand_shards(n.join(halves), most // count)]


def _samples(shard: Path) -> Iterator[tuple[str, tuple[int, int], str]]:
    """Yield key, offset and size of the image, and class of each sample, whose members are consecutive."""
    if shard.exists() and not shard.is_file():  # opening a pipe may never end
        raise VlpromptError(f"the shard {shard} is no file")
    try:
        with tarfile.open(shard, "r:") as tar:
            image: tuple[str, tuple[int, int]] | None = None
            label, current = "", ""
            for member in tar:
                if not member.isreg():
                    continue
                key, extension = _split_name(member.name)
                if key != current:
                    yield from _complete(shard, current, image, label)
                    image, label, current = None, "", key
                if f".{extension}" in image_suffixes():
                    image = key, (member.offset_data, member.size)
                elif extension in ("cls", "json"):
                    if member.size > MAX_LABEL or member.issparse():
                        raise VlpromptError(
                            f"{member.name} in {shard} has {member.size:,} bytes, more than any class needs"
                        )
                    content = tar.extractfile(member)
                    assert content is not None  # None only for members that are no files
                    label = _label(content.read(), extension, f"{key}.{extension} in {shard}") or label
            yield from _complete(shard, current, image, label)
    except (tarfile.TarError, OSError) as error:
        raise VlpromptError(f"the shard {shard} cannot be read as an uncompressed tar file ({error})") from error


def _split_name(name: str) -> tuple[str, str]:
    """Split at the first dot of the file name, as webdataset does."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension.lower()


def _complete(
    shard: Path, key: str, image: tuple[str, tuple[int, int]] | None, label: str
) -> Iterator[tuple[str, tuple[int, int], str]]:
    if key and (image is None or not label):
        lack = "image" if image is None else "class (.cls, or class or label in .json)"
        raise VlpromptError(f"the sample {key} in {shard} has no {lack}")
    if image is not None:
        yield *image, label


def _label(content: bytes, extension: str, where: str) -> str:
    try:
        text = content.decode().strip()
        if extension == "cls":
            return str(int(text)) if text.isdecimal() else text
        values = json.loads(text)
        value = values.get("class", values.get("label"))
        return "" if value is None else str(value)
    except (ValueError, AttributeError) as error:
        raise VlpromptError(f"the class of {where} cannot be read ({error})") from error


def _wds_names(folder: Path, keys: set[str]) -> dict[str, str]:
    """Return key to name in label order: the lines of classnames.txt if the keys are numbers, else the sorted keys."""
    if not all(key.isascii() and key.isdigit() for key in keys):
        return {key: spaced_name(key) for key in sorted(keys)}
    lines = read_lines(folder / "classnames.txt", "the list of class names, one a line in label order,", by_place=True)
    beyond = [key for key in keys if int(key) >= len(lines)]
    if beyond:
        raise VlpromptError(f"{folder / 'classnames.txt'} has {len(lines)} lines, but there is a label {beyond[0]}")
    return {str(label): spaced_name(line) for label, line in enumerate(lines)}


def _open_member(index: dict[str, tuple[Path, int, int]], item: Item) -> Image.Image:
    shard, offset, size = index[item.path]
    with open(shard, "rb") as file:
        file.seek(offset)
        image: Image.Image = open_rgb(io.BytesIO(file.read(size)), name=f"{item.path} of {shard}")
        return image
