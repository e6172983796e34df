"""The images or features that a classifier is fitted to, as a feed for its learner."""

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
from vlprompt.estimator.pool import with_pool
from vlprompt.estimator.weights import Counts
from vlprompt.evaluation.prediction import image_features
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.held_out import Selection
from vlprompt.training.feed import FeatureFeed, ImageFeed
from vlprompt.training.feeding import make_feed
from vlprompt.training.recipes import Learning


@dataclass(frozen=True)
class TrainingData:
    """Checked images or features, with their labels.

    Attributes:
        X: a sequence of N images, or features (N, D).
        data: the readable images as a dataset; only its name and classes if X is features or preprocessed tensors.
        items: the images of X that are learnt from.
        counts: weight of each image; None if all weigh the same.
        positions: index of each image in X, by its path.
        workers: threads that decode images.
        encoded: features (N, D) of preprocessed tensors, by the frozen model that computed them.
    """

    X: Any
    data: DatasetSplits
    items: list[Item]
    counts: Counts | None
    positions: Mapping[str, int]
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
    ) -> TrainingData:
        """Leave out what cannot be used, and remember where the rest is in X.

        Args:
            X: a sequence of N images, or features (N, D).
            labels: (N,) class indices; -1 for none.
            data: the images as a dataset, without images if X is features.
            counts: weight (N,) of each image, where 0 leaves it out; None if all weigh the same.
            on_unreadable: ``skip`` or ``stop``.
            workers: threads that decode images.
            masks: whether each image also needs the mask of its region.
        """
        if not data.train or is_preprocessed(X[0]):
            names = data.class_names
            items = [Item(str(i), y, "" if y < 0 else names[y]) for i, y in enumerate(labels.tolist())]
        else:
            items = list(data.train)
        positions = {item.path: i for i, item in enumerate(items)}
        weights = None if counts is None else Counts(items, counts.tolist())
        if data.train and data.image_dir:
            data = leave_out_unreadable(data, ["train"], on_unreadable, masks=masks)
            items = list(data.train)
        if weights is None:
            return cls(X, data, items, None, positions, workers)
        kept = [(item, count) for item, count in zip(items, weights.of(items), strict=True) if count > 0]
        items = [item for item, _ in kept]
        return cls(X, data, items, Counts(items, [count for _, count in kept]), positions, workers)

    def feed(self, learner: PromptLearner, learning: Learning, reporter: Reporter, selection: Selection) -> ImageFeed:
        """The feed of a learner: of features, or of images as in any run."""
        data = with_pool(self.data, self.items, learner.facts)
        data = held_out(data, learning.config.seed) if selection.sources else data
        feed = make_feed(learner, data, learning, reporter, selection=selection)
        if self.counts is not None:
            feed = replace(feed, counts=torch.tensor(self.counts.of(data.train), dtype=torch.float32))
        if self.data.train and not is_preprocessed(self.X[0]):
            return feed
        return FeatureFeed(**vars(feed), rows=self._rows(learner.tower))

    def _rows(self, tower: FrozenCLIP) -> Tensor:
        """Features (N, D) of X, computed once for all learners on the same frozen model."""
        if isinstance(self.X, np.ndarray):
            return torch.from_numpy(self.X)
        if tower not in self.encoded:
            self.encoded[tower] = torch.from_numpy(image_features(tower, self.X, threads=self.workers))
        return self.encoded[tower]
