"""Tip-Adapter-F: Tip-Adapter with trained keys (Zhang et al., ECCV 2022, arXiv:2207.09519, §3.2).

Trained: the keys F of Tip-Adapter's cache, initialized as there, by cross-entropy; the values L stay one-hot.
Protocols: few-shot, domain generalization; also on top of a saved learner (``text=``).
Differs from the authors' code: the last epoch is tested (theirs takes the epoch that is best on the test images, and
then the larger of two test accuracies); α and β stay as in training (theirs are searched afterwards on the whole
validation split; selection=paper chooses both as they do, fewshot_val on a few images per class); training images are
seen in the ten views that the keys are made of, in turn (theirs draws new views in each epoch: views=fresh); fp32 where
theirs is fp16.
Each training image meets its own key, so the training loss is small from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vlprompt.learner import register
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.selection import at_points, choose
from vlprompt.methods.heads.tip_adapter import TipAdapter


@register(
    "tip_adapter_f",
    paper="arXiv:2207.09519",
    trains=("head",),
    new_classes=False,
    head=True,
    paper_settings="whole_val",
    paper_epoch="test",
    fidelity="code",
)
class TipAdapterF(TipAdapter):
    """Tip-Adapter's cache of the labelled images, with trained keys."""

    @dataclass
    class Config(TipAdapter.Config):
        """Settings, those of Tip-Adapter."""

    config: Config

    def hold(self, keys: Tensor) -> None:
        """Register the keys (N, D), as a parameter."""
        self.keys = nn.Parameter(keys)

    def learn(self, feed: Feed, train: Train) -> None:
        """Cache the labelled images, and train the keys on them."""
        self.fit(feed.bank(views=self.config.fit_views))
        train(self, feed.batches())
        choose(self, feed, at_points(self.logits_at))
