"""Image features computed once and kept on disk, for methods that leave the image tower as it is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlprompt.base.files import cache_dir, locked, remove_leftovers
from vlprompt.base.sealed import TENSOR_SEAL, read_tensors, write_tensors
from vlprompt.data.batch import Batch
from vlprompt.data.encoding import Encoding, hash_of, item_states
from vlprompt.data.loading import ImageItems, batch_order
from vlprompt.data.shards import SUFFIX, Encode, ShardedFile
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from vlprompt.clip.frozen import FrozenCLIP

FORMAT = "vlprompt-bank/2"  # raised when the same file gives other pixels or another layout
SHARD = 10_000  # images of a shard, and views of images from which on a bank is made in shards


@dataclass(frozen=True)
class FeatureBank:
    """The frozen encoder's features of some items, in one or several views.

    Attributes:
        features: (V, N, D) float32, as ``clip.encode_image`` gives them, not normalised. View v holds what epoch v of
            ``epoch_batches`` would have encoded; a single view is the evaluation crop.
        labels: (N,) int64; None for a pool, whose images have none.
        key: SHA-256 of everything that the features depend on.
        path: the file; None for features that came from elsewhere.
        counts: how often each image counts (N,), as if it were there so many times; None once each.
    """

    features: torch.Tensor
    labels: torch.Tensor | None
    key: str = ""
    path: Path | None = None
    counts: torch.Tensor | None = None

    @classmethod
    def open_or_build(
        cls,
        clip: FrozenCLIP,
        splits: DatasetSplits,
        items: Sequence[Item],
        *,
        transform: Callable[..., torch.Tensor],
        views: int = 1,
        seed: int = 0,
        cache: str | Path | None = None,
        batch_size: int = 100,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
        shard: int | None = None,
        encode: Encode | None = None,
        device: str | None = None,
    ) -> FeatureBank:
        """Return the bank of ``items``, from the cache if it is there, else encoded now and written to it.

        Of several processes that ask for the same bank one encodes, and the others wait for it. A large bank is made in
        shards (``vlprompt.data.shards``), and its features are mapped. Both kinds hold the same bits.

        Args:
            clip: the frozen model.
            splits: the dataset that ``items`` belong to.
            items: what to encode; the labels of the bank are theirs.
            transform: ``eval_transform(clip)`` for one view, ``train_transform(clip)`` for several.
            views: V, how many times each image is drawn and encoded.
            seed: of the views' random numbers. One view draws none, so its bank serves every seed.
            cache: the folder that holds banks; by default ``banks`` in ``vlprompt.base.files.cache_dir()``.
            batch_size, workers: of the encoding pass.
            progress: called with the number of images encoded so far and in all.
            shard: images of a shard, to have shards whatever the size; rounded up to whole batches.
            encode: from shards to their features (n, D), for shards that are encoded elsewhere.
            device: the kind of device that ``encode`` computes on; None takes the model's.

        Raises:
            VlpromptError: an image cannot be read, a feature is not finite, or the bank on disk is damaged.
        """
        if not isinstance(views, int) or views < 1:
            raise VlpromptError(f"views must be a positive number, not {views!r}")
        if not items:
            raise VlpromptError(f"no images of {splits.name} were given to build a feature bank from")
        seed = seed if views > 1 else 0
        encoding = Encoding(clip, ImageItems(splits, items, transform), views, seed, batch_size, workers, progress)
        key = _key(encoding, device)
        path = _place(splits, key, cache)
        labels, shape = torch.tensor([item.label for item in items]), (views, len(items))
        if path.exists():
            return cls(_read(path, key, shape), labels, key, path)
        shards = ShardedFile(path.with_suffix(SUFFIX), key, shape, -(-(shard or SHARD) // batch_size) * batch_size)
        if shard or shards.record.exists() or views * len(items) > SHARD:
            return cls(shards.completed(encode or encoding.in_turn), labels, key, shards.path)
        with locked(path.parent / f".{path.stem}.lock"):
            if not path.exists():  # no other run has made it meanwhile
                remove_leftovers(path.parent, path.name)
                facts = {"format": FORMAT, "key": key, "dataset": splits.name}
                write_tensors(path, {"features": encoding.all()}, facts)
        return cls(_read(path, key, shape), labels, key, path)

    @staticmethod
    def is_kept(
        clip: FrozenCLIP, splits: DatasetSplits, items: Sequence[Item], *, transform: Callable[..., torch.Tensor]
    ) -> bool:
        """Tell whether the bank of one view of ``items`` is in the cache, so that no image need be read."""
        try:
            key = _key(Encoding(clip, ImageItems(splits, items, transform)))
        except VlpromptError:  # an image is missing
            return False
        path = _place(splits, key)
        return path.exists() or ShardedFile(path.with_suffix(SUFFIX), key, (1, len(items)), SHARD).is_whole

    def __len__(self) -> int:
        return self.features.shape[1]

    @property
    def views(self) -> int:
        """V, the number of views."""
        return len(self.features)

    def to(self, device: torch.device | str) -> FeatureBank:
        """Return the bank with its tensors on a device."""
        labels, counts = (None if each is None else each.to(device) for each in (self.labels, self.counts))
        return replace(self, features=self.features.to(device), labels=labels, counts=counts)

    def taken(self, places: torch.Tensor) -> FeatureBank:
        """Return the bank of some of its images, in the order of their places (M,); of all as they are, itself."""
        if torch.equal(places, torch.arange(len(self), device=places.device)):
            return self  # and not a copy of features that may be too many for memory
        labels, counts = (None if each is None else each[places] for each in (self.labels, self.counts))
        return replace(self, features=self.features[:, places], labels=labels, counts=counts)

    def epoch_batches(
        self, batch_size: int, *, seed: int, epoch: int, drop_last: bool = True, every_view: bool = False
    ) -> Iterator[Batch]:
        """Yield one epoch in the order of ``loading.epoch_batches``, from view ``epoch % V``.

        Keys: ``image_features`` (B, D), ``index`` (B,) and, where there are labels, ``label`` (B,).

        Args:
            batch_size: B.
            seed, epoch: what the order follows from.
            drop_last: leave out a short last batch, unless it is the only one.
            every_view: let each view be a sample of its own, so that an epoch has V·N of them.
        """
        views = self.features if every_view else self.features[epoch % self.views][None]
        samples = views.flatten(0, 1)
        for place in batch_order(len(samples), batch_size, seed, epoch, drop_last):
            place = place.to(samples.device)
            yield self._batch(samples.index_select(0, place), place % len(self))

    def eval_batches(self, batch_size: int = 1000) -> Iterator[Batch]:
        """Yield the first view in order, none left out; keys as in ``epoch_batches``."""
        for index in torch.arange(len(self), device=self.features.device).split(batch_size):
            yield self._batch(self.features[0][index], index)

    def _batch(self, features: torch.Tensor, index: torch.Tensor) -> Batch:
        batch = Batch(image_features=features, index=index)
        if self.labels is not None:
            batch["label"] = self.labels[index]
        return batch


def _key(encoding: Encoding, device: str | None = None) -> str:
    images = encoding.images
    # Devices round differently: a run on the CPU should not depend on whether a GPU once built its bank.
    here = {"format": FORMAT, "device": device or encoding.clip.device.type}
    return hash_of(encoding.facts | here | {"items": item_states(images.splits, images.items)})


def _place(splits: DatasetSplits, key: str, cache: str | Path | None = None) -> Path:
    folder = Path(cache) if cache else cache_dir() / "banks"
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', splits.name.lower())[-40:]}-{key[:16]}.safetensors"


def _read(path: Path, key: str, shape: tuple[int, int]) -> torch.Tensor:
    what, remedy = "the feature bank", "delete it and run again to rebuild it"
    tensors, facts = read_tensors(path, what, remedy)
    features = tensors.get("features")
    if facts.get("key") != key:
        reason = "its key belongs to other features"
    elif features is None or features.dtype != torch.float32 or features.shape[:2] != shape:
        reason = "it holds other tensors"
    elif TENSOR_SEAL not in facts and facts.get("sha256") != hashlib.sha256(features.numpy().data).hexdigest():
        reason = "its checksum does not match"  # the one that vlprompt 0.1.0 wrote, of the features alone
    else:
        return features
    raise VlpromptError(f"{what} {path} is damaged ({reason}): {remedy}")
