"""TDA: efficient test-time adaptation of vision-language models (Karmanov et al., CVPR 2024, arXiv:2403.18293).

Learnt from the test images as they come, without gradients: two caches, keyed by the class that zero-shot CLIP
predicts. The positive cache holds the most confident images, which vote for that class. The negative cache holds images
of moderate uncertainty, which vote against the classes that they may show.
Protocols: test-time; also on top of a saved learner's class features (``text=``).
Differs from the authors' code: fp32; the order of the test images is determined by the run's seed, and each test starts
with empty caches. As in theirs, the entropy for the thresholds is natural over log2 C, so that it reaches 0.69 rather
than 1; several views are AugMix's (augmix=false uses crops and mirror images), for the shifted versions of ImageNet
only; and their mean feature is not normalised again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.learner.facts import Facts
from vlprompt.learner.objectives import Batch
from vlprompt.methods.heads.on_text import BesideZeroShot
from vlprompt.methods.test_time.tpt import surest_views


class Seen(NamedTuple):
    """One test image: its feature f (D,), logits z (C,), probabilities p (C,) and their entropy H, in nats."""

    f: Tensor
    z: Tensor
    p: Tensor
    entropy: float


class Cache:
    """For each predicted class, the images of lowest entropy so far, at most ``shots`` of them.

    Attributes:
        keys: features (C, shots, D).
        entropy: their entropies (C, shots), infinite for empty places.
        votes: the votes of each image (C, shots, C), in a cache that keeps them.
    """

    def __init__(self, classes: int, shots: int, f: Tensor, keeps_votes: bool = False):
        self.keys = f.new_zeros(classes, shots, len(f))
        self.entropy = torch.full((classes, shots), math.inf)
        self.votes = f.new_zeros(classes, shots, classes if keeps_votes else 0)

    def offer(self, c: int, f: Tensor, entropy: float, votes: Tensor | None = None) -> None:
        """Add an image for class c if there is a free place, or replace one with higher entropy."""
        place = int(self.entropy[c].argmax())
        if not entropy < self.entropy[c, place]:
            return
        self.keys[c, place], self.entropy[c, place] = f, entropy
        if votes is not None:
            self.votes[c, place] = votes

    def affinity(self, f: Tensor, beta: float) -> Tensor:
        """exp(-β(1 - f·f_k)) for an image f (D,) and each cached one (C, shots); 0 for empty places."""
        held = self.entropy.isfinite().to(f.device)
        return torch.exp(-beta * (1 - self.keys @ f)) * held


@register("tda", paper="arXiv:2403.18293", labels="none", head=True, predicts="online", fidelity="code")
class TDA(BesideZeroShot):
    """Zero-shot CLIP plus two caches of the test images seen so far."""

    @dataclass
    class Config(BesideZeroShot.Config):
        """Settings.

        Attributes:
            alpha, beta: weight α and sharpness β of the positive cache.
            positive_shots: maximum number of images per class in it.
            negative_alpha, negative_beta, negative_shots: the same for the negative cache.
            unsure: range of the entropy over log2 C in which an image enters the negative cache.
            possible: range of the probability in which a class gets a negative vote from such an image.
            n_views: number of views of a test image, including the centre crop; 1 uses only that.
            fraction: share of several views, the most confident, that are averaged.
            augmix: whether several views are augmented with AugMix (``vlprompt.data.augmix``).
        """

        alpha: float = 2.0
        beta: float = 5.0
        positive_shots: int = 3
        negative_alpha: float = 0.117
        negative_beta: float = 1.0
        negative_shots: int = 2
        unsure: list[float] = field(default_factory=lambda: [0.2, 0.5])
        possible: list[float] = field(default_factory=lambda: [0.03, 1.0])
        n_views: int = 1
        fraction: float = 0.1
        augmix: bool = False

    config: Config

    @classmethod
    def facts_of(cls, config: Config) -> Facts:
        """Several views are drawn from the image itself."""
        return replace(cls.registered, inputs=("views",)) if config.n_views > 1 else cls.registered

    def setup(self) -> None:
        """Check the settings."""
        super().setup()
        c = self.config
        if min(c.positive_shots, c.negative_shots, c.n_views) < 1 or not 0 < c.fraction <= 1:
            raise VlpromptError(
                "tda needs positive_shots, negative_shots and n_views of at least 1, and a fraction of views above 0 "
                "and up to 1"
            )
        if c.augmix and c.n_views == 1:
            raise VlpromptError("tda's augmix mixes views, and n_views=1 takes the centre crop alone: say n_views=64")
        for key in ("unsure", "possible"):
            if len(getattr(c, key)) != 2:
                raise VlpromptError(f"tda's {key} is two numbers, the least and the largest, not {getattr(c, key)}")

    def see(self, views: Tensor, t: Tensor) -> Seen:
        """Zero-shot's prediction for an image: the mean over the most confident of its views' features (V, D)."""
        z = self.clip.similarity(views, t)  # (V, C)
        kept = surest_views(z, self.config.fraction)
        log_p = z[kept].log_softmax(dim=1).logsumexp(dim=0) - math.log(len(kept))
        return Seen(views[kept].mean(dim=0), z[kept].mean(dim=0), log_p.exp(), float(-(log_p.exp() * log_p).sum()))

    @torch.no_grad()
    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C) of images v (B, D) in their order, starting with empty caches."""
        stream = Stream(self.config, t)
        return torch.stack([stream.logits(self.see(image[None], t)) for image in v])

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Logits (B, C) of a batch, as of a whole test."""
        return torch.cat(list(self.predict_all([batch])))

    @torch.no_grad()
    def predict_all(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Logits (B, C) of each batch, whose images are predicted in order, with earlier ones in the caches."""
        t = self.text_features()
        stream = Stream(self.config, t)
        for batch in batches:
            several = self.n_views is not None
            images = map(self.image_features, batch["views"]) if several else self.image_features(batch)[:, None]
            yield torch.stack([stream.logits(self.see(views, t)) for views in images])


class Stream:
    """The two caches, and what they add to zero-shot's logits image by image.

    Args:
        config: weights and sizes.
        t: class features (C, D).
    """

    def __init__(self, config: TDA.Config, t: Tensor):
        self.config, classes = config, len(t)
        self.largest = math.log2(classes)
        self.positive = Cache(classes, config.positive_shots, t[0])
        self.negative = Cache(classes, config.negative_shots, t[0], keeps_votes=True)

    def logits(self, seen: Seen) -> Tensor:
        """Logits (C,) of the next image, which is added to the caches first."""
        c, f = self.config, seen.f
        predicted = int(seen.z.argmax())
        self.positive.offer(predicted, f, seen.entropy)
        if c.unsure[0] < seen.entropy / self.largest < c.unsure[1]:
            votes = (seen.p > c.possible[0]) & (seen.p < c.possible[1])
            self.negative.offer(predicted, f, seen.entropy, votes.to(f.dtype))
        for_it = self.positive.affinity(f, c.beta).sum(dim=1)
        against = self.negative.affinity(f, c.negative_beta).flatten() @ self.negative.votes.flatten(0, 1)
        return seen.z + c.alpha * for_it - c.negative_alpha * against
