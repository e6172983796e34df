"""Few-shot draws, equal to the published subsets item by item (`CoOp <https://github.com/KaiyangZhou/CoOp>`_)."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vlprompt.base.files import atomic_write, read_text
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.errors import VlpromptError, warn

Shots = int | Literal["all"] | None
VAL_SHOTS = 4
UNEVEN = 2  # the largest class has this many times the images of the smallest


def few_shot_indices(
    labels: Sequence[int],
    shots: Shots,
    seed: int | random.Random,
    *,
    names: Sequence[str] | None = None,
    allow_fewer: bool = False,
) -> list[int]:
    """Draw the positions of ``shots`` images per class, exactly as Dassl's ``generate_fewshot_dataset`` does.

    Classes come in the order of their first appearance in ``labels``; within a class, in the order drawn.

    Args:
        labels: the label of every item, in the order of the split.
        shots: images per class; ``"all"`` or None keeps every position.
        seed: a seed, or a generator to continue (the val draw follows the train draw).
        names: class names by label, for error messages.
        allow_fewer: use all images of a class that has fewer than ``shots``, as the published code does silently.

    Raises:
        VlpromptError: ``shots`` is not a positive number, or a class has fewer images than that.

    >>> few_shot_indices([0, 0, 0, 1, 1, 1], shots=2, seed=1)
    [0, 2, 4, 3]
    """
    if shots is None or shots == "all":
        return list(range(len(labels)))
    if not isinstance(shots, int) or shots < 1:
        raise VlpromptError(f"shots must be a positive number or 'all', not {shots!r}")
    by_label: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_label.setdefault(label, []).append(position)
    smallest = min(by_label, key=lambda label: len(by_label[label]), default=None)
    if smallest is not None and len(by_label[smallest]) < shots and not allow_fewer:
        name = f"class '{names[smallest]}'" if names else f"the class with label {smallest}"
        most = len(by_label[smallest])
        raise VlpromptError(
            f"{shots} shots were asked for, but {name} has {most} training images: use shots={most} or fewer, or "
            "allow_fewer=true to take all that such a class has, or shots=all"
        )
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    drawn = []
    for positions in by_label.values():
        drawn += rng.sample(positions, shots) if len(positions) >= shots else positions
    return drawn


def few_shot_split(splits: DatasetSplits, shots: Shots, seed: int, *, allow_fewer: bool = False) -> DatasetSplits:
    """Return ``splits`` with ``shots`` train images and up to 4 val images per class; test images stay the same.

    Both draws use one generator, train first, and cover all classes: select base or new classes afterwards. It warns of
    uneven classes, which ``shots="all"`` and ``allow_fewer`` allow.

    Args:
        splits: the whole dataset.
        shots: images per class; ``"all"`` or None keeps all.
        seed: the seed of the draws.
        allow_fewer: use all images of a class that has fewer than ``shots``.

    Raises:
        VlpromptError: there are no train images, or fewer than ``shots`` of a class; or a half was selected before.
    """
    if splits.half != "all":
        raise VlpromptError(f"draw the few-shot subset of {splits.name} before selecting its {splits.half} half")
    if not splits.train:
        raise VlpromptError(f"{splits.name} has only test images: train on another dataset, and test on this one")
    rng = random.Random(seed)
    train = few_shot_indices(
        [i.label for i in splits.train], shots, rng, names=splits.class_names, allow_fewer=allow_fewer
    )
    val_shots = min(shots, VAL_SHOTS) if isinstance(shots, int) else shots
    val = few_shot_indices([i.label for i in splits.val], val_shots, rng, allow_fewer=True)
    drawn = replace(splits, train=[splits.train[i] for i in train], val=[splits.val[i] for i in val])
    uneven = describe_imbalance(drawn, shots)
    if uneven:
        warn(uneven)
    return drawn


def describe_imbalance(splits: DatasetSplits, shots: Shots = "all") -> str:
    """Return a sentence about classes with too few or very uneven numbers of training images, or an empty string."""
    counts = Counter(item.label for item in splits.train)
    if not counts:
        return ""
    least, most = min(counts, key=lambda label: counts[label]), max(counts, key=lambda label: counts[label])
    fewest = f"'{splits.class_names[least]}' has {counts[least]}"
    if isinstance(shots, int):
        short = sum(count < shots for count in counts.values())
        text = (
            f"{short} of {len(counts)} classes of {splits.name} have fewer than {shots} training images; {fewest}, and "
            f"{len(splits.train):,} are taken in all"
        )
        return text if short else ""
    largest = f"'{splits.class_names[most]}' {counts[most]}"
    text = f"the classes of {splits.name} are uneven: {fewest} training images, {largest}"
    return text if counts[most] >= UNEVEN * counts[least] else ""


def hold_out(labels: Sequence[Any], seed: int) -> list[int]:
    """Return the sorted positions of training images to hold out for choosing hyper-parameters.

    A fifth of each class's images, rounded down but at least one and at most four; none of a class with a single image.
    """
    by_label: dict[Any, list[int]] = {}
    for position, label in enumerate(labels):
        by_label.setdefault(label, []).append(position)
    rng, held_out = random.Random(seed), []
    for positions in by_label.values():
        held_out += rng.sample(positions, min(VAL_SHOTS, max(1, len(positions) // 5)) if len(positions) > 1 else 0)
    return sorted(held_out)


def write_subset(splits: DatasetSplits, path: str | Path) -> None:
    """Write the train and val items as JSON: ``dataset``, and lists ``train`` and ``val`` of [path, label, class name].

    Paths are relative to the image folder, so the file is valid on any machine.
    """
    parts = {part: [[i.path, i.label, i.class_name] for i in getattr(splits, part)] for part in ("train", "val")}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"dataset": splits.name, **parts}, indent=1, ensure_ascii=False), "utf-8")


def read_subset(splits: DatasetSplits, path: str | Path) -> DatasetSplits:
    """Return ``splits`` with the train and val items that ``write_subset`` wrote, in that order.

    Raises:
        VlpromptError: the file has another format or belongs to another dataset, or an entry is not in that split.
    """
    try:
        content = json.loads(read_text(path))
        parts = {part: [tuple(entry[:2]) for entry in content[part]] for part in ("train", "val")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VlpromptError(f"{path} is not a few-shot subset ({error!r}): write_subset makes one") from error
    if content.get("dataset") != splits.name:
        raise VlpromptError(f"{path} is a subset of {content.get('dataset')}, not of {splits.name}")
    chosen: dict[str, list[Item]] = {}
    for part, entries in parts.items():
        known = {(item.path, item.label): item for item in getattr(splits, part)}
        strange = [entry for entry in entries if entry not in known]
        if strange:
            raise VlpromptError(
                f"{path} has {list(strange[0])} in '{part}', which is not a {part} item of {splits.name}"
            )
        chosen[part] = [known[entry] for entry in entries]
    return splits.with_parts(chosen)


def generated_split(
    paths: Sequence[str], shares: tuple[float, float] = (0.5, 0.2)
) -> tuple[list[str], list[str], list[str]]:
    """Split one class's images into train, val and test, by default 50/20/30 percent as CoOp does.

    The order is that of the SHA-256 of the relative paths, so it is the same everywhere, and adding an image does not
    change the order of the others. Two images are enough for a train and a test part.

    >>> [len(part) for part in generated_split([f"{i}.png" for i in range(16)])]
    [8, 3, 5]
    """
    ranked = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
    train, val = int(len(ranked) * shares[0]), int(len(ranked) * shares[1])
    return ranked[:train], ranked[train : train + val], ranked[train + val :]
