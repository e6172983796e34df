"""KgCoOp: visual-language prompt tuning with knowledge-guided context optimization (Yao et al., CVPR 2023).

Trained: CoOp's context. The loss adds λ(1 - cos) between learnt and hand-written class features (as in the authors'
code; the paper has a squared distance, which is twice that).
Protocols: few-shot, base-to-new, cross-dataset, domain generalization.
Differs from the authors' code: fp32 throughout; no unused parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlprompt.learner import register
from vlprompt.methods.prompts.coop import CoOp


@register("kgcoop", paper="arXiv:2303.13283", trains=("text",), fidelity="code")
class KgCoOp(CoOp):
    """CoOp kept close to the hand-written prompts."""

    @dataclass
    class Config(CoOp.Config):
        """Settings, those of CoOp; the anchor uses the dataset's templates unless it names others."""

        objective: list[str] = field(default_factory=lambda: ["ce", "text_anchor(weight=8.0)"])
        ctx_init: str | None = "a photo of a"

    config: Config
