"""PRE: vision-language prompt learning with reparameterization encoder (Minh et al., 2023, arXiv:2309.07760).

Trained: CoOp's context and an encoder over its n tokens with a residual connection, ctx' = ctx + E(ctx). At inference
ctx' is a constant: ``bake`` returns the equivalent CoOp learner.
Protocols: few-shot, base-to-new.
Differs from the authors' code: separate encoders per token are trained (theirs are left out of the optimizer); n = 1
and fp32 work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlprompt.errors import VlpromptError
from vlprompt.learner import create_learner, register
from vlprompt.learner.contexts import EncoderKind, make_encoder
from vlprompt.methods.prompts.coop import CoOp


@register("pre", paper="arXiv:2309.07760", trains=("text",), fidelity="code")
class PRE(CoOp):
    """CoOp with a context that is reparameterized by an encoder in training."""

    published: ClassVar = CoOp.published | {"encoder.": "encoder_network."}

    @dataclass
    class Config(CoOp.Config):
        """Settings, those of CoOp and more.

        Attributes:
            encoder: ``lstm`` over the tokens, or an ``mlp`` on each.
            shared: use one encoder for all tokens instead of one each.
        """

        ctx_init: str | None = "a photo of a"
        encoder: EncoderKind = "lstm"
        shared: bool = True

    config: Config

    def setup(self) -> None:
        """Create the context (n, d_t) and its encoder d_t -> d_t."""
        super().setup()
        self.encoder = make_encoder(self.clip, self.config.encoder, self.prompt.n_ctx, self.config.shared)

    def encoded_ctx(self) -> Tensor:
        """ctx' = ctx + E(ctx), as ctx."""
        encoded: Tensor = self.prompt.ctx + self.encoder(self.prompt.ctx)
        return encoded

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D)."""
        return self.prompt.encode(self.clip, self.tokens, self.encoded_ctx(), self.config.text_chunk, edits=self.edits)[
            0
        ]

    @torch.no_grad()
    def bake(self) -> CoOp:
        """Return the CoOp learner whose context is ctx', a constant."""
        config = self.config
        if self.prompt.update is not None or self.edits:
            raise VlpromptError("pre with these settings changes more than its context, so no constant context is it")
        settings = {key: getattr(config, key) for key in ("ctx_init", "class_token_position", "class_specific")}
        plain = create_learner(
            "coop", self.clip, self.class_names, templates=self.templates, n_ctx=self.prompt.n_ctx, **settings
        )
        assert isinstance(plain, CoOp)
        plain.prompt.ctx.copy_(self.encoded_ctx())
        return plain.eval()
