"""Batches of images whose order and augmentation depend on seed, epoch and position alone, never on workers."""

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
    """Items with their images: ``dataset[i]`` is ``{"image": (3, H, W) float32, "label": int, "index": i}``.

    Args:
        splits: the dataset, which knows how to open an item.
        items: the items to serve, usually one of its splits.
        transform: from an RGB image to a tensor.
    """

    def __init__(self, splits: DatasetSplits, items: Sequence[Item], transform: Callable[[Image.Image], torch.Tensor]):
        self.splits, self.items, self.transform = splits, items, transform
        # Bytes are a quarter of floats to hand over from a worker, and a batch is normalised in one go.
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
        """Return a sample before what can be done to a whole batch."""
        item = self.items[index]
        image = self.splits.open_image(item, self._decode) if self._decode else self.splits.open_image(item)
        return {"image": self._before(image) if self._before else image, "label": item.label, "index": index}

    def finish(self, images: torch.Tensor) -> torch.Tensor:
        """Do the rest of the transform to an image (3, H, W) or to a batch of them."""
        return self._after(images) if self._after else images


class _Chain:
    """Two transforms, one after the other; the second may be None."""

    def __init__(self, first: Callable[..., Any], second: Callable[..., Any] | None):
        self.first, self.second = first, second

    def __call__(self, image: Image.Image) -> Any:
        image = self.first(image)
        return self.second(image) if self.second else image


def batch_order(size: int, batch_size: int, seed: int, epoch: int, drop_last: bool = True) -> tuple[torch.Tensor, ...]:
    """Return the shuffled positions of each batch of an epoch, each (B,).

    A short last batch is dropped only if ``drop_last`` and there is a whole one: Dassl's rule, which keeps the single
    short batch of a dataset smaller than a batch.
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

    Sample i of epoch e is augmented with random numbers that come from (seed, e, i), so any number of workers gives
    the same batches, bit for bit.

    An unreadable image is a VlpromptError that names it.
    """
    order = [each.tolist() for each in batch_order(len(dataset), batch_size, seed, epoch, drop_last)]
    return _batches(_Drawn(dataset, seed, epoch), order, workers, torch.device(device))


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
    """Yield the dataset's batches in order, or those of some of its rows, none left out.

    Keys as in ``epoch_batches``, and random numbers too, should the transform draw any.
    """
    positions = list(range(len(dataset)) if rows is None else rows)
    order = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    return _batches(_Drawn(dataset, seed, epoch), order, workers, torch.device(device))


class _Drawn(Dataset[Any]):
    """A dataset under its own random numbers, which hands errors on as values.

    A DataLoader would bury the sentence of an error raised in a worker under a traceback.
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
    sentence: str


def _collate(samples: list[Any]) -> tuple[Batch, list[str]]:
    bad = [sample.sentence for sample in samples if isinstance(sample, _Unreadable)]
    return {} if bad else default_collate(samples), bad


def _batches(dataset: _Drawn, order: list[list[int]], workers: int, device: torch.device) -> Iterator[Batch]:
    loader = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # its own, so that starting an epoch takes nothing from the global stream
    )
    images = dataset.dataset
    for batch, bad in loader:
        if bad:
            raise VlpromptError(bad[0])
        moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        yield cast(Batch, moved | {"image": images.finish(moved["image"])})


def _mix(*numbers: int) -> int:
    """Return 63 well-mixed bits of some integers."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Seed what torchvision's and most other transforms draw from, torch on the CPU and python, and restore it after.

    Not ``torch.random.fork_rng`` and ``torch.manual_seed``, which reach for every device each time.
    """
    states = torch.default_generator.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
