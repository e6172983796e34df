"""PANDA: prompt transfer meets knowledge distillation (Zhong et al., 2022, arXiv:2208.10160), for CLIP's text context.

Trained: CoOp's context, from its own initialization, in three steps: a prompt for a source task; that prompt tuned on
the target (``method=coop init_from=SOURCE``), which is the teacher; then ``method=panda teacher=RUN``, with the loss
cross-entropy plus 0.1·β·MSE of the student's and the teacher's logits, β = 0.1. Steps one and two alone are the paper's
vanilla transfer.
Protocols: few-shot, base-to-new.
Differs from the authors' code, which is for language models: the mean squared difference is not divided by the batch
size a second time, the teacher is in evaluation mode, and β is fixed. ``vlprompt.analysis.transferability`` compares
prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vlprompt.learner import register
from vlprompt.methods.prompts.coop import CoOp


@register("panda", paper="arXiv:2208.10160", trains=("text",))
class PANDA(CoOp):
    """CoOp taught by a prompt that was transferred from a source task."""

    @dataclass
    class Config(CoOp.Config):
        """Settings.

        Attributes:
            objective: cross-entropy, and the squared difference from the teacher's logits.
        """

        objective: list[str] = field(default_factory=lambda: ["ce", "logit_mse(weight=0.01)"])

    config: Config

    @classmethod
    def lacks(cls, config: Any) -> str:
        """A teacher, which the setting ``teacher`` names."""
        if config.teacher is not None:
            return ""
        return "is taught by a prompt of a source task that was tuned on the target: say teacher=RUN"
