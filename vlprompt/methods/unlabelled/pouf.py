"""POUF: prompt-oriented unsupervised fine-tuning (Tanwisuth et al., ICML 2023, arXiv:2305.00350).

Trained, on unlabelled images: CoOp's context, initialized with "a photo of a", and CLIP's logit scale, so that images
and classes are cheap to transport onto each other (``transport``), and predictions are confident for each image and
balanced over a batch (``information_maximization``). This is the paper's prompt mode; its model mode trains all of
CLIP, which is not done here.
Protocols: unsupervised.
Differs from the authors' code: the pool is the training images, and others are tested (except on DomainNet, theirs
learns from the very images that it tests); the last step is tested (theirs takes the epoch that is best on them).
The loss depends on the batch size: the transport from classes assumes that a batch has images of each class, which is
impossible if it has fewer images than there are classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vlprompt.learner import register
from vlprompt.learner.learning import Feed, ParameterGroup, Train
from vlprompt.methods.prompts.coop import CoOp


@register(
    "pouf", paper="arXiv:2305.00350", trains=("text",), head=False, labels="none", paper_epoch="test", fidelity="code"
)
class POUF(CoOp):
    """A context and a logit scale that align unlabelled images with the classes."""

    @dataclass
    class Config(CoOp.Config):
        """Settings, those of CoOp, initialized with "a photo of a".

        Attributes:
            scale_lr: learning rate of the log logit scale, relative to the context's; as published it hardly moves.
        """

        objective: list[str] = field(default_factory=lambda: ["transport", "information_maximization(weight=0.3)"])
        ctx_init: str | None = "a photo of a"
        scale_lr: float = 5e-4

    config: Config

    def setup(self) -> None:
        """Create the context (n, d_t), and the logarithm of the logit scale (1,)."""
        super().setup()
        self.log_scale = nn.Parameter(torch.tensor([math.log(self.clip.logit_scale)]))

    def parameter_groups(self) -> list[ParameterGroup]:
        """The prompt, and the logit scale, which moves more slowly."""
        return [
            ParameterGroup([*self.prompt.parameters()]),
            ParameterGroup([self.log_scale], lr_scale=self.config.scale_lr),
        ]

    def learn(self, feed: Feed, train: Train) -> None:
        """Train on the pool."""
        train(self, feed.batches("pool"))

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C): similarities by the learnt scale."""
        bias = self.clip.logit_bias
        return (super().score(v, t) - bias) * (self.log_scale.exp() / self.clip.logit_scale) + bias

    @property
    def logit_scale(self) -> float:
        """The learnt logit scale."""
        return float(self.log_scale.detach().exp())
