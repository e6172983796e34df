"""Image features computed once and kept on disk, for methods that leave the image tower as it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlprompt.base.files import cache_dir, locked, remove_leftovers
from vlprompt.base.sealed import TENSOR_SEAL, read_tensors, write_tensors
from vlprompt.data.batch import Batch
from vlprompt.data.loading import ImageItems, batch_order, eval_batches
from vlprompt.data.splits import DatasetSplits, Item, mask_of
from vlprompt.data.transforms import transform_fingerprint
from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from vlprompt.clip.frozen import FrozenCLIP

FORMAT = "vlprompt-bank/2"  # raised when the same file gives other pixels or another layout


@dataclass(frozen=True)
class FeatureBank:
    """The frozen encoder's features of some items, in one or several views.

    Attributes:
        features: (V, N, D) float32, as ``clip.encode_image`` gives them, not normalised. View v holds what epoch v of
            ``epoch_batches`` would have encoded; a single view is the evaluation crop.
        labels: (N,) int64; None for a pool, whose images have none.
        key: SHA-256 of everything that the features depend on.
        path: the file; None for features that came from elsewhere.
    """

    features: torch.Tensor
    labels: torch.Tensor | None
    key: str = ""
    path: Path | None = None

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
    ) -> FeatureBank:
        """Return the bank of ``items``, from the cache if it is there, else encoded now and written to it.

        Of several processes that ask for the same bank one encodes, and the others wait for it.

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

        Raises:
            VlpromptError: an image cannot be read, a feature is not finite, or the bank on disk is damaged.
        """
        if not isinstance(views, int) or views < 1:
            raise VlpromptError(f"views must be a positive number, not {views!r}")
        if not items:
            raise VlpromptError(f"no images of {splits.name} were given to build a feature bank from")
        seed = seed if views > 1 else 0
        key = _key(clip, splits, items, transform, views, seed)
        path = _place(splits, key, cache)
        folder = path.parent
        labels = torch.tensor([item.label for item in items])
        if path.exists():
            return cls(_read(path, key, (views, len(items))), labels, key, path)
        with locked(folder / f".{path.stem}.lock"):
            if not path.exists():  # no other run has made it meanwhile
                remove_leftovers(folder, path.name)
                dataset = ImageItems(splits, items, transform)
                features = _encode(clip, dataset, views, seed, batch_size, workers, progress)
                facts = {"format": FORMAT, "key": key, "dataset": splits.name}
                write_tensors(path, {"features": features}, facts)
        return cls(_read(path, key, (views, len(items))), labels, key, path)

    @staticmethod
    def is_kept(
        clip: FrozenCLIP, splits: DatasetSplits, items: Sequence[Item], *, transform: Callable[..., torch.Tensor]
    ) -> bool:
        """Tell whether the bank of one view of ``items`` is in the cache, so that no image need be read."""
        try:
            return _place(splits, _key(clip, splits, items, transform, 1, 0)).exists()
        except VlpromptError:  # an image is missing
            return False

    def __len__(self) -> int:
        return self.features.shape[1]

    @property
    def views(self) -> int:
        """V, the number of views."""
        return len(self.features)

    def to(self, device: torch.device | str) -> FeatureBank:
        """Return the bank with its tensors on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, features=self.features.to(device), labels=labels)

    def taken(self, places: torch.Tensor) -> FeatureBank:
        """Return the bank of some of its images, in the order of their places (M,)."""
        labels = None if self.labels is None else self.labels[places]
        return replace(self, features=self.features[:, places], labels=labels)

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


def _key(clip: FrozenCLIP, splits: DatasetSplits, items: Sequence[Item], transform: Any, views: int, seed: int) -> str:
    facts = {
        "format": FORMAT,
        "clip": clip.identity(),
        "precision": clip.precision,
        # Devices round differently: a run on the CPU should not depend on whether a GPU once built its bank.
        "device": clip.device.type,
        "transform": transform_fingerprint(transform),
        "dataset": [splits.name, splits.version, *([splits.region] if splits.region else [])],
        "items": [[item.path, *_states(splits, item)] for item in items],
        "views": views,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _place(splits: DatasetSplits, key: str, cache: str | Path | None = None) -> Path:
    folder = Path(cache) if cache else cache_dir() / "banks"
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', splits.name.lower())[-40:]}-{key[:16]}.safetensors"


def _states(splits: DatasetSplits, item: Item) -> tuple[int, ...]:
    """``_file_state`` of an image, and of its mask where a region of it is shown."""
    own = _file_state(splits, item)
    return (*own, *_file_state(splits, replace(item, path=mask_of(splits, item)))) if splits.region else own


def _file_state(splits: DatasetSplits, item: Item) -> tuple[int, ...]:
    """Size and time of change of an image on disk, so that a replaced image is noticed."""
    if splits.image_dir is None and not os.path.isabs(item.path):
        return ()
    path = Path(splits.image_dir or "", item.path)
    try:
        state = path.stat()
    except OSError as error:
        raise VlpromptError(f"the image {path} cannot be read ({error.strerror})") from error
    return state.st_size, state.st_mtime_ns


def _encode(
    clip: FrozenCLIP,
    dataset: ImageItems,
    views: int,
    seed: int,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> torch.Tensor:
    """Return (V, N, D) float32 on the CPU."""
    done, total, rows = 0, views * len(dataset), []
    for view in range(views):
        for batch in eval_batches(dataset, batch_size, seed=seed, epoch=view, workers=workers, device=clip.device):
            features = clip.encode_image(batch["image"]).float().cpu()  # (B, D)
            if not features.isfinite().all():
                first = int(batch["index"][(~features.isfinite().all(dim=1)).nonzero()[0, 0]])
                name = dataset.items[first].path
                raise VlpromptError(f"the image encoder gives a non-finite feature for {name}: try precision=fp32")
            rows.append(features)
            done += len(features)
            if progress:
                progress(done, total)
    return torch.cat(rows).view(views, len(dataset), -1).contiguous()


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
