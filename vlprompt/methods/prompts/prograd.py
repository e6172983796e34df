"""ProGrad: prompt-aligned gradient for prompt tuning (Zhu et al., ICCV 2023, arXiv:2205.14865).

Trained: CoOp's context. The component of the cross-entropy's gradient that conflicts with the gradient of the
distillation loss is removed; the distillation loss itself is never added.
Protocols: few-shot, base-to-new, domain generalization.
Differs from the authors' code: fp32; image features are computed once per step; no division by a zero gradient. As in
theirs, a phrase shorter than the context leaves zeros in the leading positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from vlprompt.learner import register
from vlprompt.learner.prompts import TextPrompt
from vlprompt.methods.prompts.coop import CoOp


@register("prograd", paper="arXiv:2205.14865", trains=("text",), fidelity="code")
class ProGrad(CoOp):
    """CoOp without the gradient components that conflict with the zero-shot model."""

    @dataclass
    class Config(CoOp.Config):
        """Settings, those of CoOp with sixteen tokens; a shorter ``ctx_init`` fills the last of them."""

        objective: list[str] = field(default_factory=lambda: ["ce", "distillation(weight=0.0)"])
        gradient_rule: str | None = "prograd(weight=1.0)"
        n_ctx: int | None = 16

    config: Config

    def setup(self) -> None:
        """Create the context (n, d_t), with zeros before the phrase if that is shorter."""
        config = self.config
        words = self.clip.word_embeddings(config.ctx_init) if config.ctx_init else None
        if words is None or config.n_ctx is None or config.n_ctx <= len(words):
            super().setup()
            return
        classes = len(self.class_names) if config.class_specific else None
        place = config.class_token_position
        self.prompt = TextPrompt(self.clip, config.n_ctx, None, place, n_classes=classes, attributes=config)
        with torch.no_grad():
            self.prompt.ctx.zero_()
            self.prompt.ctx[..., -len(words) :, :] = words.cpu()
