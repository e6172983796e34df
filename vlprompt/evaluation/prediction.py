"""Applying a learner to any number of images, a few batches at a time: predictions, logits, features."""

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
from vlprompt.evaluation.prediction_formats import (
    write_predictions as write_predictions,  # a name of version 0.1's prediction
)
from vlprompt.evaluation.scoring import finite
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
    for sources, logits in _batch_logits(learner, images, batch_size, threads, on_unreadable):
        probabilities = learner.probabilities(logits)
        yield from top_predictions(sources, probabilities, names, top, threshold, learner.facts.predicts)


def top_predictions(
    sources: Sequence[Any],
    probabilities: Tensor,
    names: Sequence[str],
    top: int,
    min_probability: float | None,
    predicts: Predicts = "alone",
) -> Iterator[Prediction]:
    """Yield a prediction for each image, with its ``top`` most likely classes.

    Args:
        sources: B images, as they were given.
        probabilities: (B, C).
        names: C class names.
        top: number of classes per prediction.
        min_probability: images whose largest probability is below it are not answered; None answers all.
        predicts: as in ``Prediction``.
    """
    best = probabilities.topk(min(top, len(names)), dim=1)
    for source, indices, values in zip(sources, best.indices.tolist(), best.values.tolist(), strict=True):
        sure = min_probability is None or values[0] >= min_probability
        yield Prediction(source, tuple(names[i] for i in indices), tuple(values), predicts, sure)


@checked
def image_logits(
    learner: PromptLearner, images: Iterable[Any], *, batch_size: int = BATCH, threads: int | None = None
) -> Tensor:
    """Return a learner's logits (N, C) for images, given in any form that ``predict_images`` takes."""
    batches = _batch_logits(learner, images, batch_size, threads)
    return torch.cat([torch.empty(0, len(learner.class_names)), *(logits for _, logits in batches)])


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

    def encode(batch: Batch) -> Tensor:
        if isinstance(model, PromptLearner):
            return finite(model.image_features(batch if masks else batch["image"]), model)
        return model.encode_image(batch["image"])

    with torch.no_grad():
        batches = _batches(images, clip, batch_size, threads, masks=masks)
        rows = [encode(batch).float().cpu().numpy() for _, batch in batches]
    return np.concatenate([np.empty((0, clip.embed_dim), np.float32), *rows])


def _batch_logits(
    learner: PromptLearner,
    images: Iterable[Any],
    batch_size: int,
    threads: int | None,
    on_unreadable: Report | None = None,
) -> Iterator[tuple[list[Any], Tensor]]:
    """Yield images and their logits (B, C), fp32 on the CPU; of a transductive learner, all in one batch."""
    views, generated = learner.eval().test_views, learner.generated_views
    masks = "mask" in learner.facts.inputs
    read = _batches(images, learner.clip, batch_size, threads, on_unreadable, views, generated, masks)
    waiting: list[Any] = []  # images that were read, and are not predicted yet

    def batches() -> Iterator[Batch]:
        for sources, batch in read:
            waiting.extend(sources)
            yield batch

    for logits in learner.predict_all(batches()):
        sources, waiting[:] = waiting[: len(logits)], waiting[len(logits) :]
        yield sources, finite(logits, learner).float().cpu()


def _batches(
    images: Iterable[Any],
    clip: FrozenCLIP,
    batch_size: int,
    threads: int | None,
    on_unreadable: Report | None = None,
    views: TestViews | None = None,
    generated: GeneratedViews | None = None,
    masks: bool = False,
) -> Iterator[tuple[list[Any], Batch]]:
    """Yield batches of the images that can be read: as they were given, and as tensors on the backbone's device."""
    batch_size = at_least("batch_size", batch_size, 1)
    threads = None if threads is None else at_least("threads", threads, 0)
    options: dict[str, Any] = {"views": views, "generated": generated, "masks": masks}
    sources = samples(check_images(images))
    for batch in stream_images(sources, clip, batch_size=batch_size, threads=threads, **options):
        for sentence in batch.unreadable:
            if on_unreadable is None:
                raise VlpromptError(sentence)
            on_unreadable(sentence)
        if batch.sources:
            tensor = batch.images.to(clip.device)
            tensors = Batch(image=tensor) if views is None else Batch(views=tensor)
            if batch.masks is not None:
                tensors["mask"] = batch.masks.to(clip.device)
            yield batch.sources, tensors


def check_images(images: Any) -> Iterable[Any]:
    """Return images unchanged, or raise a ``VlpromptError`` for a single image, features and the like."""
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
        return several  # ``samples`` raises for it
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
        lines: the paths that ``-`` means, one per line, read lazily.
        on_left_out: called with a sentence about each folder in which files, or linked folders, are left out.

    Raises:
        VlpromptError: a folder or pattern has no images. A single file is looked for only when its turn comes, and the
            images in a shard are listed by ``vlprompt.data.remote.unpacked``.
    """
    return chain.from_iterable([_lines(lines) if a == STDIN else _expand(a, on_left_out) for a in arguments])


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (path for line in lines if (path := line.rstrip("\r\n")))


def _expand(argument: str, on_left_out: Report | None) -> list[str]:
    """The images that an argument names."""
    path = os.path.expanduser(argument)
    if is_url(argument):
        images = list_urls(argument)
    elif os.path.isdir(path):
        images = _below(path, argument, on_left_out)
    elif glob.has_magic(path) and not os.path.exists(path):
        matches = sorted(glob.glob(path, recursive=True))
        images = [match for match in matches if os.path.isfile(match)]
    else:
        return [path]
    if not images:
        raise VlpromptError(f"no images in {argument}: give images, folders, patterns, or - to read paths from stdin")
    return images


def _below(folder: str, argument: str, on_left_out: Report | None) -> list[str]:
    """The images below a folder, or the tar shards if there are none."""
    listing = list_images(folder)
    if not listing.images:
        files = sorted(glob.glob(os.path.join(glob.escape(folder), "**", "*"), recursive=True))
        if shards := images_or_shards(files):
            return shards
    notes = [
        f"the linked folder {os.path.join(folder, link)} is not followed: give it too if you want its images"
        for link in listing.links
    ]
    for note in [describe_left_out(listing.left_out, argument), *notes]:
        if note and on_left_out:
            on_left_out(note)
    return [os.path.join(folder, name) for name in listing.images]
