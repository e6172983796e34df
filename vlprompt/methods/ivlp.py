"""IVLP: independent vision-language prompting, the baseline of MaPLe (arXiv:2210.03117) and PromptSRC (2307.06948).

Trained: context and deep prompts in the text tower, tokens in the image tower, without coupling. With n_ctx = 2 the
words "of a" stay fixed behind the two learnt tokens. Language-only is ``vision_depth=0``.
Protocols: few-shot, base-to-new, cross-dataset, domain generalization.
Differs from the authors' code: fp32 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlprompt.learner import PromptLearner, register
from vlprompt.prompts import TextPrompt, VisualPrompt


@register("ivlp", paper="arXiv:2210.03117", trains=("text", "vision"), cacheable_images=False)
class IVLP(PromptLearner):
    """Deep prompts in both towers, learnt independently."""

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            n_ctx: learnt text tokens in each prompted block.
            ctx_init: a phrase whose first tokens the context starts from; None, or more than its tokens, is random.
            depth: prompted text blocks.
            vision_n_ctx: learnt visual tokens in each prompted block.
            vision_depth: prompted image blocks; 0 leaves the image tower alone.
        """

        n_ctx: int = 2
        ctx_init: str | None = "a photo of a"
        depth: int = 12
        vision_n_ctx: int = 2
        vision_depth: int = 12

    def setup(self) -> None:
        """Create the prompts: J_t times (n_t, d_t), J_v times (n_v, d_v)."""
        config = self.config
        self.prompt = TextPrompt(self.clip, config.n_ctx, config.ctx_init, depth=config.depth)
        if config.vision_depth:
            self.visual_prompt = VisualPrompt(self.clip, config.vision_n_ctx, config.vision_depth)

    @property
    def cacheable_images(self) -> bool:
        """Language-only prompting leaves the image tower untouched."""
        return self.config.vision_depth == 0

    def prepare_classes(self) -> None:
        """Tokenize the class prompts."""
        self.tokens = self.prompt.tokenize(self.clip, self.class_names)

    def encode_text(self) -> Tensor:
        """Class features (C, D)."""
        return self.prompt.encode(self.clip, self.tokens, chunk=self.config.text_chunk)[0]

    def encode_images(self, images: Tensor) -> Tensor:
        """Features (B, D) of images seen with the learnt tokens."""
        if self.cacheable_images:
            return super().encode_images(images)
        return self.visual_prompt.encode(self.clip, images)

    def published_names(self) -> dict[str, str]:
        """The authors' name of each learnable tensor."""
        text = {f"prompt.deep.{i}": f"text_prompts.{i + 1}" for i in range(self.config.depth - 1)}
        vision = {f"visual_prompt.tokens.{i}": f"visual_prompts.{i}" for i in range(self.config.vision_depth)}
        return {"prompt.ctx": "text_prompts.0"} | text | vision
