"""PANDA: prompt transfer meets knowledge distillation (Zhong et al., 2022, arXiv:2208.10160), for CLIP's text context.

Trained: CoOp's context, from a start of its own. Three steps: a prompt of a source task; that prompt tuned on the
target (``method=coop init_from=SOURCE``), the teacher; then ``method=panda teacher=RUN``, whose loss is cross-entropy
plus 0.1·β·MSE of the student's and the teacher's logits, β = 0.1. Step two alone is the paper's vanilla transfer.
Protocols: few-shot, base-to-new.
Differs from the authors' code, which is for language models: the mean squared difference is not divided by the batch
once more, the teacher is in evaluation mode, and β is fixed. ``vlprompt.analysis.transferability`` compares prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vlprompt.learner import register
from vlprompt.methods.prompts.coop import CoOp


@register("panda", paper="arXiv:2208.10160", trains=("text",))
class PANDA(CoOp):
    """CoOp that is taught by a prompt which came from a source task."""

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
        """A teacher."""
        if config.teacher is not None:
            return ""
        return "is taught by a prompt of a source task that was tuned on the target: say teacher=RUN"
