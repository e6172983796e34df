"""Encoding the images of a feature bank, all of them or shard by shard."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlprompt.data.loading import ImageItems, eval_batches
from vlprompt.data.shards import Shard
from vlprompt.data.splits import DatasetSplits, Item, mask_of
from vlprompt.data.transforms import transform_fingerprint
from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from vlprompt.clip.frozen import FrozenCLIP

Progress = Callable[[int, int], None]  # receives the number of images encoded so far and in total


@dataclass(frozen=True)
class Encoding:
    """The computation of a bank's features.

    Attributes:
        clip: the frozen model.
        images: the images, with their transform.
        views: V, how many times each image is augmented.
        seed: the seed of the augmentation.
        batch_size, workers: of the encoding pass. The last bits depend on the batches, which are the same with and
            without shards, if a shard is a whole number of batches.
        progress: called with the number of images encoded so far and in total.
    """

    clip: FrozenCLIP
    images: ImageItems
    views: int = 1
    seed: int = 0
    batch_size: int = 100
    workers: int = 0
    progress: Progress | None = None

    def all(self) -> Tensor:
        """Return all features (V, N, D), float32 on the CPU."""
        everything = [Shard(view, view, 0, len(self.images)) for view in range(self.views)]
        return torch.stack([features for _, features in self.encode(everything)])

    def encode(self, shards: Sequence[Shard]) -> Iterator[tuple[Shard, Tensor]]:
        """Yield each shard with its features (n, D), float32 on the CPU; ``progress`` counts other shards as done."""
        total = self.views * len(self.images)
        done = total - sum(map(len, shards))
        for shard in shards:
            rows = []
            for features in self._batches(shard):
                rows.append(features)
                done += len(features)
                if self.progress:
                    self.progress(done, total)
            yield shard, torch.cat(rows)

    def _batches(self, shard: Shard) -> Iterator[Tensor]:
        """Yield the features of each batch (B, D), or raise a ``VlpromptError`` that names the image."""
        rows = range(shard.start, shard.stop)
        options: dict[str, Any] = {"workers": self.workers, "device": self.clip.device}
        for batch in eval_batches(self.images, self.batch_size, seed=self.seed, epoch=shard.view, rows=rows, **options):
            features = self.clip.encode_image(batch["image"]).float().cpu()
            wrong = (~features.isfinite().all(dim=1)).nonzero()
            if len(wrong):
                name = self.images.items[int(batch["index"][wrong[0, 0]])].path
                raise VlpromptError(f"the image encoder gives a non-finite feature for {name}: try precision=fp32")
            yield features

    def fingerprint(self, shard: Shard) -> str:
        """SHA-256 of what the features of a shard depend on; the same on machines with other paths and file dates."""
        items = self.images.items[shard.start : shard.stop]
        facts = self.facts | {"items": [[item.path, *_states(self.images.splits, item)[::2]] for item in items]}
        return hash_of(facts | {"view": shard.view})

    @property
    def facts(self) -> dict[str, object]:
        """What the features depend on, besides the images and the device."""
        splits = self.images.splits
        return {
            "clip": self.clip.identity(),
            "precision": self.clip.precision,
            "transform": transform_fingerprint(self.images.transform),
            "dataset": [splits.name, splits.version, *([splits.region] if splits.region else [])],
            "views": self.views,
            "seed": self.seed,
        }


def hash_of(facts: dict[str, object]) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def item_states(splits: DatasetSplits, items: Iterable[Item]) -> list[list[str | int]]:
    """Path, size and modification time of each image, so that a replaced one is noticed.

    Raises:
        VlpromptError: an image is missing.
    """
    return [[item.path, *_states(splits, item)] for item in items]


def _states(splits: DatasetSplits, item: Item) -> tuple[int, ...]:
    """``_state`` of an image, and of its mask if only its region is used."""
    own = _state(splits, item)
    return (*own, *_state(splits, replace(item, path=mask_of(splits, item)))) if splits.region else own


def _state(splits: DatasetSplits, item: Item) -> tuple[int, ...]:
    """Size in bytes and modification time of an image on disk; empty for other images."""
    if splits.image_dir is None and not os.path.isabs(item.path):
        return ()
    path = Path(splits.image_dir or "", item.path)
    try:
        state = path.stat()
    except OSError as error:
        raise VlpromptError(f"the image {path} cannot be read ({error.strerror})") from error
    return state.st_size, state.st_mtime_ns
