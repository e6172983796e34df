"""VPT: visual prompt tuning (Jia et al., ECCV 2022, arXiv:2203.12119) as applied in the MaPLe repository.

Trained: n tokens next to the patches, in the first block (shallow) or in the first J (deep).
The text is "a photo of a {class}." for every dataset, encoded once.
Protocols: few-shot, base-to-new, cross-dataset, domain generalization.
Differs from the authors' code: prompts stay in fp32 instead of being cast to fp16 and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.learner import PromptLearner, register
from vlprompt.learner.objectives import Batch
from vlprompt.learner.prompts import VisualPrompt


@register("vpt", paper="arXiv:2203.12119", trains=("vision",), cacheable_images=False, fidelity="code")
class VPT(PromptLearner):
    """Visual prompt tuning: learnt tokens next to the image patches."""

    published: ClassVar = {"prompt.tokens.{i}": "visual_prompts.{i}"}

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            n_ctx: number of tokens in each prompted block.
            depth: number J of prompted blocks; 1 is shallow.
            place: where the first tokens enter, before or after the norm in front of the blocks.
            template: template of the fixed text.
        """

        n_ctx: int = 8
        depth: int = 12
        place: Literal["pre_ln", "post_ln"] = "pre_ln"
        template: str = DEFAULT_TEMPLATE

    config: Config

    def setup(self) -> None:
        """Create the tokens: J times (n, d_v)."""
        self.prompt = VisualPrompt(self.clip, self.config.n_ctx, self.config.depth, self.config.place)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D), fixed."""
        return self.class_text(self.config.template)

    def encode_images(self, batch: Batch) -> Tensor:
        """Features (B, D) of images seen with the learnt tokens."""
        return self.prompt.encode(self.clip, batch["image"], self.edits)
