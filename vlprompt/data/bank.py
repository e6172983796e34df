"""Feature banks: image features that are computed once and stored, for methods that do not change the image tower."""

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

FORMAT = "vlprompt-bank/2"  # changes when the same image file gives other pixels, or the layout changes
SHARD = 10_000  # images per shard; a bank of more images (times views) is made in shards


@dataclass(frozen=True)
class FeatureBank:
    """The frozen encoder's features of some items, in one or several views.

    Attributes:
        features: (V, N, D) float32, as returned by ``clip.encode_image``, not normalised. View v is what epoch v of
            ``epoch_batches`` would have encoded; a single view is the evaluation crop.
        labels: (N,) int64; None for a pool, whose images have none.
        key: SHA-256 of everything that the features depend on.
        path: the file; None for features that came from elsewhere.
        counts: weight (N,) of each image, as a number of copies; None if all weigh 1.
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
        """Return the bank of ``items`` from the cache, or encode them now and write it there.

        If several processes ask for the same bank, one encodes and the others wait. A large bank is made in shards
        (``vlprompt.data.shards``), and its features are memory-mapped; they are bit-identical to those of a small one.

        Args:
            clip: the frozen model.
            splits: the dataset that ``items`` belong to.
            items: the images to encode, with the labels of the bank.
            transform: ``eval_transform(clip)`` for one view, ``train_transform(clip)`` for several.
            views: V, how many times each image is augmented and encoded.
            seed: the seed of the augmentation. A single view has none, so its bank serves every seed.
            cache: the folder of banks; by default ``banks`` in ``vlprompt.base.files.cache_dir()``.
            batch_size, workers: of the encoding pass.
            progress: called with the number of images encoded so far and in total.
            shard: images per shard, rounded up to whole batches; makes shards even for a small bank.
            encode: from shards to their features (n, D), for encoding elsewhere.
            device: type of the device that ``encode`` computes on; None means the model's.

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
        path = _path(splits, key, cache)
        labels, shape = torch.tensor([item.label for item in items]), (views, len(items))
        if path.exists():
            return cls(_read(path, key, shape), labels, key, path)
        shards = ShardedFile(path.with_suffix(SUFFIX), key, shape, -(-(shard or SHARD) // batch_size) * batch_size)
        if shard or shards.record.exists() or views * len(items) > SHARD:
            return cls(shards.complete(encode or encoding.encode), labels, key, shards.path)
        with locked(path.parent / f".{path.stem}.lock"):
            if not path.exists():  # another process may have made it meanwhile
                remove_leftovers(path.parent, path.name)
                facts = {"format": FORMAT, "key": key, "dataset": splits.name}
                write_tensors(path, {"features": encoding.all()}, facts)
        return cls(_read(path, key, shape), labels, key, path)

    @staticmethod
    def is_kept(
        clip: FrozenCLIP, splits: DatasetSplits, items: Sequence[Item], *, transform: Callable[..., torch.Tensor]
    ) -> bool:
        """Whether the single-view bank of ``items`` is in the cache, so that no image has to be read."""
        try:
            key = _key(Encoding(clip, ImageItems(splits, items, transform)))
        except VlpromptError:  # an image is missing
            return False
        path = _path(splits, key)
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

    def select(self, positions: torch.Tensor) -> FeatureBank:
        """Return the bank of some of its images, in the order of their positions (M,)."""
        if torch.equal(positions, torch.arange(len(self), device=positions.device)):
            return self  # no copy: memory-mapped features may be larger than memory
        labels, counts = (None if each is None else each[positions] for each in (self.labels, self.counts))
        return replace(self, features=self.features[:, positions], labels=labels, counts=counts)

    def epoch_batches(
        self, batch_size: int, *, seed: int, epoch: int, drop_last: bool = True, every_view: bool = False
    ) -> Iterator[Batch]:
        """Yield one epoch in the order of ``loading.epoch_batches``, from view ``epoch % V``.

        Keys: ``image_features`` (B, D), ``index`` (B,) and, where there are labels, ``label`` (B,).

        Args:
            batch_size: B.
            seed, epoch: they determine the order.
            drop_last: leave out a short last batch, unless it is the only one.
            every_view: use each view as a sample, so that an epoch has V·N of them.
        """
        views = self.features if every_view else self.features[epoch % self.views][None]
        samples = views.flatten(0, 1)
        for position in batch_order(len(samples), batch_size, seed, epoch, drop_last):
            position = position.to(samples.device)
            yield self._batch(samples.index_select(0, position), position % len(self))

    def eval_batches(self, batch_size: int = 1000) -> Iterator[Batch]:
        """Yield the first view of all images, in order; keys as in ``epoch_batches``."""
        for index in torch.arange(len(self), device=self.features.device).split(batch_size):
            yield self._batch(self.features[0][index], index)

    def _batch(self, features: torch.Tensor, index: torch.Tensor) -> Batch:
        batch = Batch(image_features=features, index=index)
        if self.labels is not None:
            batch["label"] = self.labels[index]
        return batch


def _key(encoding: Encoding, device: str | None = None) -> str:
    """SHA-256 of everything that the features of a bank depend on."""
    images = encoding.images
    # Devices round differently: a run on the CPU should not depend on whether a GPU once built its bank.
    layout = {"format": FORMAT, "device": device or encoding.clip.device.type}
    return hash_of(encoding.facts | layout | {"items": item_states(images.splits, images.items)})


def _path(splits: DatasetSplits, key: str, cache: str | Path | None = None) -> Path:
    """The file of a bank without shards."""
    folder = Path(cache) if cache else cache_dir() / "banks"
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', splits.name.lower())[-40:]}-{key[:16]}.safetensors"


def _read(path: Path, key: str, shape: tuple[int, int]) -> torch.Tensor:
    """Read the features (V, N, D) of a bank, or raise a ``VlpromptError`` if they are not those of ``key``."""
    what, remedy = "the feature bank", "delete it and run again to rebuild it"
    tensors, facts = read_tensors(path, what, remedy)
    features = tensors.get("features")
    if facts.get("key") != key:
        reason = "its key belongs to other features"
    elif features is None or features.dtype != torch.float32 or features.shape[:2] != shape:
        reason = "it holds other tensors"
    elif TENSOR_SEAL not in facts and facts.get("sha256") != hashlib.sha256(features.numpy().data).hexdigest():
        reason = "its checksum does not match"  # vlprompt 0.1.0 wrote one of the features only
    else:
        return features
    raise VlpromptError(f"{what} {path} is damaged ({reason}): {remedy}")
