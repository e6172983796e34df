"""Batches of images, whose order and augmentation depend only on seed, epoch and position, not on workers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from vlprompt.data.batch import Batch
from vlprompt.data.images import reads_from_disk
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.data.transforms import split_transform
from vlprompt.errors import VlpromptError


class ImageItems(Dataset[dict[str, Any]]):
    """A torch dataset of items: ``self[i]`` is ``{"image": (3, H, W) float32, "label": int, "index": i}``.

    Args:
        splits: the dataset, which opens the items' images.
        items: usually one of its splits.
        transform: from an RGB image to a tensor (3, H, W).
    """

    def __init__(self, splits: DatasetSplits, items: Sequence[Item], transform: Callable[[Image.Image], torch.Tensor]):
        self.splits, self.items, self.transform = splits, items, transform
        # Workers send bytes, a quarter of the size of floats, and a batch is normalised at once.
        decode, self._before, self._after = split_transform(transform)
        from_disk = reads_from_disk(splits)
        self._decode = decode if from_disk else None
        if decode and not from_disk:
            self._before = _Chain(decode, self._before)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.load(index)
        return {**sample, "image": self.finish(sample["image"])}

    def load(self, index: int) -> dict[str, Any]:
        """Return a sample without the steps of the transform that are applied to whole batches."""
        item = self.items[index]
        image = self.splits.open_image(item, self._decode) if self._decode else self.splits.open_image(item)
        return {"image": self._before(image) if self._before else image, "label": item.label, "index": index}

    def finish(self, images: torch.Tensor) -> torch.Tensor:
        """Apply the remaining steps of the transform to an image (3, H, W) or a batch (B, 3, H, W)."""
        return self._after(images) if self._after else images


class _Chain:
    """Two transforms, one after the other; the second may be None. A class, so that workers can receive it."""

    def __init__(self, first: Callable[..., Any], second: Callable[..., Any] | None):
        self.first, self.second = first, second

    def __call__(self, image: Image.Image) -> Any:
        image = self.first(image)
        return self.second(image) if self.second else image


def batch_order(size: int, batch_size: int, seed: int, epoch: int, drop_last: bool = True) -> tuple[torch.Tensor, ...]:
    """Return the shuffled positions (B,) of each batch of an epoch.

    With ``drop_last``, a short last batch is dropped unless it is the only one, as in Dassl.
    """
    generator = torch.Generator().manual_seed(_mix(seed, epoch))
    order = torch.randperm(size, generator=generator)
    batches: tuple[torch.Tensor, ...] = order.split(batch_size) if size else ()
    short = drop_last and len(batches) > 1 and len(batches[-1]) < batch_size
    return batches[:-1] if short else batches


def epoch_batches(
    dataset: ImageItems,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    drop_last: bool = True,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Yield one epoch of shuffled training batches: ``image`` (B, 3, H, W), ``label`` (B,), ``index`` (B,).

    Sample i of epoch e is augmented with random numbers seeded by (seed, e, i), so batches are bit-identical with any
    number of workers.

    Args:
        dataset: the items.
        batch_size: B.
        seed, epoch: they determine order and augmentation.
        drop_last: leave out a short last batch, unless it is the only one.
        workers: processes that decode; 0 decodes in this one.
        device: the device of the batches.

    Raises:
        VlpromptError: an image cannot be read; the message names it.
    """
    order = [each.tolist() for each in batch_order(len(dataset), batch_size, seed, epoch, drop_last)]
    return _batches(_Seeded(dataset, seed, epoch), order, workers, torch.device(device))


def eval_batches(
    dataset: ImageItems,
    batch_size: int = 100,
    *,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
    device: torch.device | str = "cpu",
    rows: range | None = None,
) -> Iterator[Batch]:
    """Yield all items in order, or those of ``rows``, in batches with the keys of ``epoch_batches``.

    Arguments are those of ``epoch_batches``; seed and epoch determine only the augmentation, if the transform has any.
    """
    positions = list(range(len(dataset)) if rows is None else rows)
    order = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    return _batches(_Seeded(dataset, seed, epoch), order, workers, torch.device(device))


class _Seeded(Dataset[Any]):
    """A dataset that seeds the augmentation of each sample, and returns errors as values.

    If a worker raised an error, the DataLoader would bury its message under a traceback.
    """

    def __init__(self, dataset: ImageItems, seed: int, epoch: int):
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __getitem__(self, index: int) -> dict[str, Any] | _Unreadable:
        try:
            with _random_numbers(_mix(self.seed, self.epoch, index)):
                return self.dataset.load(index)
        except VlpromptError as error:
            return _Unreadable(str(error))


@dataclass(frozen=True)
class _Unreadable:
    """A sample whose image cannot be read."""

    sentence: str


def _collate(samples: list[Any]) -> tuple[Batch, list[str]]:
    """A batch, which is empty if a sample is unreadable, and the sentences of those."""
    bad = [sample.sentence for sample in samples if isinstance(sample, _Unreadable)]
    return {} if bad else default_collate(samples), bad


def _batches(dataset: _Seeded, order: list[list[int]], workers: int, device: torch.device) -> Iterator[Batch]:
    """Yield the batches of these positions on a device."""
    loader = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # its own, so that starting an epoch does not advance torch's global generator
    )
    images = dataset.dataset
    for batch, bad in loader:
        if bad:
            raise VlpromptError(bad[0])
        moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        yield cast(Batch, moved | {"image": images.finish(moved["image"])})


def _mix(*numbers: int) -> int:
    """Hash some integers to 63 bits."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Seed the generators that transforms use, torch's on the CPU and Python's, and restore them afterwards.

    ``torch.random.fork_rng`` and ``torch.manual_seed`` would access every device each time.
    """
    states = torch.default_generator.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
