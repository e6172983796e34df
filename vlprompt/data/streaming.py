"""Streams of any number of images: decoded by threads, in order, with only a few batches in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vlprompt.base.threads import usable_cores
from vlprompt.data.generated import GeneratedViews
from vlprompt.data.images import as_rgb
from vlprompt.data.masks import RegionTransform, open_mask_beside
from vlprompt.data.other_libraries import image_of
from vlprompt.data.transforms import Preprocessing, TestViews, eval_transform, split_transform
from vlprompt.errors import VlpromptError

BATCH = 64
AHEAD = 2  # batches that are decoded ahead of the one being used


@dataclass(frozen=True)
class ImageBatch:
    """A batch of a stream.

    Attributes:
        sources: the B images that could be read, as they were given.
        images: (B, 3, H, W) float32, ready for the backbone; B may be 0.
        unreadable: a sentence for each image that could not be read.
        masks: (B, 1, H, W), if requested.
    """

    sources: list[Any]
    images: Tensor
    unreadable: list[str]
    masks: Tensor | None = None


def stream_images(
    sources: Iterable[Any],
    clip: Preprocessing,
    *,
    batch_size: int = BATCH,
    threads: int | None = None,
    views: TestViews | None = None,
    generated: GeneratedViews | None = None,
    masks: bool = False,
) -> Iterator[ImageBatch]:
    """Yield images in batches, after the evaluation transform.

    Args:
        sources: images as for ``vlprompt.data.as_rgb``, float tensors (3, S, S) from ``clip.preprocess``, or samples of
            a dataset: (image, …) or ``{"image": …}``. May be endless.
        clip: the frozen model, whose transform is applied.
        batch_size: number of sources per batch.
        threads: number that decode; 0 decodes in the caller's thread, None means one per core, if there are several.
        views: makes several views of each image, so that images are (B, V, 3, H, W); None makes the evaluation crop.
        generated: generated views to append to those; sources must then be paths.
        masks: whether to read the region mask beside each image (``vlprompt.data.masks``); sources must then be paths.

    Raises:
        VlpromptError: ``batch_size`` is less than 1; unreadable images are returned in the batches instead.
    """
    if batch_size < 1:
        raise VlpromptError(f"batch_size must be at least 1, not {batch_size}")
    threads = default_threads() if threads is None else threads
    load = _RegionLoader(clip) if masks else _Loader(clip, views, generated)
    sources = iter(sources)
    chunks = iter(lambda: list(islice(sources, batch_size)), [])
    if threads == 0:
        yield from (load.batch(chunk, map(load, chunk)) for chunk in chunks)
        return
    pool = ThreadPoolExecutor(threads, "decode")
    waiting: deque[tuple[list[Any], list[Future[Any]]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, [pool.submit(load, source) for source in chunk]))
            if len(waiting) > AHEAD:
                yield _result(load, *waiting.popleft())
        while waiting:
            yield _result(load, *waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def is_preprocessed(image: Any) -> bool:
    """Whether an image is a float tensor, and so regarded as the output of ``clip.preprocess``."""
    return isinstance(image, Tensor) and image.is_floating_point()


def default_threads() -> int:
    """Return the default number of decoding threads: one per core, or 0 on a single core."""
    cores = usable_cores()
    return cores if cores > 1 else 0


def _result(load: _Loader, chunk: list[Any], futures: list[Future[Any]]) -> ImageBatch:
    """Wait for the images of a batch."""
    return load.batch(chunk, (future.result() for future in futures))


class _Loader:
    """Reads an image as bytes (3, S, S), or returns a sentence on why it cannot be read."""

    def __init__(self, clip: Preprocessing, views: TestViews | None = None, generated: GeneratedViews | None = None):
        self.shape, self.views, self.generated = (3, clip.image_size, clip.image_size), views, generated
        _, self.before, self.after = split_transform(views or eval_transform(clip))

    def __call__(self, source: Any) -> Any:
        image = image_of(image_of(source))  # twice, since the first element of a pair may be a row
        try:
            read = self.checked(image) if is_preprocessed(image) else self.before(as_rgb(image))
            return self.generated.append_to(read, image) if self.generated else read
        except VlpromptError as error:
            return str(error)

    def checked(self, image: Tensor) -> Tensor:
        """Return a preprocessed image, or raise a ``VlpromptError`` if the tensor is not one."""
        if self.views:
            raise VlpromptError("a tensor that is already cropped has one view, and this method needs several")
        if tuple(image.shape) != self.shape:
            raise VlpromptError(
                f"a float tensor must be an image that went through clip.preprocess, {self.shape}, not "
                f"{tuple(image.shape)}"
            )
        if image.min() >= 0 and image.max() <= 1:
            raise VlpromptError(
                "a float tensor holds numbers from 0 to 1, so it did not go through clip.preprocess: give bytes "
                "(torchvision's PILToTensor in place of ToTensor), PIL images or paths"
            )
        return image.cpu()

    def batch(self, sources: list[Any], loaded: Iterable[Any]) -> ImageBatch:
        """Stack loaded images, and apply the steps of the transform that work on whole batches."""
        pairs = list(zip(sources, loaded, strict=True))
        read = [(source, image) for source, image in pairs if isinstance(image, Tensor)]
        if any(is_preprocessed(image) for _, image in read):
            images = torch.stack([i if is_preprocessed(i) else self.after(i) for _, i in read])
        else:
            images = self.after(torch.stack([image for _, image in read])) if read else torch.empty(0, *self.shape)
        return ImageBatch([source for source, _ in read], images, [s for _, s in pairs if isinstance(s, str)])


class _RegionLoader(_Loader):
    """Reads an image and the mask beside it, as a fourth channel: (4, S, S) bytes."""

    def __init__(self, clip: Preprocessing):
        super().__init__(clip)
        self.region = RegionTransform(clip)

    def __call__(self, source: Any) -> Any:
        path = image_of(image_of(source))
        try:
            if not isinstance(path, (str, os.PathLike)):
                raise VlpromptError("a region's mask is found by its image's path: give paths instead of images")
            image, mask = as_rgb(path), open_mask_beside(path)
        except VlpromptError as error:
            return str(error)
        try:
            pixels, region = self.region(image, mask)
        except VlpromptError as error:
            return f"the image {os.fspath(path)} cannot be used: {error}"
        return torch.cat([pixels, region.to(pixels.dtype)])

    def batch(self, sources: list[Any], loaded: Iterable[Any]) -> ImageBatch:
        """Stack images and masks."""
        pairs = list(zip(sources, loaded, strict=True))
        read = [(source, both) for source, both in pairs if isinstance(both, Tensor)]
        unreadable = [sentence for _, sentence in pairs if isinstance(sentence, str)]
        if not read:
            return ImageBatch([], torch.empty(0, *self.shape), unreadable)
        both = torch.stack([pixels for _, pixels in read])
        images, masks = self.after(both[:, :3]), both[:, 3:].float()
        return ImageBatch([source for source, _ in read], images, unreadable, masks)
