"""CoCoOp: conditional prompt learning (Zhou et al., CVPR 2022, arXiv:2203.05557).

Trained: CoOp's context v_m and a meta-net h whose image-conditioned token is added to each of them, v_m(x) = v_m +
h(x): B·C prompts per batch. Protocols: base-to-new, cross-dataset, domain generalization. Differs from the authors'
code: fp32 throughout; all prompts of a batch are encoded in one pass, with each image's prefix computed once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.methods.prompts.coop import CoOp

REDUCTION = 16  # joint width divided by that of the meta-net's hidden layer


def make_meta_net(clip: FrozenCLIP) -> nn.Sequential:
    """The meta-net h, D -> D/16 -> d_t, from an image feature to a shift of all context vectors."""
    joint, hidden = clip.embed_dim, max(1, clip.embed_dim // REDUCTION)
    layers = {"linear1": nn.Linear(joint, hidden), "relu": nn.ReLU()}
    return nn.Sequential(OrderedDict(layers, linear2=nn.Linear(hidden, clip.text.width)))


@register("cocoop", paper="arXiv:2203.05557", trains=("text",), classifier="per_image", fidelity="code")
class CoCoOp(CoOp):
    """CoOp with a context conditioned on the image."""

    @dataclass
    class Config(CoOp.Config):
        """Settings, those of CoOp with the class name at the end.

        Attributes:
            image_chunk: images whose prompts are encoded at a time; None takes the whole batch.
        """

        ctx_init: str | None = "a photo of a"
        image_chunk: int | None = 8

    config: Config

    def setup(self) -> None:
        """Create the context (n, d_t) and the meta-net D -> D/16 -> d_t."""
        if self.config.class_specific or self.config.class_token_position != "end":
            raise VlpromptError(f"{self.method} has one context for all classes, with the class name at the end")
        super().setup()
        self.make_maps()

    def make_maps(self) -> None:
        """Create what makes contexts of images."""
        self.meta_net = make_meta_net(self.clip)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (B, C, D) for each normalised image feature v (B, D)."""
        if v is None:
            raise VlpromptError("cocoop's class features depend on each image, so there are none without one")
        ctx = self.prompt.ctx + self.meta_net(v).unsqueeze(1)  # (B, n, d_t)
        return self.prompt.encode(self.clip, self.tokens, ctx, self.config.text_chunk, edits=self.edits)
