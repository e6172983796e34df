"""UPL: unsupervised prompt learning for vision-language models (Huang et al., 2022, arXiv:2204.03649).

Trained: CoOp's context, on unlabelled images: for each class, the K images that zero-shot CLIP assigns to it with the
highest confidence. ``members=16`` trains that many contexts, each with its own initialization and order of images, and
averages their logits; ``labelled_by=[RN50@openai, …]`` labels the pool with the mean prediction of several backbones
(UPL*).
Protocols: unsupervised.
Differs from the authors' code: fp32; the members' seeds are derived from the seed of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.base.parts import parse_part
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.loading import shared_clip
from vlprompt.data import resolve_templates
from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.learner.labelers import LABELERS, label_by, probabilities_of
from vlprompt.learner.learning import Feed, ParameterGroup, PseudoLabels, Train
from vlprompt.learner.prompts import random_tokens
from vlprompt.learner.teacher import Teacher
from vlprompt.methods.prompts.coop import CoOp


@register("upl", paper="arXiv:2204.03649", trains=("text",), labels="none", fidelity="code")
class UPL(CoOp):
    """CoOp on pseudo-labels of the images on which zero-shot CLIP is most confident."""

    @dataclass
    class Config(CoOp.Config):
        """Settings, those of CoOp with sixteen random tokens.

        Attributes:
            labeler: how images of the pool are pseudo-labelled, see ``vlprompt.learner.labelers``.
            template: for the zero-shot classifier that labels the pool; None uses the dataset's own.
            members: number of contexts, trained one after another, whose logits are averaged; published are 16.
            labelled_by: backbones, NAME or NAME@TAG, whose mean probabilities label the pool; empty uses the learner's
                own.
        """

        n_ctx: int | None = 16
        labeler: str = "top_k(k=16)"
        template: list[str] | None = None
        members: int = 1
        labelled_by: list[str] = field(default_factory=list)

    config: Config

    def setup(self) -> None:
        """Create the contexts (n, d_t)."""
        count = self.config.members
        own = self.config.class_specific or self.config.ctx_init or self.config.attributes
        if count < 1 or (count > 1 and own):
            raise VlpromptError(
                f"members={count} must be 1, or more random contexts that all classes share, without attribute words"
            )
        self.labeler = parse_part(self.config.labeler, LABELERS)
        super().setup()
        self.others = nn.ParameterList(random_tokens(*self.prompt.ctx.shape) for _ in range(count - 1))
        self.turn: int | None = None  # the member that is being trained

    def text_features(self, v: Tensor | None = None) -> Tensor:
        """The classifier (C, D) of the member in training, or the mean of all, which gives the mean of their logits."""
        if not self.others:
            return super().text_features(v)
        ctx = torch.stack([*self._members()])  # (G, n, d_t)
        features = self.prompt.encode(self.clip, self.tokens, ctx, self.config.text_chunk, self.edits)
        return F.normalize(features, dim=-1).mean(dim=0)

    def _members(self) -> list[nn.Parameter]:
        """The contexts that are being trained or scored with."""
        members = [self.prompt.ctx, *self.others]
        return members if self.turn is None else [members[self.turn]]

    def parameter_groups(self) -> list[ParameterGroup]:
        """The member in training; of one alone, what it has besides."""
        return [ParameterGroup(self._members())] if self.others else super().parameter_groups()

    def _take(self, turn: int | None) -> None:
        """Train and score with a single member, or with all."""
        self.turn, self._cached = turn, None

    def label(self, feed: Feed) -> PseudoLabels:
        """Probabilities of a pool by zero-shot CLIP, or by several of them."""
        names = self.config.labelled_by
        clips = (_backbone(name, self.clip) for name in names) if names else [self.clip]
        said = [self._zero_shot(feed, clip) for clip in clips]  # one model at a time
        return label_by(self.labeler, torch.stack(said).mean(dim=0), feed.pool_classes)

    def _zero_shot(self, feed: Feed, clip: FrozenCLIP) -> Tensor:
        """Probabilities (N, C of the pool) by a frozen model."""
        if clip is self.clip:
            text, bank = self.frozen_text(self.config.template), feed.bank("pool")
        else:
            templates = resolve_templates(self.config.template, self)
            text, bank = Teacher(clip).text_features(self.class_names, templates), feed.bank("pool", clip=clip)
        logits = clip.similarity(F.normalize(bank.features[0], dim=-1), text)
        return probabilities_of(self.labeler, logits, clip.logit_scale, feed.pool_classes).to(self.clip.device)

    def learn(self, feed: Feed, train: Train) -> None:
        """Label the pool once, and train each member on its most confident images."""
        batches = feed.labelled_as(self.label(feed)).batches()
        if self.config.members == 1:
            train(self, batches)
            return
        for turn in range(self.config.members):
            self._take(turn)
            train(self, batches.redrawn(turn), stage=f"member {turn + 1}")
        self._take(None)


def _backbone(name: str, own: FrozenCLIP) -> FrozenCLIP:
    """A frozen model by NAME or NAME@TAG, on the learner's device."""
    architecture, _, tag = name.partition("@")
    return shared_clip(architecture, tag or None, None, own.precision, str(own.device))
