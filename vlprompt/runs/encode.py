"""``vlprompt encode``: the feature banks of runs, made beforehand, in shards, in this process or on many machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from vlprompt.base.devices import resolve_device
from vlprompt.base.reporter import Reporter
from vlprompt.base.settings import RunConfig
from vlprompt.base.threads import computing_with, threads_for
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import DatasetSplits, FeatureBank, ImageItems, eval_transform, train_transform
from vlprompt.data.bank import SHARD
from vlprompt.data.encoding import Encoding, Progress
from vlprompt.data.shards import Shard
from vlprompt.data.splits import Item
from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.evaluation.scoring import limited
from vlprompt.runs.parts import Shared, load_parts
from vlprompt.runs.settings import resolve
from vlprompt.runs.workers import Done, Workers

SOURCES = ("train", "val", "pool", "test")
# Settings of a run that decide which images are encoded and by which model; a bank does not depend on the method.
KEYS = (
    *("dataset", "data_root", "download", "split", "follow_links", "protocol", "shots", "seed", "allow_fewer"),
    *("targets", "held_out", "unlabelled", "pool_classes", "class_split", "limit", "views", "transform", "region"),
    *("backbone", "pretrained", "checkpoint", "precision", "device", "threads", "workers"),
)
WHOLE = {"protocol": "few_shot", "shots": "all"}  # the default: all classes and all images


class Images:
    """The images of a run, and the frozen model that encodes them.

    Args:
        settings: as in ``KEYS``.
        clip: a frozen model to use instead of loading ``backbone``.
        computes: whether this process encodes. If not, it needs the model only for its identity, and may lack the
            ``device``.

    Raises:
        VlpromptError: a setting is unknown or invalid.
    """

    def __init__(self, settings: Mapping[str, Any], clip: FrozenCLIP | None = None, computes: bool = True):
        default = {} if {"protocol", "shots"} & settings.keys() else WHOLE
        for key in settings:
            if key not in KEYS:
                raise VlpromptError(f"unknown key '{key}': {nearest(key, KEYS)}")
        self.config: RunConfig = resolve({"method": "zero_shot", "views": 1, **default, **settings}).config
        if type(self.config.views) is not int:
            raise VlpromptError(f"views={self.config.views} are encoded anew in each epoch: give a number to keep")
        device = self.config.device
        self.device = (
            None if computes else resolve_device(device).type if device == "auto" else torch.device(device).type
        )
        if self.device == "cuda" and not torch.cuda.is_available():
            self.config.device = "cpu"
        self.shared = Shared(clip)

    @cached_property
    def clip(self) -> FrozenCLIP:
        """The frozen model."""
        return self.shared.clip_for(self.config)

    @cached_property
    def groups(self) -> dict[str, tuple[DatasetSplits, Sequence[Item]]]:
        """For each bank, by name: its dataset, which opens the images, and the images."""
        config = self.config
        plan = PROTOCOLS.get(config.protocol).plan(config.dataset, config.targets, config.held_out)
        data, _ = load_parts(plan, config, self.shared)
        source = data[plan.train]
        groups: dict[str, tuple[DatasetSplits, Sequence[Item]]] = {
            name: (source, getattr(source, name)) for name in ("train", "val", "pool")
        }
        tests = {name: data[part] for name, part in plan.tests.items()}
        return groups | {f"test {name}": (splits, limited(splits.test, config.limit)) for name, splits in tests.items()}

    def views(self, name: str) -> dict[str, Any]:
        """Transform, number of views and seed of a bank, as in a run."""
        config, (splits, _) = self.config, self.groups[name]
        if config.views == 1 or name not in ("train", "pool"):
            return {"transform": eval_transform(self.clip), "views": 1, "seed": 0}
        transform = train_transform(self.clip, config.transform, mirror=splits.mirror)
        return {"transform": transform, "views": int(config.views), "seed": config.seed}

    def encoding(self, name: str, batch_size: int, progress: Progress | None = None) -> Encoding:
        """The computation of a bank's features."""
        views, (splits, items) = self.views(name), self.groups[name]
        images = ImageItems(splits, items, views["transform"])
        return Encoding(self.clip, images, views["views"], views["seed"], batch_size, self.config.workers, progress)

    def computing(self) -> AbstractContextManager[None]:
        """Compute with the number of threads that the settings ask for, or that suits the model."""
        return computing_with(threads_for(self.clip.model, self.config.threads))


