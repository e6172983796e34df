"""TPT: test-time prompt tuning for zero-shot generalization (Shu et al., NeurIPS 2022, arXiv:2209.07511).

Tuned, for each test image separately: the context, by a step that lowers the entropy of the mean prediction over the
most confident of its augmented views. The prediction is that of the centre crop with the tuned context.
Protocols: test-time. The initial context may be a saved CoOp learner's (``init_from``) or, with conditional=true, the
one that a CoCoOp learner's meta-net gives for the centre crop.
Differs from the authors' code: fp32, so that no step is skipped; views are crops and mirror images unless augmix=true,
which the recipe sets where theirs does, on the ten fine-grained datasets; the views of an image do not depend on the
order of the test images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.learner.facts import Facts
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.objectives import Batch
from vlprompt.methods.prompts.cocoop import make_meta_net
from vlprompt.methods.prompts.coop import CoOp


def surest_views(logits: Tensor, fraction: float) -> Tensor:
    """Indices of the int(V·fraction) views (V, C) of lowest entropy, at least one, the lowest first."""
    log_p = logits.log_softmax(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    return entropy.argsort()[: max(1, int(len(logits) * fraction))]


def entropy_of_mean(logits: Tensor) -> Tensor:
    """Entropy of the mean probability over views (V, C), §3.2, eq. 3: not the mean of entropies."""
    log_p = logits.log_softmax(dim=1)
    log_mean = log_p.logsumexp(dim=0) - torch.log(torch.tensor(float(len(logits))))
    return -(log_mean.exp() * log_mean).sum()


@register("tpt", paper="arXiv:2209.07511", trains=("text",), labels="none", inputs=("views",), fidelity="code")
class TPT(CoOp):
    """A context tuned on each test image separately."""

    @dataclass
    class Config(CoOp.Config):
        """Settings, those of CoOp, initialized with "a photo of a".

        Attributes:
            n_views: number of views of a test image, including the centre crop.
            fraction: share of the views, the most confident, to tune on.
            steps_per_image: number of AdamW steps.
            tuning_lr: learning rate of AdamW.
            tuning_decay: weight decay of AdamW.
            augmix: whether views are augmented with AugMix (``vlprompt.data.augmix``).
            conditional: start from CoCoOp's context, which depends on the image.
        """

        ctx_init: str | None = "a photo of a"
        n_views: int = 64
        fraction: float = 0.1
        steps_per_image: int = 1
        tuning_lr: float = 5e-3
        tuning_decay: float = 0.01
        augmix: bool = False
        conditional: bool = False

    config: Config

    @classmethod
    def facts_of(cls, config: Any) -> Facts:
        """If the context depends on the image, so do class features."""
        facts = super().facts_of(config)
        return replace(facts, classifier="per_image") if config.conditional else facts

    @classmethod
    def lacks(cls, config: Any) -> str:
        """A meta-net must have been trained before."""
        if config.conditional and config.init_from is None:
            return "with conditional=true starts from a saved CoCoOp learner: say init_from=FOLDER"
        return ""

    def setup(self) -> None:
        """Create the context (n, d_t) that each image starts from, and CoCoOp's meta-net if it is conditional."""
        if self.config.n_views < 1 or not 0 < self.config.fraction <= 1:
            raise VlpromptError("tpt needs n_views of at least 1, and a fraction of them above 0 and up to 1")
        if self.config.conditional and self.config.class_specific:
            raise VlpromptError(f"{self.method} with conditional=true has one context for all classes, as CoCoOp has")
        super().setup()
        if self.config.conditional:
            self.meta_net = make_meta_net(self.clip)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features before tuning: (C, D), or (B, C, D) for image features v (B, D) if it is conditional."""
        if not self.config.conditional:
            return super().encode_text(v)
        if v is None:
            raise VlpromptError(f"{self.method}'s class features depend on each image, so there are none without one")
        return self.prompt.encode(self.clip, self.tokens, self.own_context(v), self.config.text_chunk, edits=self.edits)

    def own_context(self, v: Tensor) -> Tensor:
        """The context before tuning: (n, d_t), or (B, n, d_t) for image features v (B, D) if it is conditional."""
        return self.prompt.ctx + self.meta_net(v).unsqueeze(1) if self.config.conditional else self.prompt.ctx

    def choose_views(self, logits: Tensor) -> Tensor:
        """Indices of the views (V, C) to tune on, chosen before the first step."""
        return surest_views(logits, self.config.fraction)

    def learn(self, feed: Feed, train: Train) -> None:
        """Learn nothing before the test."""

    def tune(self, views: Tensor) -> Tensor:
        """The context (n, d_t) after tuning on normalised features (V, D) of one image's views."""
        ctx = self.own_context(views[:1]).detach().reshape(self.prompt.ctx.shape).clone().requires_grad_()
        c, kept = self.config, None
        optimizer = torch.optim.AdamW([ctx], lr=c.tuning_lr, weight_decay=c.tuning_decay)
        for _ in range(self.config.steps_per_image):
            with torch.enable_grad():
                logits = self.clip.similarity(views, self._features(ctx))
                kept = self.choose_views(logits.detach()) if kept is None else kept
                (ctx.grad,) = torch.autograd.grad(entropy_of_mean(logits[kept]), [ctx])
            optimizer.step()
        return ctx.detach()

    def _features(self, ctx: Tensor) -> Tensor:
        return F.normalize(
            self.prompt.encode(self.clip, self.tokens, ctx, self.config.text_chunk, edits=self.edits)[0], dim=-1
        )

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Logits (B, C) of images in views (B, V, 3, H, W), of which the first is the centre crop."""
        return torch.cat([self.adapt(self.image_features(views)) for views in batch["views"]])

    @torch.no_grad()
    def adapt(self, views: Tensor) -> Tensor:
        """Logits (1, C) of an image by normalised features (V, D) of its views, each of which is encoded once."""
        return self.clip.similarity(views[:1], self._features(self.tune(views)))
