"""What a classifier is given to learn from, and the feed that it is for a learner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlprompt.base.reporter import Reporter
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import DatasetSplits
from vlprompt.data.readable import leave_out_unreadable
from vlprompt.data.splits import Item
from vlprompt.data.streaming import is_preprocessed
from vlprompt.estimator.held_out import held_out
from vlprompt.estimator.pool import divided
from vlprompt.estimator.weights import Counts
from vlprompt.evaluation.prediction import image_features
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.held_out import Selection
from vlprompt.training.feed import FeatureFeed, ImageFeed
from vlprompt.training.feeding import make_feed
from vlprompt.training.recipes import Learning


@dataclass(frozen=True)
class Given:
    """Checked images or features, with their labels.

    Attributes:
        X: a sequence of images, or features (N, D).
        data: the images as a dataset, but for those that cannot be read; its name and classes alone where X is features
            or went through a transform.
        items: of X, what there is to learn from.
        counts: how often each image counts; None once each.
        places: in X, by path.
        workers: threads that decode images.
        encoded: features of images that went through a transform, by what made them.
    """

    X: Any
    data: DatasetSplits
    items: list[Item]
    counts: Counts | None
    places: Mapping[str, int]
    workers: int = 0
    encoded: dict[FrozenCLIP, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        X: Any,
        labels: np.ndarray,
        data: DatasetSplits,
        counts: np.ndarray | None,
        on_unreadable: str,
        workers: int,
        masks: bool = False,
    ) -> Given:
        """What there is of X with these labels (N,), which ``data`` has as a dataset where X is images.

        With ``masks`` an image is of use with the mask of its region alone.
        """
        if not data.train or is_preprocessed(X[0]):
            names = data.class_names
            items = [Item(str(i), y, "" if y < 0 else names[y]) for i, y in enumerate(labels.tolist())]
        else:
            items = list(data.train)
        places = {item.path: i for i, item in enumerate(items)}
        every = None if counts is None else Counts(items, counts.tolist())
        if data.train and data.image_dir:
            data = leave_out_unreadable(data, ["train"], on_unreadable, masks=masks)
            items = list(data.train)
        if every is None:
            return cls(X, data, items, None, places, workers)
        kept = [(item, count) for item, count in zip(items, every.of(items), strict=True) if count > 0]
        items = [item for item, _ in kept]  # a weight of 0 leaves an image out
        return cls(X, data, items, Counts(items, [count for _, count in kept]), places, workers)

    def feed(self, learner: PromptLearner, learning: Learning, reporter: Reporter, selection: Selection) -> ImageFeed:
        """What a learner learns from: features in hand, or images as in any run."""
        data = divided(self.data, self.items, learner.facts)
        data = held_out(data, learning.config.seed) if selection.sources else data
        feed = make_feed(learner, data, learning, reporter, selection=selection)
        if self.counts is not None:
            feed = replace(feed, counts=torch.tensor(self.counts.of(data.train), dtype=torch.float32))
        if self.data.train and not is_preprocessed(self.X[0]):
            return feed
        return FeatureFeed(**vars(feed), rows=self._rows(learner.tower))

    def _rows(self, tower: FrozenCLIP) -> Tensor:
        """Features (N, D) of X, which are computed once for all learners on a tower."""
        if isinstance(self.X, np.ndarray):
            return torch.from_numpy(self.X)
        if tower not in self.encoded:
            self.encoded[tower] = torch.from_numpy(image_features(tower, self.X, threads=self.workers))
        return self.encoded[tower]
