"""Prediction of many images: memory over time, and throughput against a bare OpenCLIP loop in the same run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datasets_registry.catalog import load_split
from vlprompt.clip.catalog import TINY
from vlprompt.clip.loading import load_clip
from vlprompt.data import DatasetSplits
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.prediction import predict_images
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.creation import create_learner

EARLY = 5  # memory is looked at after one part in so many, and at the end
ON_DISK = 500  # files that an embedded dataset is written to


def bench_predict(
    dataset: str = "emoji",
    data_root: str | Path | None = None,
    *,
    backbone: str = TINY,
    pretrained: str | None = None,
    images: int = 10_000,
    turn: int = 500,
    batch_size: int = 64,
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure ``predict_images`` on many image files.

    The reference opens the same files with Pillow, applies OpenCLIP's own transform and encodes batches of the same
    size with OpenCLIP's own model, one after the other. Both sides take turns; the ratio is the median over turns.

    Args:
        dataset: the dataset whose images are read, repeatedly until there are enough.
        data_root: the folder that contains the datasets' folders.
        backbone, pretrained: the backbone.
        images: how many images are predicted to measure memory.
        turn: images per turn; there are as many turns as half of ``images`` allow.
        batch_size: the batch size of both sides.
        threads: the number of decoding threads on our side.
        say: called with each result as a line.

    Returns:
        ``memory_mb`` by number of images, ``images_per_s`` and ``reference_images_per_s``, and their ``ratio``.

    Raises:
        VlpromptError: the dataset cannot be found, or the numbers are too small.
    """
    if turn < 1 or images < 2 * EARLY * batch_size or images < 4 * turn:
        raise VlpromptError(f"images={images} is too few for batch_size={batch_size} and turn={turn}")
    splits = load_split(dataset, data_root)
    clip = load_clip(backbone, pretrained, device="cpu")
    learner = create_learner("coop", clip, splits.class_names, templates=splits.templates)
    predict = partial(predict_images, learner, batch_size=batch_size, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        files = _files(splits, Path(folder))
        paths = [files[i % len(files)] for i in range(images)]
        predictions = predict(iter(paths))
        memory, early = {}, images // EARLY
        for done, more in ((0, early), (early, images - early)):
            _exhaust(islice(predictions, more))
            memory[done + more] = resident_memory()
            say(f"{done + more:,} images: {memory[done + more]:.0f} MB")

        def take_turns(part: list[str]) -> tuple[float, float]:
            ours = _seconds(lambda: _exhaust(predict(part)))
            return ours, _seconds(lambda: bare_loop(learner, part, batch_size))

        seconds = [take_turns(paths[start : start + turn]) for start in range(0, images // 2, turn)]
    result = {
        "dataset": splits.name,
        "backbone": backbone,
        "images": images,
        "memory_mb": memory,
        "images_per_s": turn / statistics.median(ours for ours, _ in seconds),
        "reference_images_per_s": turn / statistics.median(theirs for _, theirs in seconds),
        "ratio": statistics.median(theirs / ours for ours, theirs in seconds),
        "threads": torch.get_num_threads(),
    }
    say(
        f"{result['images_per_s']:.0f} images/s, bare OpenCLIP {result['reference_images_per_s']:.0f}, "
        f"ratio {result['ratio']:.2f}"
    )
    return result


def bare_loop(learner: PromptLearner, paths: Sequence[str], batch_size: int) -> list[int]:
    """Return the most probable class of each image, as a user of OpenCLIP alone would compute it."""
    encode, transform = cast(Callable[[Tensor], Tensor], learner.clip.model.encode_image), learner.clip.preprocess
    weight, scale, predicted = learner.classifier_matrix(), learner.clip.logit_scale, []
    with torch.no_grad():
        for start in range(0, len(paths), batch_size):
            batch = torch.stack([transform(Image.open(path)) for path in paths[start : start + batch_size]])
            features = F.normalize(encode(batch), dim=-1)
            predicted += (scale * features @ weight.T).softmax(dim=-1).argmax(dim=-1).tolist()
    return predicted


def resident_memory() -> float:
    """Memory that this process uses now, in MB; NaN on systems other than Linux, which do not tell."""
    try:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    except OSError:
        return float("nan")


def _files(splits: DatasetSplits, folder: Path) -> list[str]:
    """Paths of a dataset's images; those of an embedded dataset are written to files first."""
    items = [*splits.train, *splits.val, *splits.test]
    if splits.image_dir is not None:
        return [str(splits.image_dir / item.path) for item in items]
    paths = []
    for i, item in enumerate(items[:: max(len(items) // ON_DISK, 1)]):
        paths.append(str(folder / f"{i}.png"))
        splits.open_image(item).save(paths[-1])
    return paths


def _exhaust(iterator: Iterator[Any]) -> None:
    for _ in iterator:
        pass


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
