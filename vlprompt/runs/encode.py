"""The feature banks that runs open, made beforehand: in shards, here or on many machines."""

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
# Settings of a run that say which images are encoded and by what; the method does not bear on a bank.
KEYS = (
    *("dataset", "data_root", "download", "split", "follow_links", "protocol", "shots", "seed", "allow_fewer"),
    *("targets", "held_out", "unlabelled", "pool_classes", "class_split", "limit", "views", "transform", "region"),
    *("backbone", "pretrained", "checkpoint", "precision", "device", "threads", "workers"),
)
WHOLE = {"protocol": "few_shot", "shots": "all"}  # all classes and all images, where nothing is said


class Images:
    """The images of a run, as its settings choose them, and the frozen model that encodes them.

    Args:
        settings: of ``KEYS``.
        clip: in hand, instead of one loaded by ``backbone``.
        computes: whether this process encodes; one that does not may lack the ``device``, and needs the model for its
            identity alone.

    Raises:
        VlpromptError: a setting is unknown or not right.
    """

    def __init__(self, settings: Mapping[str, Any], clip: FrozenCLIP | None = None, computes: bool = True):
        usual = {} if {"protocol", "shots"} & settings.keys() else WHOLE
        for key in settings:
            if key not in KEYS:
                raise VlpromptError(f"unknown key '{key}': {nearest(key, KEYS)}")
        self.config: RunConfig = resolve({"method": "zero_shot", "views": 1, **usual, **settings}).config
        if type(self.config.views) is not int:
            raise VlpromptError(f"views={self.config.views} are encoded anew in each epoch: give a number to keep")
        asked = self.config.device
        self.device = None if computes else resolve_device(asked).type if asked == "auto" else torch.device(asked).type
        if self.device == "cuda" and not torch.cuda.is_available():
            self.config.device = "cpu"
        self.shared = Shared(clip)

    @cached_property
    def clip(self) -> FrozenCLIP:
        """The frozen model."""
        return self.shared.clip_for(self.config)

    @cached_property
    def groups(self) -> dict[str, tuple[DatasetSplits, Sequence[Item]]]:
        """Images by the name of their bank, with the splits that open them."""
        config = self.config
        plan = PROTOCOLS.get(config.protocol).plan(config.dataset, config.targets, config.held_out)
        data, _ = load_parts(plan, config, self.shared)
        learnt = data[plan.train]
        found: dict[str, tuple[DatasetSplits, Sequence[Item]]] = {
            name: (learnt, getattr(learnt, name)) for name in ("train", "val", "pool")
        }
        tests = {name: data[part] for name, part in plan.tests.items()}
        return found | {f"test {name}": (splits, limited(splits.test, config.limit)) for name, splits in tests.items()}

    def how(self, name: str) -> dict[str, Any]:
        """Transform, views and seed of a bank, as a run has them."""
        config, (splits, _) = self.config, self.groups[name]
        if config.views == 1 or name not in ("train", "pool"):
            return {"transform": eval_transform(self.clip), "views": 1, "seed": 0}
        transform = train_transform(self.clip, config.transform, mirror=splits.mirror)
        return {"transform": transform, "views": int(config.views), "seed": config.seed}

    def encoding(self, name: str, batch_size: int, progress: Progress | None = None) -> Encoding:
        """How the images of a bank become features."""
        how, (splits, items) = self.how(name), self.groups[name]
        images = ImageItems(splits, items, how["transform"])
        return Encoding(self.clip, images, how["views"], how["seed"], batch_size, self.config.workers, progress)

    def computing(self) -> AbstractContextManager[None]:
        """Compute with as many threads as the settings say, or as suit the model."""
        return computing_with(threads_for(self.clip.model, self.config.threads))


class ShardEncoder:
    """Encodes shards in a process of its own; see ``vlprompt.runs.workers.Worker``."""

    def __init__(self, settings: Mapping[str, Any], batch_size: int):
        self.images, self.batch_size = Images(settings), batch_size

    def __call__(self, part: dict[str, Any]) -> Done:
        """Encode the shard of a bank, which must be of the same images and the same model as where it was asked for."""
        shard, images = Shard(**part["shard"]), self.images
        encoding = images.encoding(part["bank"], self.batch_size)
        if encoding.fingerprint(shard) != part["fingerprint"]:
            raise VlpromptError(
                f"{images.config.dataset} or {images.config.backbone} is not the same on all machines: images, their "
                "sizes or the weights differ"
            )
        with images.computing():
            [(_, features)] = encoding.in_turn([shard])
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
    """Make the banks that runs with the same settings open, and return them by name; what is there is kept.

    Args:
        settings: of a run, as in ``KEYS``: which images, and the backbone. Where neither ``protocol`` nor ``shots`` is
            said, all classes and all images.
        sources: of ``SOURCES``; those without images are left out.
        shard: images of a shard, rounded up to whole batches; None takes 10,000, and encodes what is not more than that
            in this process as one file without shards.
        batch_size: images that are encoded together.
        workers: ``vlprompt.runs.workers.work_on_ray(…)``; None encodes in this process. ``device`` is theirs.
        reporter: tells how it gets on.
        clip: a frozen model in hand, for this process.

    Raises:
        VlpromptError: a setting is not right, an image cannot be read, or a machine has other images; shards that were
            encoded until then are kept.

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
                **images.how(name),
                batch_size=batch_size,
                workers=images.config.workers,
                progress=update,
                shard=shard or (SHARD if workers else None),
                encode=_Elsewhere(workers, settings, encoding, name) if workers else None,
                device=images.device,
            )
    if not banks:
        raise VlpromptError(f"{images.config.dataset} has no images of {', '.join(sources)} here")
    return banks


@dataclass(frozen=True)
class _Elsewhere:
    """Encodes shards by workers, in any order; one that fails does not keep the others from being written."""

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
