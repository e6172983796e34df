"""Images of any number, in order, a few batches of them in memory: decoded in threads while earlier ones are scored."""

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

from vlprompt.data.generated import GeneratedViews
from vlprompt.data.images import as_rgb
from vlprompt.data.in_hand import image_of
from vlprompt.data.masks import RegionTransform, open_mask_beside
from vlprompt.data.transforms import Preprocessing, TestViews, eval_transform, split_transform
from vlprompt.errors import VlpromptError

BATCH = 64
AHEAD = 2  # batches that are decoded before they are asked for


@dataclass(frozen=True)
class ImageBatch:
    """Some images of a stream.

    Attributes:
        sources: the images as they were given, those that were read.
        images: (B, 3, H, W) float32, as the backbone takes them; B may be 0.
        unreadable: what is wrong with each of the others.
        masks: (B, 1, H, W), where they were asked for.
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
    """Yield the images of ``sources`` in batches, each made ready by the evaluation transform.

    Args:
        sources: images as ``vlprompt.data.as_rgb`` takes them, float tensors (3, S, S) that went through
            ``clip.preprocess``, or samples of a dataset: (image, …) or ``{"image": …}``. May be endless.
        clip: whose transform is applied, a frozen model or what is known of one.
        batch_size: sources of a batch.
        views: draws several of each image, so that images are (B, V, 3, H, W); None for the crop alone.
        generated: views that stand behind those, of sources that are paths.
        masks: whether to read the masks of regions that lie beside images (``vlprompt.data.masks``), of paths too.
        threads: that decode; 0 decodes when a batch is asked for, None takes one a core, where there are several.
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
    """Tell whether an image is a float tensor, which stands for one that went through ``clip.preprocess``."""
    return isinstance(image, Tensor) and image.is_floating_point()


def default_threads() -> int:
    """Return the threads that decode images where nothing is said: one a core, or none on a single core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores > 1 else 0


def _result(load: _Loader, chunk: list[Any], futures: list[Future[Any]]) -> ImageBatch:
    return load.batch(chunk, (future.result() for future in futures))


class _Loader:
    """Reads an image as bytes (3, S, S), or returns the sentence that says why not."""

    def __init__(self, clip: Preprocessing, views: TestViews | None = None, generated: GeneratedViews | None = None):
        self.shape, self.views, self.generated = (3, clip.image_size, clip.image_size), views, generated
        _, self.before, self.after = split_transform(views or eval_transform(clip))

    def __call__(self, source: Any) -> Any:
        image = image_of(image_of(source))  # a row may be the first of a pair
        try:
            read = self.checked(image) if is_preprocessed(image) else self.before(as_rgb(image))
            return self.generated.behind(read, image) if self.generated else read
        except VlpromptError as error:
            return str(error)

    def checked(self, image: Tensor) -> Tensor:
        """Return a preprocessed image, or raise a ``VlpromptError`` for a tensor that is none."""
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
        """Put loaded images together; what can be done to all of them at once is done here."""
        pairs = list(zip(sources, loaded, strict=True))
        read = [(source, image) for source, image in pairs if isinstance(image, Tensor)]
        if any(is_preprocessed(image) for _, image in read):
            images = torch.stack([i if is_preprocessed(i) else self.after(i) for _, i in read])
        else:
            images = self.after(torch.stack([image for _, image in read])) if read else torch.empty(0, *self.shape)
        return ImageBatch([source for source, _ in read], images, [s for _, s in pairs if isinstance(s, str)])


class _RegionLoader(_Loader):
    """Reads an image and the mask beside it, the mask as a fourth channel: (4, S, S) bytes."""

    def __init__(self, clip: Preprocessing):
        super().__init__(clip)
        self.region = RegionTransform(clip)

    def __call__(self, source: Any) -> Any:
        path = image_of(image_of(source))
        try:
            if not isinstance(path, (str, os.PathLike)):
                raise VlpromptError("a region's mask is found by its image's path: give paths in place of images")
            image, mask = as_rgb(path), open_mask_beside(path)
        except VlpromptError as error:
            return str(error)
        try:
            pixels, region = self.region(image, mask)
        except VlpromptError as error:
            return f"the image {os.fspath(path)} cannot be used: {error}"
        return torch.cat([pixels, region.to(pixels.dtype)])

    def batch(self, sources: list[Any], loaded: Iterable[Any]) -> ImageBatch:
        """Put images and masks together."""
        pairs = list(zip(sources, loaded, strict=True))
        read = [(source, both) for source, both in pairs if isinstance(both, Tensor)]
        unreadable = [sentence for _, sentence in pairs if isinstance(sentence, str)]
        if not read:
            return ImageBatch([], torch.empty(0, *self.shape), unreadable)
        both = torch.stack([pixels for _, pixels in read])
        images, masks = self.after(both[:, :3]), both[:, 3:].float()
        return ImageBatch([source for source, _ in read], images, unreadable, masks)
