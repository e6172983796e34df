"""IVLP: independent vision-language prompting, the baseline of MaPLe (arXiv:2210.03117) and PromptSRC (2307.06948).

Trained: context and deep prompts in the text tower, and tokens in the image tower, without coupling. With n_ctx = 2 the
words "of a" stay fixed after the two learnt tokens. ``vision_depth=0`` prompts the text tower only.
Protocols: few-shot, base-to-new, cross-dataset, domain generalization.
Differs from the authors' code: fp32 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from vlprompt.learner import PromptLearner, register
from vlprompt.learner.attributes import AttributeSettings
from vlprompt.learner.facts import Facts
from vlprompt.learner.objectives import Batch
from vlprompt.learner.prompts import TextPrompt, VisualPrompt


@register("ivlp", paper="arXiv:2210.03117", trains=("text", "vision"), cacheable_images=False, fidelity="code")
class IVLP(PromptLearner):
    """Deep prompts in both towers, learnt independently."""

    published: ClassVar = {
        "prompt.ctx": "text_prompts.0",
        "prompt.deep.{i}": "text_prompts.{i+1}",
        "visual_prompt.tokens.{i}": "visual_prompts.{i}",
    }

    @dataclass
    class Config(AttributeSettings, PromptLearner.Config):
        """Settings.

        Attributes:
            n_ctx: learnt text tokens in each prompted block.
            ctx_init: phrase whose first tokens initialize the context; None, or n_ctx larger than its length, is
                random.
            depth: number of prompted text blocks.
            vision_n_ctx: learnt visual tokens in each prompted block.
            vision_depth: number of prompted image blocks; 0 leaves the image tower alone.
        """

        n_ctx: int = 2
        ctx_init: str | None = "a photo of a"
        depth: int = 12
        vision_n_ctx: int = 2
        vision_depth: int = 12

    config: Config

    def setup(self) -> None:
        """Create the prompts: J_t times (n_t, d_t), J_v times (n_v, d_v)."""
        config = self.config
        self.prompt = TextPrompt(self.clip, config.n_ctx, config.ctx_init, depth=config.depth, attributes=config)
        if config.vision_depth:
            self.visual_prompt = VisualPrompt(self.clip, config.vision_n_ctx, config.vision_depth)

    @classmethod
    def facts_of(cls, config: Config) -> Facts:
        """Language-only prompting leaves the image tower untouched."""
        if config.vision_depth:
            return cls.registered
        return replace(cls.registered, trains=frozenset({"text"}), cacheable_images=True)

    def prepare_classes(self) -> None:
        """Tokenize the class prompts."""
        self.tokens = self.prompt.tokenize(self.clip, self.class_names)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D)."""
        return self.prompt.encode(self.clip, self.tokens, chunk=self.config.text_chunk, edits=self.edits)[0]

    def encode_images(self, batch: Batch) -> Tensor:
        """Features (B, D) of images seen with the learnt tokens."""
        if not self.config.vision_depth:
            return super().encode_images(batch)
        return self.visual_prompt.encode(self.clip, batch["image"], self.edits)
