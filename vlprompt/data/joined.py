"""Several datasets as one: their classes side by side, for learning from all of them at once."""

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
    """Return datasets as one whose labels are those of the first, then of the second, and so on (MVLPT's sources).

    Few-shot draws come before this, so that each is the dataset's own. ``tasks`` of the result says which dataset each
    class is of; two datasets may have a class of the same name. Its templates are the default one, since one prompt
    serves all.
    """
    if len(parts) < 2 or len({part.name for part in parts}) < len(parts):
        raise VlpromptError(f"joining takes at least two different datasets, not {', '.join(p.name for p in parts)}")
    if any(part.region for part in parts):
        raise VlpromptError("datasets that are joined show whole images: leave region out")
    starts = [0, *accumulate(len(part.class_names) for part in parts)][:-1]
    folders = [part.image_dir.resolve() for part in parts if part.image_dir]
    common = Path(os.path.commonpath(folders)) if len(folders) == len(parts) else None
    prefixes = [f"{folder.relative_to(common).as_posix()}/" for folder in folders] if common else [""] * len(parts)

    def shifted(split: str) -> list[Item]:
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
        train=shifted("train"),
        val=shifted("val"),
        test=shifted("test"),
        open_image=partial(_open_part, tuple(parts), starts, prefixes),
        image_dir=common,
        source="+".join(dict.fromkeys(part.source for part in parts)),
        mirror=all(part.mirror for part in parts),
        version=max(part.version for part in parts),
        tasks=tuple(i for i, part in enumerate(parts) for _ in part.class_names),
    )


def _open_part(parts: Sequence[DatasetSplits], starts: Sequence[int], prefixes: Sequence[str], item: Item) -> Any:
    """Open an image by the dataset that it is of."""
    i = bisect_right(starts, item.label) - 1
    path = item.path.removeprefix(prefixes[i])
    return parts[i].open_image(replace(item, path=path, label=item.label - starts[i]))


def mask_other_tasks(batches: Iterable[Batch], tasks: Sequence[int]) -> Iterator[Batch]:
    """Yield batches with ``class_mask`` (B, C): the classes of each image's own dataset, which alone compete."""
    of_class = torch.tensor(tasks)
    for batch in batches:
        of_class = of_class.to(batch["label"].device)
        yield batch | {"class_mask": of_class[batch["label"]][:, None] == of_class}
