"""TFUP-T: TFUP with training (Long et al., 2024, arXiv:2404.16339).

Trained, on unlabelled images: a residual r on each class feature, t' = ½·t + ½·r, and a bottleneck on the image feature
as in CLIP-Adapter. First on the pool's most central images with TFUP's labels; then on the whole pool, where an
augmented image learns from confident predictions of the plain image with TFUP's cache, and predictions are kept
balanced over a batch. The cache is then dropped: residual and bottleneck score alone.
Protocols: unsupervised.
Differs from the authors' code: the last epoch is tested (theirs takes the best on the test images); the learning rate
follows one cosine over all epochs (theirs counts only the steps of the first phase, so it rises again in the second);
fp32 where theirs is fp16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.base.parts import parse_part
from vlprompt.learner import register
from vlprompt.learner.labelers import LABELERS, label_pool
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.objectives import Batch, Objective
from vlprompt.methods.heads.clip_adapter import CLIPAdapter
from vlprompt.methods.unlabelled.tfup import raw_text, votes


@register(
    "tfup_t",
    paper="arXiv:2404.16339",
    trains=("head",),
    labels="none",
    new_classes=False,
    head=True,
    paper_epoch="test",
    fidelity="code",
)
class TFUPT(CLIPAdapter):
    """Class residuals and a bottleneck, trained on pseudo-labels from TFUP's cache."""

    published: ClassVar[Mapping[str, str]] = {}

    @dataclass
    class Config(CLIPAdapter.Config):
        """Settings, those of CLIP-Adapter and more.

        Attributes:
            text_ratio: share of the residual in a class feature.
            labeler: which images of the pool are cached, see ``vlprompt.learner.labelers``.
            first_labeler: which of them are trained on first.
            first_epochs: epochs on those alone.
            alpha, beta: weight and sharpness of the cache.
            threshold: probability above which the plain image's prediction is used as a label.
            marginal_weight: weight of the entropy of the mean prediction.
            template: for zero-shot; None uses the dataset's own. ``descriptions`` replace it.
        """

        text_ratio: float = 0.5
        labeler: str = "prototype_kl"
        first_labeler: str = "prototype_kl(share=0.75, most=None)"
        first_epochs: int = 5
        alpha: float = 0.3
        beta: float = 1.0
        threshold: float = 0.9
        marginal_weight: float = 0.3
        template: list[str] | None = None

    config: Config

    @classmethod
    def reads_descriptions(cls, objectives: Sequence[Objective]) -> bool:
        """Class features are made from descriptions, if there are any."""
        return True

    def setup(self) -> None:
        """Create the bottleneck, and the residual (C, D)."""
        super().setup()
        self.residual = nn.Parameter(torch.zeros(len(self.class_names), self.clip.embed_dim))
        self.labelers = [parse_part(text, LABELERS) for text in (self.config.labeler, self.config.first_labeler)]
        self.keys, self.labels = torch.empty(0, self.clip.embed_dim), torch.empty(0)  # TFUP's cache, while it learns

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D): (1 - ρ)·t + ρ·r, with t as the tower gives it."""
        ratio = self.config.text_ratio
        return (1 - ratio) * raw_text(self, self.config.template) + ratio * self.residual

    def text_features(self, v: Tensor | None = None) -> Tensor:
        """Normalised class features (C, D)."""
        return F.normalize(self.encode_text(v), dim=-1)

    def learn(self, feed: Feed, train: Train) -> None:
        """Fill the cache, train on the pool's most central images, and then on all of it."""
        plain = feed.bank("pool").features[0]
        with torch.no_grad():
            v, t = F.normalize(plain, dim=-1), F.normalize(raw_text(self, self.config.template), dim=-1)
            zero_shot, scale = self.clip.similarity(v, t), self.clip.logit_scale
            cached, first = (label_pool(each, zero_shot, scale, feed.pool_classes) for each in self.labelers)
            self.keys, self.labels = v[cached.index], cached.label
            p = (zero_shot + self.votes(v, t)).softmax(dim=1)[first.index]
        confidence, label = p.max(dim=1)
        chosen = feed.labelled_as(replace(first, label=label, confidence=confidence)).batches()
        everything = feed.batches("pool")

        def phases(epoch: int) -> Iterable[Batch]:
            return chosen(epoch) if epoch < self.config.first_epochs else beside_plain(everything(epoch), plain)

        train(self, phases)

    def votes(self, v: Tensor, t: Tensor) -> Tensor:
        """The cache's addition to the logits (B, C) of normalised features v (B, D)."""
        return votes(v, t, self.keys, self.labels, self.config.alpha, self.config.beta)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of labelled images as usual; for a pool, cross-entropy with confident labels, and the balance term."""
        if "unlabeled" not in batch:
            return super().loss(batch)
        logits = self(batch).logits
        with torch.no_grad():
            confidence, label = self.weak_logits(batch["unlabeled"]["image_features"]).softmax(dim=1).max(dim=1)
        sure = confidence > self.config.threshold
        # without confident images there is no loss, rather than the mean of nothing
        ce = (F.cross_entropy(logits, label, reduction="none") * sure).sum() / sure.sum().clamp_min(1)
        log_mean = logits.log_softmax(dim=1).logsumexp(dim=0) - torch.tensor(float(len(logits))).log()
        balance = (log_mean.exp() * log_mean).sum()  # the mean prediction's entropy, negative
        return {"loss": ce + self.config.marginal_weight * balance, "ce": ce, "balance": balance}

    def weak_logits(self, plain: Tensor) -> Tensor:
        """Logits (B, C) of plain images' features (B, D) by the bottleneck, with the cache beside."""
        v, t = self.adapt(F.normalize(plain.to(self.clip.device), dim=-1)), self.text_features()
        return self.clip.similarity(v, t) + self.votes(v, t)


def beside_plain(batches: Iterable[Batch], plain: Tensor) -> Iterator[Batch]:
    """Batches of the pool with features (N, D) of its images without augmentation as ``unlabeled``."""
    for batch in batches:
        yield batch | {"unlabeled": {"image_features": plain[batch["index"]]}}
