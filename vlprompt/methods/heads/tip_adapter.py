"""Tip-Adapter: training-free adaption of CLIP for few-shot classification (Zhang et al., ECCV 2022, arXiv:2207.09519).

Fitted, without training: a cache of the labelled images, with image features F as keys and one-hot labels L as values.
It is added to zero-shot CLIP: 100·f·W + α·exp(-β(1 - f·F))·L. A key is the mean of the unnormalised features of an
image's views, normalised afterwards.
Protocols: few-shot, domain generalization; also on top of a saved learner (``text=``).
Differs from the authors' code: α and β are fixed at the initial values of their search, which then takes the best of
4,000 pairs on the whole validation split or, on ImageNet, on the test images (selection=paper does so too;
selection=fewshot_val uses a few images per class); fp32 where theirs is fp16.
The cache grows with the number of images, and is not a linear classifier, so it cannot be exported as a (C, D) matrix:
use to=torch or to=onnx.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.data import FeatureBank
from vlprompt.learner import register
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.selection import Values, at_points, choose, keep_settings
from vlprompt.methods.heads.image_cache import ImageCache, cache_logits
from vlprompt.methods.heads.on_text import BesideText


def cache_keys(features: Tensor) -> Tensor:
    """Keys (N, D) of the views (V, N, D) of N images, §3.1: views are averaged as they are, and then normalised."""
    return F.normalize(features.mean(dim=0), dim=-1)


@register(
    "tip_adapter", paper="arXiv:2207.09519", new_classes=False, head=True, paper_settings="whole_val", fidelity="code"
)
class TipAdapter(ImageCache, BesideText):
    """A cache of the labelled images, added to zero-shot CLIP."""

    @dataclass
    class Config(BesideText.Config):
        """Settings.

        Attributes:
            alpha: weight α of the cache's logits, added to zero-shot's.
            beta: sharpness β, how quickly a key's influence decays with its distance.
            fit_views: views of each training image that its key is averaged over; 1 is the evaluation crop.
            grid: values of alpha and beta to choose from on held-out images.
        """

        alpha: float = 1.17
        beta: float = 1.0
        fit_views: int = 10
        grid: dict[str, Any] = field(default_factory=dict)

    config: Config
    alpha: Tensor
    beta: Tensor

    def setup(self) -> None:
        """Create an empty cache, with which the learner is zero-shot CLIP."""
        self.make_room(0)
        keep_settings(self, "alpha", "beta")

    def fit(self, bank: FeatureBank) -> None:
        """Fill the cache with the labelled images of a bank."""
        assert bank.labels is not None  # of labelled images
        self.fill(cache_keys(bank.features), bank.labels)

    def learn(self, feed: Feed, train: Train) -> None:
        """Cache the labelled images."""
        self.fit(feed.bank(views=self.config.fit_views))
        choose(self, feed, at_points(self.logits_at))

    def logits_at(self, v: Tensor, values: Values) -> Tensor:
        """Logits (P, N, C) of normalised image features v (N, D) with P values of α and β, (P, 1, 1) each."""
        distances, count = 1 - v @ self.keys.T, len(self.learnt_names)
        betas, place = values.get("beta", self.beta.view(1, 1, 1)).flatten().unique(return_inverse=True)
        cache = torch.stack([cache_logits((-beta * distances).exp(), self.labels, count) for beta in betas])
        zero_shot = self.clip.similarity(v, self.text_features())
        return zero_shot + values.get("alpha", self.alpha) * cache[place]

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C): s·v·tᵀ + α·exp(-β(1 - v·F))·L, eq. 5."""
        affinity = (v @ self.keys.T).sub_(1).mul_(self.beta).exp_()  # (B, N), the largest tensor, computed in place
        return super().score(v, t) + self.alpha * cache_logits(affinity, self.labels, len(self.learnt_names))
