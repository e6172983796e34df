"""Several datasets as one, with all their classes, for training on them together."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from vlprompt.data.batch import Batch
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.errors import VlpromptError


def join_datasets(parts: Sequence[DatasetSplits]) -> DatasetSplits:
    """Join datasets: the classes of the first, then those of the second, and so on, as MVLPT's sources.

    ``tasks`` of the result says which dataset each class comes from; two may have a class of the same name. The result
    has the default template, since one prompt serves all. Few-shot subsets are drawn from each dataset before.

    Args:
        parts: at least two datasets of different names.

    Raises:
        VlpromptError: there are fewer than two, or one shows regions.
    """
    if len(parts) < 2 or len({part.name for part in parts}) < len(parts):
        raise VlpromptError(f"joining takes at least two different datasets, not {', '.join(p.name for p in parts)}")
    if any(part.region for part in parts):
        raise VlpromptError("datasets that are joined show whole images: leave region out")
    starts = [0, *accumulate(len(part.class_names) for part in parts)][:-1]
    folders = [part.image_dir.resolve() for part in parts if part.image_dir]
    common = Path(os.path.commonpath(folders)) if len(folders) == len(parts) else None
    prefixes = [f"{folder.relative_to(common).as_posix()}/" for folder in folders] if common else [""] * len(parts)

    def relabelled(split: str) -> list[Item]:
        return [
            replace(
                item, path=prefix + item.path, label=item.label + start, mask=prefix + item.mask if item.mask else ""
            )
            for part, start, prefix in zip(parts, starts, prefixes, strict=True)
            for item in getattr(part, split)
        ]

    return DatasetSplits(
        name="+".join(part.name for part in parts),
        class_names=tuple(name for part in parts for name in part.class_names),
        train=relabelled("train"),
        val=relabelled("val"),
        test=relabelled("test"),
        open_image=partial(_open_part, tuple(parts), starts, prefixes),
        image_dir=common,
        source="+".join(dict.fromkeys(part.source for part in parts)),
        mirror=all(part.mirror for part in parts),
        version=max(part.version for part in parts),
        tasks=tuple(i for i, part in enumerate(parts) for _ in part.class_names),
    )


def _open_part(parts: Sequence[DatasetSplits], starts: Sequence[int], prefixes: Sequence[str], item: Item) -> Any:
    """Open an image of a joined dataset with the dataset that it comes from."""
    i = bisect_right(starts, item.label) - 1
    path = item.path.removeprefix(prefixes[i])
    return parts[i].open_image(replace(item, path=path, label=item.label - starts[i]))


def mask_other_tasks(batches: Iterable[Batch], tasks: Sequence[int]) -> Iterator[Batch]:
    """Add ``class_mask`` (B, C) to batches: true for the classes of the dataset that the image comes from.

    Args:
        batches: with ``label`` (B,).
        tasks: (C,) dataset of each class.
    """
    task_of_class = torch.tensor(tasks)
    for batch in batches:
        task_of_class = task_of_class.to(batch["label"].device)
        yield batch | {"class_mask": task_of_class[batch["label"]][:, None] == task_of_class}
