"""KgCoOp: visual-language prompt tuning with knowledge-guided context optimization (Yao et al., CVPR 2023).

Trained: CoOp's context. The loss adds λ(1 - cos) between learnt and hand-written class features (as the code
has it; the paper writes a squared distance, twice that strength).
Protocols: few-shot, base-to-new, cross-dataset, domain generalization.
Differs from the authors' code: fp32 throughout; no dead parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlprompt.learner import register
from vlprompt.methods.prompts.coop import CoOp


@register("kgcoop", paper="arXiv:2303.13283", trains=("text",), fidelity="code")
class KgCoOp(CoOp):
    """CoOp held near the hand-written prompts."""

    @dataclass
    class Config(CoOp.Config):
        """Settings, as CoOp's; the anchor's templates are the dataset's own unless it names others."""

        objective: list[str] = field(default_factory=lambda: ["ce", "text_anchor(weight=8.0)"])
        ctx_init: str | None = "a photo of a"

    config: Config
