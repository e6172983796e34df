"""TFUP: training-free unsupervised prompts for vision-language models (Long et al., 2024, arXiv:2404.16339).

Fitted, without training, to unlabelled images: a cache of the most central images among those that zero-shot CLIP finds
most probable for a class (``labeler``). It votes as Tip-Adapter's does, with affinities scaled by how similar the two
images' zero-shot predictions are.
Protocols: unsupervised.
Differs from the authors' code: the pool is the training images (theirs are the test images on two of four datasets);
fp32; class features are from the dataset's templates or, with descriptions=FILE, the mean over sentences as in theirs,
which a language model wrote. Most of the published gain over plain templates comes from those sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vlprompt.base.parts import parse_part
from vlprompt.learner import register
from vlprompt.learner.labelers import LABELERS, label_pool
from vlprompt.learner.learning import Feed, PseudoLabels, Train
from vlprompt.learner.objectives import Objective
from vlprompt.methods.heads.image_cache import ImageCache, cache_logits
from vlprompt.methods.heads.on_text import OnText

SOFT = 10.0  # scale of the similarities whose probabilities are compared


def alike(v: Tensor, keys: Tensor, t: Tensor) -> Tensor:
    """How alike class features t (C, D) find images v (B, D) and keys (N, D), in [0, 2]: (B, N).

    KL(p_v ‖ p_key), spread for each image from 2 at its nearest key to 0 at its farthest.
    """
    log_p, log_q = ((SOFT * x @ t.T).log_softmax(dim=1) for x in (v, keys))
    apart = (log_p.exp() * log_p).sum(dim=1, keepdim=True) - log_p.exp() @ log_q.T  # (B, N)
    least, most = apart.amin(dim=1, keepdim=True), apart.amax(dim=1, keepdim=True)
    return 2 * (1 - (apart - least) / (most - least).clamp_min(1e-12))


def votes(v: Tensor, t: Tensor, keys: Tensor, labels: Tensor, alpha: float, beta: float) -> Tensor:
    """What a cache adds to the logits (B, C): α·exp(-β(1 - A))·L with A = (v·Fᵀ)⊙alike; nothing if it is empty.

    Args:
        v: normalised image features (B, D).
        t: normalised class features (C, D).
        keys: normalised features F (N, D) of its images.
        labels: classes of these (N,).
        alpha, beta: weight and sharpness.
    """
    if not len(keys):
        return v.new_zeros(v.shape[0], len(t))  # len() would fix the batch in an export
    affinity = (v @ keys.T) * alike(v, keys, t)
    return alpha * cache_logits((-beta * (1 - affinity)).exp(), labels, len(t))


def raw_text(learner: OnText, template: list[str] | None) -> Tensor:
    """Class features (C, D): means over templates or descriptions, normalised neither before nor after.

    Or those of a saved learner, of the lengths of such means.
    """
    if learner.built_on is not None:
        return learner.start_text(normalise_first=False, normalise_last=False)
    if learner.config.descriptions is not None:
        return learner.teacher.described(learner.learnt_names, learner.config.descriptions, normalise=False)
    return learner.frozen_text(template, normalise_first=False, normalise_last=False)


@register("tfup", paper="arXiv:2404.16339", labels="none", new_classes=False, head=True, fidelity="code")
class TFUP(ImageCache, OnText):
    """A cache of unlabelled images, the most central per class, added to zero-shot CLIP."""

    @dataclass
    class Config(OnText.Config):
        """Settings.

        Attributes:
            labeler: which images of the pool are cached for which class, see ``vlprompt.learner.labelers``.
            alpha: weight of the cache's logits, added to zero-shot's.
            beta: sharpness, how quickly a key's influence decays with its distance.
            template: for zero-shot; None uses the dataset's own. ``descriptions`` replace it.
        """

        labeler: str = "prototype_kl"
        alpha: float = 0.3
        beta: float = 1.0
        template: list[str] | None = None

    config: Config

    @classmethod
    def reads_descriptions(cls, objectives: Sequence[Objective]) -> bool:
        """Class features are made from descriptions, if there are any."""
        return True

    def setup(self) -> None:
        """Create an empty cache, with which the learner is zero-shot CLIP."""
        self.labeler = parse_part(self.config.labeler, LABELERS)
        self.make_room(0)

    def label(self, image_features: Tensor, classes: Sequence[int] | None = None) -> PseudoLabels:
        """The pool's images (N, D) to cache, with their class among ``classes``, by zero-shot."""
        zero_shot = self.clip.similarity(F.normalize(image_features, dim=-1), self.text_features())
        return label_pool(self.labeler, zero_shot, self.clip.logit_scale, classes)

    def learn(self, feed: Feed, train: Train) -> None:
        """Cache the pool's most central images."""
        bank = feed.labelled_as(self.label(feed.bank("pool").features[0], feed.pool_classes)).bank()
        assert bank.labels is not None  # the labeler's
        self.fill(F.normalize(bank.features[0], dim=-1), bank.labels)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Zero-shot class features (C, D)."""
        return raw_text(self, self.config.template)

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C): s·v·tᵀ, and the cache's votes."""
        return super().score(v, t) + votes(v, t, self.keys, self.labels, self.config.alpha, self.config.beta)
