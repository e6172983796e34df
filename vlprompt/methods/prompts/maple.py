"""MaPLe: multi-modal prompt learning (Khattak et al., CVPR 2023, arXiv:2210.03117).

Trained: text prompts P_i in the first J blocks, and coupling functions F_i that map them to visual prompts,
P̃_i = F_i(P_i), so that the image tower's gradient reaches the text prompts.
Protocols: few-shot, base-to-new, cross-dataset, domain generalization.
Differs from the authors' code: all learnables fp32 (theirs mixes fp16 and fp32), widths read from the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlprompt.learner import PromptLearner, register
from vlprompt.learner.attributes import AttributeSettings
from vlprompt.learner.objectives import Batch
from vlprompt.learner.prompts import Coupling, TextPrompt


@register("maple", paper="arXiv:2210.03117", trains=("text", "vision"), cacheable_images=False, fidelity="code")
class MaPLe(PromptLearner):
    """Deep text prompts, and visual prompts coupled to them by linear maps."""

    published: ClassVar = {
        "prompt.ctx": "ctx",
        "prompt.deep.{i}": "compound_prompts_text.{i}",
        "coupling.maps.0.": "proj.",
        "coupling.maps.{i}.": "compound_prompt_projections.{i-1}.",
    }

    @dataclass
    class Config(AttributeSettings, PromptLearner.Config):
        """Settings.

        Attributes:
            n_ctx: learnt tokens in each prompted block of both towers.
            ctx_init: phrase whose first tokens initialize the context; None is random.
            depth: number J of prompted blocks in both towers.
        """

        n_ctx: int = 2
        ctx_init: str | None = "a photo of a"
        depth: int = 9

    config: Config

    def setup(self) -> None:
        """Create the text prompts, J times (n, d_t), and the coupling functions, J times d_t -> d_v."""
        config = self.config
        self.clip.require(text=config.depth, vision=config.depth)
        self.prompt = TextPrompt(self.clip, config.n_ctx, config.ctx_init, depth=config.depth, attributes=config)
        self.coupling = Coupling(self.clip, config.depth)

    def prepare_classes(self) -> None:
        """Tokenize the class prompts."""
        self.tokens = self.prompt.tokenize(self.clip, self.class_names)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D)."""
        return self.prompt.encode(self.clip, self.tokens, chunk=self.config.text_chunk, edits=self.edits)[0]

    def encode_images(self, batch: Batch) -> Tensor:
        """Features (B, D) of images seen with the coupled tokens."""
        visual = self.coupling([self.prompt.ctx, *self.prompt.deep])
        return self.clip.prompted_image_features(batch["image"], visual, edits=self.edits)
