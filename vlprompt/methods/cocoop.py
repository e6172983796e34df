"""CoCoOp: conditional prompt learning (Zhou et al., CVPR 2022, arXiv:2203.05557).

Trained: CoOp's context v_m and a meta-net h that adds an image-conditioned token to each of them, v_m(x) = v_m + h(x):
B·C prompts a batch.
Protocols: base-to-new, cross-dataset, domain generalization.
Differs from the authors' code: fp32 throughout; the prompts of a batch share one pass, with each image's prefix
computed once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.methods.coop import CoOp
from vlprompt.objectives import Outputs

REDUCTION = 16  # of the meta-net's hidden layer, from the joint width


@register("cocoop", paper="arXiv:2203.05557", trains=("text",), per_image=True)
class CoCoOp(CoOp):
    """CoOp with a context that is conditioned on the image."""

    @dataclass
    class Config(CoOp.Config):
        """Settings, as CoOp's with the class name at the end.

        Attributes:
            image_chunk: images whose prompts are encoded at a time; None takes a whole batch.
        """

        ctx_init: str | None = "a photo of a"
        image_chunk: int | None = 8

    def setup(self) -> None:
        """Create the context (n, d_t) and the meta-net D -> D/16 -> d_t."""
        if self.config.class_specific or self.config.class_token_position != "end":
            raise VlpromptError("cocoop has one context for all classes, with the class name at the end")
        super().setup()
        joint, hidden = self.clip.embed_dim, max(1, self.clip.embed_dim // REDUCTION)
        layers = {"linear1": nn.Linear(joint, hidden), "relu": nn.ReLU()}
        self.meta_net = nn.Sequential(OrderedDict(layers, linear2=nn.Linear(hidden, self.clip.text.width)))

    def outputs(self, image_features: Tensor) -> Outputs:
        """Score image features (B, D), each against class features of its own."""
        v = F.normalize(image_features.to(self.clip.device), dim=-1)
        parts = v.split(self.config.image_chunk or len(v))
        if torch.is_grad_enabled() and len(parts) > 1:
            t = torch.cat([checkpoint(self.conditional_text_features, part, use_reentrant=False) for part in parts])
        elif len(parts) > 1:  # evaluation streams: no more than one chunk's class features live at a time
            logits = torch.cat([self.clip.similarity(p, self.conditional_text_features(p)) for p in parts])
            return Outputs(v, torch.empty(0), logits)
        else:
            t = self.conditional_text_features(v)
        return Outputs(v, t, self.clip.similarity(v, t))

    def conditional_text_features(self, v: Tensor) -> Tensor:
        """Normalised class features (B, C, D) for each normalised image feature (B, D)."""
        ctx = self.prompt.ctx + self.meta_net(v).unsqueeze(1)  # (B, n, d_t)
        return F.normalize(self.prompt.encode(self.clip, self.tokens, ctx, self.config.text_chunk), dim=-1)

    def encode_text(self) -> Tensor:
        """Refused: there is no classifier without an image."""
        raise VlpromptError("cocoop's class features depend on each image, so it has no (C, D) classifier matrix")

    def published_names(self) -> dict[str, str]:
        """The authors' name of each learnable tensor."""
        return {"prompt.ctx": "ctx"} | {
            name: name for name, _ in self.named_parameters() if name.startswith("meta_net")
        }
