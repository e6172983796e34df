"""Feeds over a dataset's images and over features in hand; see ``vlprompt.learner.learning.Feed``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any, cast

import torch
from torch import Tensor

from vlprompt.base.environment import Clock
from vlprompt.base.reporter import Reporter
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import (
    DatasetSplits,
    FeatureBank,
    ImageItems,
    epoch_batches,
    eval_batches,
    eval_transform,
    mask_other_tasks,
    train_transform,
)
from vlprompt.data.masks import RegionItems, RegionTransform
from vlprompt.data.splits import Item, without_labels
from vlprompt.data.transforms import Views
from vlprompt.errors import VlpromptError, warn
from vlprompt.learner.held_out import SEEN, Selection
from vlprompt.learner.learning import EpochBatches, Feed, PseudoLabels, Source
from vlprompt.learner.objectives import Batch

Draw = Callable[[int, int], Iterable[Batch]]  # from an epoch's index and a batch size to its batches
SHOWN = 5  # class names in a warning
PASSES = 10_000  # over another feed in one epoch, at most, so that no two epochs draw alike


@dataclass(frozen=True)
class Loading:
    """How training images are loaded in batches.

    Attributes:
        batch_size: images per batch.
        views: views of each image if features are cached, or ``fresh``.
        transform: a kind of ``train_transform``.
        seed: of the order and the augmentation.
        workers: processes that load images.
    """

    batch_size: int = 32
    views: int | str = "fresh"
    transform: str = "rrc"
    seed: int = 1
    workers: int = 0


@dataclass(frozen=True)
class Labelling:
    """The pseudo-labels that a method gave to images of a pool, to be compared afterwards with true labels if known.

    Attributes:
        paths: paths of the images chosen, which may occur more than once.
        labels: their pseudo-labels.
        confidence: the probability of each label; empty if the method reported none.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    confidence: tuple[float, ...] = ()


