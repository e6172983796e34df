"""Apply a learner to any number of images, a few batches at a time: predictions, logits, features."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import IOBase
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlprompt.base.checks import at_least, brief, checked
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data.formats import describe_left_out
from vlprompt.data.generated import GeneratedViews
from vlprompt.data.listing import list_images
from vlprompt.data.other_libraries import is_of_hub
from vlprompt.data.pairs import samples
from vlprompt.data.remote import images_or_shards, is_url, list_urls
from vlprompt.data.streaming import BATCH, stream_images
from vlprompt.data.transforms import TestViews
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.calibration import threshold_for
from vlprompt.evaluation.scoring import finite
from vlprompt.evaluation.writing import write_predictions as write_predictions  # a name of version 0.1's prediction
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.facts import Predicts
from vlprompt.learner.objectives import Batch

STDIN = "-"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Prediction:
    """A learner's prediction for one image.

    Attributes:
        image: the image as it was given.
        classes: names of the most likely classes, the most likely first.
        probabilities: of these classes, among all classes of the learner.
        predicts: whether it was predicted ``alone``, ``online``, or ``jointly`` with all given images.
        sure: whether the most likely class is given as the answer; False if its probability is below the threshold.
    """

    image: Any
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    predicts: Predicts = "alone"
    sure: bool = True

    @property
    def answer(self) -> str | None:
        """The most likely class, or None if its probability is below the threshold."""
        return self.classes[0] if self.sure else None


@checked
def predict_images(
    learner: PromptLearner,
    images: Iterable[Any],
    *,
    top: int = 1,
    batch_size: int = BATCH,
    threads: int | None = None,
    on_unreadable: Report | None = None,
    min_probability: float | None = None,
    coverage: float | None = None,
) -> Iterator[Prediction]:
    """Yield a learner's predictions for images, in order; a transductive learner reads all images first.

    Args:
        learner: any learner.
        images: paths, PIL images, arrays or tensors (see ``vlprompt.data.as_rgb``), or a ``torch.utils.data.Dataset``.
        top: maximum number of classes per prediction, the most likely first.
        batch_size: images that are scored together.
        threads: threads that decode images; None uses one per core.
        on_unreadable: called with a sentence about each image that cannot be read, which is then left out; None raises
            an error instead.
        min_probability: probability that the most likely class needs to be given as the answer; below it, ``answer`` is
            None. By default the threshold that the learner was trained with (``coverage`` of a run), if any.
        coverage: choose the threshold so that this share, in (0, 1], of held-out images is answered; the share of the
            given images may differ. Needs a calibrated learner.

    Raises:
        VlpromptError: an image cannot be read, or the learner has no threshold for this coverage.

    >>> list(predict_images(learner, ["cat.jpg"]))  # doctest: +SKIP
    [Prediction(image='cat.jpg', classes=('cat',), probabilities=(0.93,))]
    """
    top = at_least("top", top, 1)
    if not (on_unreadable is None or callable(on_unreadable)):
        raise VlpromptError(f"on_unreadable must be a function that takes a sentence, not {brief(on_unreadable)}")
    names, threshold = learner.class_names, threshold_for(learner, min_probability, coverage)
    for sources, logits in _predicted(learner, images, batch_size, threads, on_unreadable):
        yield from named(sources, learner.probabilities(logits), names, top, threshold, learner.facts.predicts)


def named(
    sources: Sequence[Any],
    probabilities: Tensor,
    names: Sequence[str],
    top: int,
    min_probability: float | None,
    predicts: Predicts = "alone",
) -> Iterator[Prediction]:
    """Yield the ``top`` most likely classes of images, given probabilities (B, C)."""
    best = probabilities.topk(min(top, len(names)), dim=1)
    for source, found, values in zip(sources, best.indices.tolist(), best.values.tolist(), strict=True):
        sure = min_probability is None or values[0] >= min_probability
        yield Prediction(source, tuple(names[i] for i in found), tuple(values), predicts, sure)


@checked
def image_logits(
    learner: PromptLearner, images: Iterable[Any], *, batch_size: int = BATCH, threads: int | None = None
) -> Tensor:
    """Return a learner's logits (N, C) for images, given in any form that ``predict_images`` takes."""
    found = _predicted(learner, images, batch_size, threads)
    return torch.cat([torch.empty(0, len(learner.class_names)), *(logits for _, logits in found)])


def image_features(
    model: FrozenCLIP | PromptLearner,
    images: Iterable[Any],
    *,
    batch_size: int = BATCH,
    threads: int | None = None,
) -> np.ndarray:
    """Return image features (N, D) as a float32 array, for ``PromptClassifier`` or any other use in NumPy.

    Args:
        model: a frozen model, whose features are not normalised, or a learner, whose features are.
        images: as for ``predict_images``. The order (images, model) of version 0.1 is accepted as well.
        batch_size, threads: as for ``predict_images``.

    Raises:
        VlpromptError: an image cannot be read.
    """
    if isinstance(images, (FrozenCLIP, PromptLearner)):
        model, images = images, model
    if not isinstance(model, (FrozenCLIP, PromptLearner)):
        raise VlpromptError(f"image_features: model must be a FrozenCLIP or a learner, not {brief(model)}")
    clip = model.eval().clip if isinstance(model, PromptLearner) else model

    masks = isinstance(model, PromptLearner) and "mask" in model.facts.inputs

    def encode(read: Batch) -> Tensor:
        if isinstance(model, PromptLearner):
            return finite(model.image_features(read if masks else read["image"]), model)
        return model.encode_image(read["image"])

    with torch.no_grad():
        found = _read(images, clip, batch_size, threads, masks=masks)
        rows = [encode(read).float().cpu().numpy() for _, read in found]
    return np.concatenate([np.empty((0, clip.embed_dim), np.float32), *rows])


