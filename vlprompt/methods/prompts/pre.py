"""PRE: vision-language prompt learning with reparameterization encoder (Minh et al., 2023, arXiv:2309.07760).

Trained: CoOp's context and an encoder over its n tokens with a residual, ctx' = ctx + E(ctx). At
inference ctx' is a constant: ``bake`` gives the CoOp learner that it amounts to.
Protocols: few-shot, base-to-new.
Differs from the authors' code: encoders of each token's own are trained (theirs are left out of the optimiser); n = 1
and fp32 work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vlprompt.clip import FrozenCLIP
from vlprompt.learner import create_learner, register
from vlprompt.methods.prompts.coop import CoOp

BOTTLENECK = 64  # of the MLP encoder


class LSTMEncoder(nn.Module):
    """A bidirectional LSTM over the context's tokens, half the width each way."""

    def __init__(self, clip: FrozenCLIP):
        super().__init__()
        width = clip.text.width
        self.lstm_head = nn.LSTM(width, width // 2, bidirectional=True, batch_first=True)

    def forward(self, ctx: Tensor) -> Tensor:
        """Encode (n, d_t), or (C, n, d_t) set by set."""
        out: Tensor = self.lstm_head(ctx if ctx.dim() == 3 else ctx.unsqueeze(0))[0]
        return out if ctx.dim() == 3 else out[0]


class MLPEncoder(nn.Module):
    """A bottleneck MLP on each token."""

    def __init__(self, clip: FrozenCLIP):
        super().__init__()
        width = clip.text.width
        self.mlp = nn.Sequential(
            nn.Linear(width, BOTTLENECK), nn.ReLU(), nn.Linear(BOTTLENECK, width), nn.LayerNorm(width)
        )

    def forward(self, ctx: Tensor) -> Tensor:
        """Encode (…, n, d_t)."""
        out: Tensor = self.mlp(ctx)
        return out


class PerToken(nn.Module):
    """An encoder of each token's own."""

    def __init__(self, encoders: list[nn.Module]):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, ctx: Tensor) -> Tensor:
        """Encode (…, n, d_t) token by token."""
        tokens = ctx.split(1, dim=-2)
        return torch.cat([encode(token) for encode, token in zip(self.encoders, tokens, strict=True)], dim=-2)


@register("pre", paper="arXiv:2309.07760", trains=("text",), fidelity="code")
class PRE(CoOp):
    """CoOp with a context that an encoder reparameterizes while training."""

    published: ClassVar = CoOp.published | {"encoder.": "encoder_network."}

    @dataclass
    class Config(CoOp.Config):
        """Settings, as CoOp's.

        Attributes:
            encoder: ``lstm`` over the tokens, or an ``mlp`` on each.
            shared: one encoder for all tokens, or one each.
        """

        ctx_init: str | None = "a photo of a"
        encoder: Literal["lstm", "mlp"] = "lstm"
        shared: bool = True

    config: Config

    def setup(self) -> None:
        """Create the context (n, d_t) and its encoder d_t -> d_t."""
        super().setup()
        make = {"lstm": LSTMEncoder, "mlp": MLPEncoder}[self.config.encoder]
        if self.config.shared:
            self.encoder = make(self.clip)
        else:
            self.encoder = PerToken([make(self.clip) for _ in range(self.prompt.n_ctx)])

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
        settings = {key: getattr(config, key) for key in ("ctx_init", "class_token_position", "class_specific")}
        plain = create_learner(
            "coop", self.clip, self.class_names, templates=self.templates, n_ctx=self.prompt.n_ctx, **settings
        )
        assert isinstance(plain, CoOp)
        plain.prompt.ctx.copy_(self.encoded_ctx())
        return plain.eval()