@dataclass(frozen=True)
class ImageFeed:
    """A feed over a dataset's images.

    Args:
        splits: its training images are the labelled ones; it may also have a pool.
        clip: the learner's frozen model, or whatever else computes its image features.
        loading: how images are loaded.
        cacheable: whether the learner accepts the frozen tower's features instead of images.
        names: keys of the augmented images that the learner's batches must have, each augmented independently; ``mask``
            if masks of regions go with them.
        weights: weights of the labelled images in the loss (N,).
        counts: how many times each labelled image counts (N,): in the loss relative to their mean, so that learning
            rates and other terms keep their meaning; in closed-form fits as they are.
        whole: images that these are a subset of; their features are then taken from one bank of all of them.
        chosen: positions in the pool of the first of the labelled images (N,), so that nothing is encoded twice.
        labellings: the pseudo-labels given so far, in order; feeds derived from one another share this record.
        other: the feed whose batches are included as ``unlabeled``.
        later_names: names of classes that are tested but not trained on.
        selection: which held-out images may be read; records those that are.
        reporter, clock: report and time the encoding of images.
    """

    splits: DatasetSplits
    clip: FrozenCLIP
    loading: Loading
    cacheable: bool = True
    names: tuple[str, ...] = ("image",)
    weights: Tensor | None = None
    counts: Tensor | None = None
    whole: tuple[Item, ...] = ()
    chosen: Tensor | None = None
    labellings: list[Labelling] = field(default_factory=list)
    other: Feed | None = None
    later_names: tuple[str, ...] = ()
    selection: Selection = field(default_factory=Selection)
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True))
    clock: Clock = field(default_factory=Clock)

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, in label order."""
        return self.splits.class_names

    @property
    def templates(self) -> tuple[str, ...]:
        """The dataset's hand-written templates."""
        return self.splits.templates

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains of labelled and pool images, in order of first appearance."""
        return tuple(dict.fromkeys(item.domain for item in (*self.splits.train, *self.splits.pool) if item.domain))

    def batches(
        self, source: Source = "labelled", *, views: int | str | None = None, every_view: bool = False
    ) -> EpochBatches:
        """Shuffled training batches of a source."""
        items, views = self._items(source), self.loading.views if views is None else views
        cached = self.cacheable and views != "fresh"
        draw, samples = self._cached(items, views, every_view) if cached else (self._fresh(items), len(items))
        extra, beside = self._extra(source, items), self._beside()

        def batches(epoch: int, batch_size: int) -> Iterator[Batch]:
            others = beside(epoch) if beside else None
            for batch in draw(epoch, batch_size):
                places = batch["index"].cpu()
                batch |= cast(Batch, {key: value[places].to(self.clip.device) for key, value in extra.items()})
                if source == "pool":
                    del batch["label"]
                yield batch | {"unlabeled": next(others)} if others else batch

        def masked(epoch: int, batch_size: int) -> Iterator[Batch]:
            return mask_other_tasks(batches(epoch, batch_size), self.splits.tasks)

        tasks = self.splits.tasks and source == "labelled"
        return EpochBatches(masked if tasks else batches, samples, self.loading.batch_size)

    def bank(self, source: Source = "labelled", *, views: int = 1, clip: FrozenCLIP | None = None) -> FeatureBank:
        """Frozen features of a source (V, N, D), and labels, absent for a pool."""
        model = clip or self.clip
        with self.clock("encode"), self.reporter.bar("encoding training images", lines=1) as update:
            bank = self._encoded(model, self._items(source), views, update).to(model.device)
        if source == "pool":
            return replace(bank, labels=None)
        if source == "labelled" and self.counts is not None:
            return replace(bank, counts=self.counts.to(model.device))
        return bank

    @property
    def pool_classes(self) -> tuple[int, ...]:
        """Labels that the pool's images may have."""
        return self.splits.pool_classes or tuple(range(len(self.class_names)))

    def count(self, source: Source) -> int:
        """Number of images of a source."""
        return len({"labelled": self.splits.train, "pool": self.splits.pool}.get(source, self.splits.val))

    def in_order(self, source: Source = "pool") -> Iterator[Batch]:
        """The images of a source, once each and in order, transformed as for testing, without labels."""
        if self.cacheable:
            yield from replace(self.bank(source), labels=None).eval_batches()
            return
        items = self._items(source)
        images = (
            RegionItems(self.splits, items, RegionTransform(self.clip))
            if "mask" in self.names
            else ImageItems(self.splits, items, eval_transform(self.clip))
        )
        for batch in eval_batches(images, workers=self.loading.workers, device=self.clip.device):
            del batch["label"]
            yield batch

    def labelled_as(
        self, labels: Tensor | PseudoLabels, weights: Tensor | None = None, *, keep_labelled: bool = False
    ) -> ImageFeed:
        """A feed whose labelled images are the pool's, with these labels, and, if kept, those with true labels."""
        chosen = labels if isinstance(labels, PseudoLabels) else self._one_each(labels)
        places, found = chosen.index.cpu(), chosen.label.tolist()
        if not found:
            raise VlpromptError("no image of the pool has a label, so there is nothing to learn from")
        names, pool, own = self.splits.class_names, self.splits.pool, self.splits.train if keep_labelled else ()
        taken = [replace(pool[i], label=y, class_name=names[y]) for i, y in zip(places.tolist(), found, strict=True)]
        self._tell_classes_without(set(found))
        confidence = tuple(chosen.confidence.tolist())
        self.labellings.append(Labelling(tuple(item.path for item in taken), tuple(found), confidence))
        kept = None if weights is None else torch.cat([weights.cpu()[places], torch.ones(len(own))])
        both = replace(self.splits, train=[*taken, *own])
        return replace(self, splits=both, weights=kept, counts=None, chosen=places)

    def _tell_classes_without(self, found: set[int]) -> None:
        """Warn of classes that no image of the pool is labelled as, which will not be learnt from it."""
        lacking = [self.class_names[y] for y in self.pool_classes if y not in found]
        if lacking:
            more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
            warn(f"no image of the pool is labelled as {', '.join(map(repr, lacking[:SHOWN]))}{more}")

    def _one_each(self, labels: Tensor) -> PseudoLabels:
        """One label per image of the pool, as a choice of the images that have one."""
        if labels.shape != (len(self.splits.pool),):
            raise VlpromptError(
                f"the pool has {len(self.splits.pool)} images, and {len(labels)} labels were given for it"
            )
        index = (labels >= 0).nonzero().squeeze(1)
        return PseudoLabels(index, labels[index], torch.empty(0))

    def where(self, *, domain: str) -> ImageFeed:
        """A feed of the images of one domain; features are computed once for all domains."""
        if domain not in self.domains:
            raise VlpromptError(f"there are no images of the domain '{domain}': {', '.join(self.domains) or 'none'}")
        own = torch.tensor([item.domain == domain for item in self.splits.train], dtype=torch.bool)
        train, val = ([i for i in part if i.domain == domain] for part in (self.splits.train, self.splits.val))
        pool = tuple(item for item in self.splits.pool if item.domain == domain)
        splits = replace(self.splits, train=train, val=val, pool=pool)
        weights, counts = (None if each is None else each[own] for each in (self.weights, self.counts))
        whole = self.whole or tuple(self.splits.train)
        return replace(self, splits=splits, weights=weights, counts=counts, chosen=None, whole=whole)

    def part(self, train: Sequence[int], val: Sequence[int], every: Sequence[Item]) -> ImageFeed:
        """A feed of some of this one's images, with some others for validation.

        Args:
            train, val: their positions in ``every``.
            every: the images, with labels, in the order of ``counts``; features are computed once for all parts.
        """
        learnt, held = [every[i] for i in train], [every[i] for i in val]
        if self.splits.train:
            splits = replace(self.splits, train=learnt, val=held)
        else:  # of a learner that takes no labels
            splits = replace(self.splits, pool=without_labels(learnt), val=held)
        counts = self.counts[torch.tensor(train)] if self.counts is not None and self.splits.train else None
        own: dict[str, Any] = {"counts": counts, "whole": tuple(every), "labellings": [], "selection": Selection()}
        return replace(self, splits=splits, **own)

    def beside(self, other: Feed) -> ImageFeed:
        """A feed whose batches also hold, as ``unlabeled``, a batch of another feed's pool or labelled images."""
        return replace(self, other=other)

    def _items(self, source: Source) -> Sequence[Item]:
        splits, handed = self.splits, self.selection.sources
        few = source == "val" and "whole_val" not in handed  # whole_val replaces the few-shot draw
        if source in SEEN and source not in handed and not few:
            raise VlpromptError(f"images of source={source} are available only if selection=paper uses them")
        parts = {"labelled": splits.train, "pool": splits.pool, "val": splits.val, "whole_val": splits.val}
        found = (parts | {"test": splits.test})[source]
        if not found:
            what = {"labelled": "labelled training images", "pool": "pool of images without labels"}
            hint = ": use protocol=unsupervised or semi_supervised" if source == "pool" else ""
            raise VlpromptError(f"{self.splits.name} has no {what.get(source, 'validation images')} here{hint}")
        if source in SEEN:
            self.selection.saw.add(source)
        return found

    def _encoded(self, clip: FrozenCLIP, items: Sequence[Item], views: int, progress: Any) -> FeatureBank:
        if self.chosen is not None and items is self.splits.train:
            features = self._encoded(clip, self.splits.pool, views, progress).features[:, self.chosen]
            own = items[len(self.chosen) :]
            if own:
                features = torch.cat([features, self._encoded(clip, own, views, progress).features], dim=1)
            return FeatureBank(features, torch.tensor([item.label for item in items]))
        places = {item.path: i for i, item in enumerate(self.whole)}
        if items is not self.whole and places and all(item.path in places for item in items):
            bank = self._encoded(clip, self.whole, views, progress)
            taken = bank.select(torch.tensor([places[item.path] for item in items]))
            return replace(taken, labels=torch.tensor([item.label for item in items]))
        transform = eval_transform(clip) if views == 1 else self._transform(clip)
        how = {"seed": self.loading.seed, "workers": self.loading.workers, "progress": progress}
        return FeatureBank.open_or_build(clip, self.splits, items, transform=transform, views=views, **how)

    def _transform(self, clip: FrozenCLIP) -> Any:
        return train_transform(clip, self.loading.transform, mirror=self.splits.mirror)

    def _extra(self, source: Source, items: Sequence[Item]) -> dict[str, Tensor]:
        """What is known of each image besides its label: ``domain``, ``weight`` in the loss, ``pseudo``."""
        numbers = {name: i for i, name in enumerate(self.domains)}
        extra = {"domain": torch.tensor([numbers.get(item.domain, -1) for item in items])} if numbers else {}
        given = [each for each in (self.weights, _relative(self.counts)) if each is not None]
        if given and source == "labelled":
            extra["weight"] = torch.stack(given).prod(dim=0)
        if self.chosen is not None and source == "labelled" and len(items) > len(self.chosen):
            extra["pseudo"] = torch.arange(len(items)) < len(self.chosen)
        return extra

    def _cached(self, items: Sequence[Item], views: int | str, every_view: bool = False) -> tuple[Draw, int]:
        """Batches of features, and the number of samples per epoch."""
        with self.clock("encode"), self.reporter.bar("encoding training images", lines=1) as update:
            bank = self._encoded(self.clip, items, int(views), update).to(self.clip.device)

        def cached(epoch: int, batch_size: int) -> Iterator[Batch]:
            return bank.epoch_batches(batch_size, seed=self.loading.seed, epoch=epoch, every_view=every_view)

        return cached, len(bank) * (bank.views if every_view else 1)

    def _fresh(self, items: Sequence[Item]) -> Draw:
        augment, how = self._transform(self.clip), self.loading
        names = [name for name in self.names if name != "mask"]
        if len(names) == len(self.names):
            images = ImageItems(self.splits, items, augment if len(names) == 1 else Views(augment, len(names)))
        else:
            images = RegionItems(self.splits, items, RegionTransform(self.clip, how.transform, self.splits.mirror))

        def fresh(epoch: int, batch_size: int) -> Iterator[Batch]:
            for batch in epoch_batches(
                images, batch_size, epoch=epoch, seed=how.seed, workers=how.workers, device=self.clip.device
            ):
                if len(names) == 1:
                    yield batch
                else:
                    yield batch | cast(Batch, dict(zip(names, batch["image"].unbind(1), strict=True)))

        return fresh

    def _beside(self) -> Callable[[int], Iterator[Batch]] | None:
        """Batches of the other feed, repeated as needed: it may hold fewer or more images than this one."""
        if self.other is None:
            return None
        other = cast(ImageFeed, self.other)  # as all that a method is handed, or makes of it
        batches = other.batches("pool" if other.splits.pool else "labelled")
        return lambda epoch: chain.from_iterable(map(batches, count(epoch * PASSES)))


def _relative(counts: Tensor | None) -> Tensor | None:
    """Counts over their mean; None where there are none."""
    return None if counts is None else counts / counts.mean()


@dataclass(frozen=True)
class FeatureFeed(ImageFeed):
    """A feed over given image features; an item's path is its row.

    Args:
        rows: features (N, D) of the learner's frozen model.
    """

    rows: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def _encoded(self, clip: FrozenCLIP, items: Sequence[Item], views: int, progress: Any) -> FeatureBank:
        if clip is not self.clip:
            raise VlpromptError("these are features of another model than the one needed: give images")
        rows = self.rows[[int(item.path) for item in items]]
        return FeatureBank(rows[None], torch.tensor([item.label for item in items]))

    def _fresh(self, items: Sequence[Item]) -> Draw:
        return self._cached(items, 1)[0]
