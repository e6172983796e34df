"""How fast images are loaded: our loader and torchvision's ``ImageFolder``, alternating in one run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import InterpolationMode, v2

from datasets_registry.catalog import SplitChoice, load_split
from vlprompt.clip.openclip import IMAGE_MEAN, IMAGE_STD
from vlprompt.data import DatasetSplits, ImageItems, Item, check_items
from vlprompt.data.loading import epoch_batches, eval_batches
from vlprompt.data.splits import PARTS
from vlprompt.data.transforms import CROP_SCALE, eval_transform, train_transform
from vlprompt.errors import VlpromptError

MADE, WIDTH, HEIGHT = "500px", 500, 375
Epoch = Callable[[], Iterator[Any]]


@dataclass(frozen=True)
class _Sizes:
    """The attributes of a FrozenCLIP that transforms read."""

    image_size: int
    image_mean: tuple[float, ...] = IMAGE_MEAN
    image_std: tuple[float, ...] = IMAGE_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


def bench_data(
    dataset: str | None = None,
    data_root: str | Path | None = None,
    *,
    split: SplitChoice = "published",
    image_size: int = 224,
    images: int = 256,
    repeats: int = 5,
    workers: int = 0,
    batch_size: int = 32,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure the throughput of training and evaluation batches as a ratio to ``ImageFolder``'s.

    Both sides read the same images, turn by turn, and make the same crops in the same number of worker processes. The
    reference is torchvision's own pipeline: ``ImageFolder``'s loader, Pillow's crop and resize, then ``ToImage``,
    ``ToDtype`` and ``Normalize``. Images that are not files of their own (embedded ones, shards, CIFAR's records) are
    opened alike on both sides, so that only the transforms are compared.

    Args:
        dataset: as for ``load_split``, in any layout; None measures generated images only.
        data_root: the folder that contains the datasets' folders.
        split: as for ``load_split``; images of all its parts are read.
        image_size: size of the crops in pixels.
        images: how many images are read in each turn.
        repeats: the number of turns; the ratio is the median over turns.
        workers: the number of loading processes.
        batch_size: the batch size of both sides.
        say: called with each result as a line.

    Returns:
        ``{"rows": [...], ...}``; a row has the images' name, the transform, images per second of both sides, and their
        ratio.

    Raises:
        VlpromptError: the dataset is not on disk, or an image of it cannot be read.
    """
    if min(images, repeats, batch_size, image_size) < 1 or workers < 0:
        raise VlpromptError("images, repeats, batch_size and image_size must be at least 1, and workers at least 0")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sources = {MADE: make_images(Path(folder), min(images, 64))}
        if dataset:
            sources = {dataset: load_split(dataset, data_root, split=split), **sources}
        for name, splits in sources.items():
            for kind in ("train", "eval"):
                ours, theirs = _loaders(splits, kind, image_size, images, workers, batch_size)
                seconds = _take_turns(ours, theirs, repeats)
                row = {
                    "images": name,
                    "transform": kind,
                    "images_per_s": images / statistics.median(own for own, _ in seconds),
                    "reference_images_per_s": images / statistics.median(other for _, other in seconds),
                    "ratio": statistics.median(other / own for own, other in seconds),
                }
                speeds = f"{row['images_per_s']:.0f} images/s, ImageFolder {row['reference_images_per_s']:.0f}"
                say(f"{name} {kind}: {speeds}, ratio {row['ratio']:.2f}")
                rows.append(row)
    facts = {"image_size": image_size, "workers": workers, "threads": torch.get_num_threads(), "repeats": repeats}
    return {"rows": rows, **facts}


def make_images(folder: Path, count: int) -> DatasetSplits:
    """Write JPEGs of 500 x 375 pixels with about as much detail as photographs (70 kB each) in two class folders."""
    generator = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = smooth + generator.normal(0, 6, (HEIGHT, WIDTH, 1)).astype(np.int16)
        path = folder / f"class_{i % 2}" / f"{i:04d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return load_split(f"folder:{folder}")


class _Reference(Dataset[tuple[torch.Tensor, int]]):
    """A dataset that loads images as ``ImageFolder`` does, from any paths."""

    def __init__(self, splits: DatasetSplits, items: Sequence[Item], transform: Callable[[Image.Image], torch.Tensor]):
        self.splits, self.items, self.transform = splits, items, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        item, folder = self.items[position], self.splits.image_dir
        image = pil_loader(str(folder / item.path)) if folder else self.splits.open_image(item)
        return self.transform(image), item.label


def _loaders(
    splits: DatasetSplits, kind: str, image_size: int, images: int, workers: int, batch_size: int
) -> tuple[Epoch, Epoch]:
    """Return two functions that start an epoch over the same images, with our loader and with ImageFolder's."""
    every = sorted({(i.path, i.label): i for part in PARTS for i in getattr(splits, part)}.values(), key=_place)
    spread = range(0, len(every), max(len(every) // images, 1))
    items = [every[spread[i % len(spread)]] for i in range(images)]
    check_items(splits, items)
    reference = _Reference(splits, items, _reference_transform(kind, image_size))
    clip = _Sizes(image_size)
    ours = ImageItems(splits, items, train_transform(clip) if kind == "train" else eval_transform(clip))

    def theirs_epoch() -> Iterator[Any]:
        return iter(DataLoader(reference, batch_size, shuffle=kind == "train", num_workers=workers))

    def our_epoch() -> Iterator[Any]:
        if kind == "eval":
            return eval_batches(ours, batch_size, workers=workers)
        return epoch_batches(ours, batch_size, seed=1, epoch=0, drop_last=False, workers=workers)

    return our_epoch, theirs_epoch


def _place(item: Item) -> tuple[int, str]:
    return item.label, item.path


def _take_turns(ours: Epoch, theirs: Epoch, repeats: int) -> list[tuple[float, float]]:
    """Return the seconds of both in each turn, after a turn to warm up; the order alternates between turns."""
    seconds = []
    for turn in range(repeats + 1):
        first, second = (ours, theirs) if turn % 2 else (theirs, ours)
        taken = _seconds(first), _seconds(second)
        seconds.append(taken if turn % 2 else taken[::-1])
    return seconds[1:]


def _seconds(epoch: Epoch) -> float:
    start = time.perf_counter()
    for _ in epoch():
        pass
    return time.perf_counter() - start


def _reference_transform(kind: str, image_size: int) -> v2.Compose:
    """The same crops by torchvision's own operations on Pillow images."""
    clip = _Sizes(image_size)
    bicubic = InterpolationMode.BICUBIC
    if kind == "train":
        crop = [v2.RandomResizedCrop(image_size, scale=CROP_SCALE, interpolation=bicubic), v2.RandomHorizontalFlip()]
    else:
        crop = [v2.Resize(image_size, bicubic), v2.CenterCrop(image_size)]
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(clip.image_mean, clip.image_std)]
    return v2.Compose([*crop, *end])
