"""CoOp: learning to prompt for vision-language models (Zhou et al., IJCV 2022, arXiv:2109.01134).

Trained: n context vectors that replace "a photo of a", shared by all classes or separate for each.
Protocols: few-shot, base-to-new, cross-dataset, domain generalization (only the first when class-specific).
Differs from the authors' code: the context is fp32 (theirs is fp16); ``ctx_init`` does not silently turn a
class-specific context off, but initializes the context of every class; the prefix is encoded once for all classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from vlprompt.learner import PromptLearner, register
from vlprompt.learner.attributes import AttributeSettings
from vlprompt.learner.facts import Facts
from vlprompt.learner.prompts import TextPrompt


@register("coop", paper="arXiv:2109.01134", trains=("text",), fidelity="code")
class CoOp(PromptLearner):
    """Context optimization: learnt vectors in place of the words around the class name."""

    published: ClassVar = {"prompt.ctx": "ctx"}

    @dataclass
    class Config(AttributeSettings, PromptLearner.Config):
        """Settings.

        Attributes:
            n_ctx: number of learnt tokens; None uses as many as ``ctx_init`` has, or 16.
            ctx_init: phrase to initialize the context with, such as "a photo of a"; None draws from N(0, 0.02²).
            class_token_position: position of the class name.
            class_specific: learn a separate context per class (CSC), which cannot score new classes.
        """

        n_ctx: int | None = None
        ctx_init: str | None = None
        class_token_position: Literal["end", "middle", "front"] = "end"
        class_specific: bool = False

    config: Config

    def setup(self) -> None:
        """Create the context: (n, d_t), or (C, n, d_t) when class-specific."""
        config = self.config
        self.prompt = TextPrompt(
            self.clip,
            config.n_ctx,
            config.ctx_init,
            config.class_token_position,
            n_classes=len(self.class_names) if config.class_specific else None,
            attributes=config,
        )

    def prepare_classes(self) -> None:
        """Tokenize the class prompts."""
        self.tokens = self.prompt.tokenize(self.clip, self.class_names)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D)."""
        return self.prompt.encode(self.clip, self.tokens, chunk=self.config.text_chunk, edits=self.edits)[0]

    @classmethod
    def facts_of(cls, config: Config) -> Facts:
        """A class-specific context is bound to its classes."""
        return replace(cls.registered, new_classes=cls.registered.new_classes and not config.class_specific)