def _predicted(
    learner: PromptLearner,
    images: Iterable[Any],
    batch_size: int,
    threads: int | None,
    on_unreadable: Report | None = None,
) -> Iterator[tuple[list[Any], Tensor]]:
    """Yield images that were read and their logits (B, C), fp32 on the CPU: a batch, or all that were read at once."""
    views, generated = learner.eval().test_views, learner.generated_views
    waiting: list[Any] = []  # read, and not predicted yet

    masks = "mask" in learner.facts.inputs

    def batches() -> Iterator[Batch]:
        for sources, batch in _read(images, learner.clip, batch_size, threads, on_unreadable, views, generated, masks):
            waiting.extend(sources)
            yield batch

    for logits in learner.predict_all(batches()):
        sources, waiting[:] = waiting[: len(logits)], waiting[len(logits) :]
        yield sources, finite(logits, learner).float().cpu()


def _read(
    images: Iterable[Any],
    clip: FrozenCLIP,
    batch_size: int,
    threads: int | None,
    on_unreadable: Report | None = None,
    views: TestViews | None = None,
    generated: GeneratedViews | None = None,
    masks: bool = False,
) -> Iterator[tuple[list[Any], Batch]]:
    """Yield the images of each batch that were read, as they were given and as tensors on the backbone's device."""
    batch_size = at_least("batch_size", batch_size, 1)
    threads = None if threads is None else at_least("threads", threads, 0)
    how: dict[str, Any] = {"views": views, "generated": generated, "masks": masks}
    several = samples(several_images(images))
    for batch in stream_images(several, clip, batch_size=batch_size, threads=threads, **how):
        for sentence in batch.unreadable:
            if on_unreadable is None:
                raise VlpromptError(sentence)
            on_unreadable(sentence)
        if batch.sources:
            read = batch.images.to(clip.device)
            found = Batch(image=read) if views is None else Batch(views=read)
            if batch.masks is not None:
                found["mask"] = batch.masks.to(clip.device)
            yield batch.sources, found


def several_images(images: Any) -> Iterable[Any]:
    """Return an iterable of images; raise ``VlpromptError`` for a single image, features and the like."""
    several: Iterable[Any] = images
    if is_of_hub(images):
        return several
    shape = getattr(images, "shape", None)
    single = isinstance(images, (Image.Image, bytes))
    if single or (shape is not None and len(shape) == 3 and 3 in (shape[0], shape[2]) and shape[1] != 3):
        what = brief(images) if shape is None else f"one of shape {tuple(shape)}"
        raise VlpromptError(f"several images are expected, and a single one was given: write [image], not {what}")
    if shape is not None and len(shape) == 2 and getattr(getattr(images, "dtype", None), "kind", "f") not in "OUS":
        raise VlpromptError(f"images are expected, not rows of numbers {tuple(shape)}: learner.classify takes features")
    if isinstance(images, (str, os.PathLike)):
        return several  # which is told what to write
    if isinstance(images, (Mapping, IOBase)) or not (hasattr(images, "__iter__") or hasattr(images, "__getitem__")):
        raise VlpromptError(f"images must be a list of paths, PIL images or arrays, not {brief(images)}")
    return several


# Where images come from


def find_images(
    arguments: Sequence[str], lines: Iterable[str] = (), on_left_out: Report | None = None
) -> Iterator[str]:
    """Yield the image paths that command-line arguments name, in order.

    Args:
        arguments: images and tar shards of images; folders, for all images below them, sorted, or for their shards if
            they have no images; patterns such as ``photos/**/*.jpg``; addresses of any of these that fsspec can open,
            such as ``s3://bucket/photos``; or ``-``.
        lines: what ``-`` stands for: paths, one per line, read lazily.
        on_left_out: called with a sentence about each folder in which files, or linked folders, are left out.

    Raises:
        VlpromptError: a folder or pattern has no images. A single file is looked for only when its turn comes, and the
            images in a shard are listed by ``vlprompt.data.remote.unpacked``.
    """
    return chain.from_iterable([_lines(lines) if a == STDIN else _expand(a, on_left_out) for a in arguments])


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (path for line in lines if (path := line.rstrip("\r\n")))


def _expand(argument: str, on_left_out: Report | None) -> list[str]:
    path = os.path.expanduser(argument)
    if is_url(argument):
        found = list_urls(argument)
    elif os.path.isdir(path):
        found = _below(path, argument, on_left_out)
    elif glob.has_magic(path) and not os.path.exists(path):
        matches = sorted(glob.glob(path, recursive=True))
        found = [match for match in matches if os.path.isfile(match)]
    else:
        return [path]
    if not found:
        raise VlpromptError(f"no images in {argument}: give images, folders, patterns, or - to read paths from stdin")
    return found


def _below(folder: str, called: str, on_left_out: Report | None) -> list[str]:
    """The images below a folder, or the tar shards where there are none."""
    listing = list_images(folder)
    if not listing.images:
        shards = sorted(glob.glob(os.path.join(glob.escape(folder), "**", "*"), recursive=True))
        if found := images_or_shards(shards):
            return found
    notes = [f"the linked folder {os.path.join(folder, link)} is not gone into: name it" for link in listing.links]
    for note in [describe_left_out(listing.left_out, called), *notes]:
        if note and on_left_out:
            on_left_out(note)
    return [os.path.join(folder, name) for name in listing.images]
