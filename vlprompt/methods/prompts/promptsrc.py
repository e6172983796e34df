"""PromptSRC: self-regulating prompts (Khattak et al., ICCV 2023, arXiv:2307.06948).

Trained: IVLP's prompts. The loss adds L1 distances to the frozen text features of an ensemble of templates (λ = 25) and
to the frozen image features of the same view (λ = 10), and KL(frozen ‖ prompted) of the logits. The final weights are a
Gaussian-weighted sum over all epochs.
Protocols: few-shot, base-to-new, cross-dataset, domain generalization.
Differs from the authors' code: only the learnables are aggregated, in fp32 (theirs averages the half-precision CLIP
too); templates are CLIP's 80 for ImageNet unless others are given (theirs is a list of 60).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlprompt.learner import register
from vlprompt.methods.prompts.ivlp import IVLP

TEACHER = "templates='imagenet80', normalise_first=False"


@register("promptsrc", paper="arXiv:2307.06948", trains=("text", "vision"), cacheable_images=False, fidelity="code")
class PromptSRC(IVLP):
    """Independent deep prompts, kept close to the frozen model in features and logits, and averaged over epochs."""

    @dataclass
    class Config(IVLP.Config):
        """Settings, those of IVLP with four tokens in nine blocks of each tower."""

        objective: list[str] = field(
            default_factory=lambda: [
                "ce",
                f"text_anchor(weight=25.0, distance='l1', {TEACHER})",
                "image_anchor(weight=10.0, distance='l1')",
                f"logit_kl({TEACHER})",
            ]
        )
        aggregator: str | None = "gpa(mean=15, std=1)"
        n_ctx: int = 4
        depth: int = 9
        vision_n_ctx: int = 4
        vision_depth: int = 9

    config: Config
