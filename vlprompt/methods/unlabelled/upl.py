"""UPL: unsupervised prompt learning for vision-language models (Huang et al., 2022, arXiv:2204.03649).

Trained: CoOp's context, on images without labels: of those that zero-shot CLIP takes for a class, the K it is surest
of.
Protocols: unsupervised.
Differs from the authors' code: fp32; one run is one seed (their ensemble over 16 seeds averages the logits of 16 runs),
and one backbone labels the pool.
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
from vlprompt.methods.prompts.coop import CoOp


@register("upl", paper="arXiv:2204.03649", trains=("text",), labels="none")
class UPL(CoOp):
    """CoOp on pseudo-labels of the images that zero-shot CLIP is surest of."""

    @dataclass
    class Config(CoOp.Config):
        """Settings, as CoOp's with sixteen random tokens.

        Attributes:
            labeler: which images of the pool are taken for which class, see ``vlprompt.learner.labelers``.
            template: of the zero-shot classifier that labels the pool; None takes the dataset's own.
        """

        n_ctx: int | None = 16
        labeler: str = "top_k(k=16)"
        template: list[str] | None = None

    config: Config

    def setup(self) -> None:
        """Create the context (n, d_t)."""
        self.labeler = parse_part(self.config.labeler, LABELERS)
        super().setup()

    def label(self, image_features: Tensor, classes: Sequence[int] | None = None) -> PseudoLabels:
        """What zero-shot CLIP says of a pool's image features (N, D), whose labels are among ``classes``."""
        zero_shot = self.clip.similarity(F.normalize(image_features, dim=-1), self.frozen_text(self.config.template))
        return label_pool(self.labeler, zero_shot, self.clip.logit_scale, classes)

    def learn(self, feed: Feed, train: Train) -> None:
        """Label the pool once, and train on what it is surest of."""
        train(self, feed.labelled_as(self.label(feed.bank("pool").features[0], feed.pool_classes)).batches())