class ShardEncoder:
    """Encodes shards in a worker process; see ``vlprompt.runs.workers.Worker``."""

    def __init__(self, settings: Mapping[str, Any], batch_size: int):
        self.images, self.batch_size = Images(settings), batch_size

    def __call__(self, part: dict[str, Any]) -> Done:
        """Encode a shard of a bank; the images and the model must be those of the process that asks for it."""
        shard, images = Shard(**part["shard"]), self.images
        encoding = images.encoding(part["bank"], self.batch_size)
        if encoding.fingerprint(shard) != part["fingerprint"]:
            raise VlpromptError(
                f"{images.config.dataset} or {images.config.backbone} is not the same on all machines: images, their "
                "sizes or the weights differ"
            )
        with images.computing():
            [(_, features)] = encoding.encode([shard])
        return Done(shard.number, content=features.numpy().tobytes())


def encode(
    settings: Mapping[str, Any],
    *,
    sources: Sequence[str] = ("train", "test"),
    shard: int | None = None,
    batch_size: int = 100,
    workers: Workers | None = None,
    reporter: Reporter | None = None,
    clip: FrozenCLIP | None = None,
) -> dict[str, FeatureBank]:
    """Make the feature banks that runs with the same settings open; existing banks and shards are kept.

    Args:
        settings: settings of a run among ``KEYS``: which images, and the backbone. With neither ``protocol`` nor
            ``shots``, all classes and all images.
        sources: some of ``SOURCES``; those without images are skipped.
        shard: images per shard, rounded up to whole batches. None means 10,000 with ``workers``; in this process, it
            writes up to 10,000 images as a single file.
        batch_size: images that are encoded together.
        workers: ``vlprompt.runs.workers.work_on_ray(…)``; None encodes in this process. ``device`` is theirs.
        reporter: shows progress.
        clip: a frozen model to use instead of loading ``backbone``, in this process.

    Returns:
        The banks by name: ``train``, ``val``, ``pool``, ``test TARGET``.

    Raises:
        VlpromptError: a setting is invalid, an image cannot be read, or a machine has other images; shards that were
            encoded before are kept.

    >>> encode({"dataset": "digits"})["train"].features.shape  # doctest: +SKIP
    torch.Size([1, 538, 256])
    """
    for source in sources:
        if source not in SOURCES:
            raise VlpromptError(f"unknown images '{source}': {nearest(str(source), SOURCES)}")
    images, reporter = Images(settings, clip, computes=workers is None), reporter or Reporter(quiet=True)
    banks = {}
    for name, (splits, items) in images.groups.items():
        if name.partition(" ")[0] not in sources or not items:
            continue
        with reporter.bar(f"encoding {name} images") as update, images.computing():
            encoding = images.encoding(name, batch_size, update)
            banks[name] = FeatureBank.open_or_build(
                images.clip,
                splits,
                items,
                **images.views(name),
                batch_size=batch_size,
                workers=images.config.workers,
                progress=update,
                shard=shard or (SHARD if workers else None),
                encode=_EncodeOnWorkers(workers, settings, encoding, name) if workers else None,
                device=images.device,
            )
    if not banks:
        raise VlpromptError(f"{images.config.dataset} has no images of {', '.join(sources)} here")
    return banks


@dataclass(frozen=True)
class _EncodeOnWorkers:
    """Encodes shards by workers, in any order; if one fails, the others are still written."""

    workers: Workers
    settings: Mapping[str, Any]
    encoding: Encoding
    bank: str

    def __call__(self, shards: Sequence[Shard]) -> Iterator[tuple[Shard, Tensor]]:
        encoding, waiting, failed = self.encoding, {shard.number: shard for shard in shards}, []
        total = encoding.views * len(encoding.images)
        parts = [
            {"number": n, "bank": self.bank, "shard": asdict(each), "fingerprint": encoding.fingerprint(each)}
            for n, each in waiting.items()
        ]
        for done in self.workers(partial(ShardEncoder, dict(self.settings), encoding.batch_size), parts):
            shard = waiting.pop(done.number)
            if done.error:
                failed.append(done.error)
                continue
            yield shard, torch.frombuffer(bytearray(done.content), dtype=torch.float32).view(len(shard), -1)
            if encoding.progress:
                encoding.progress(total - sum(map(len, waiting.values())), total)
        if failed:
            others = f" ({len(failed)} of {len(shards)} shards failed; the others are kept)" if len(shards) > 1 else ""
            raise VlpromptError(failed[0] + others)
