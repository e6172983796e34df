"""CLIP-LoRA: low-rank few-shot adaptation of vision-language models (Zanella & Ben Ayed, 2024, arXiv:2405.18541).

Trained: updates s·B·A of the query, key and value maps in every block of both towers, with s = α/√r and one text
template. B starts at zero, so training starts from zero-shot CLIP. An exported learner has the updates merged into its
weights.
Protocols: few-shot, base-to-new.
Differs from the authors' code: fp32; the output projection can be updated too; a token that all class prompts share is
encoded once for all of them, with one draw of the dropout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from vlprompt.learner import PromptLearner, register
from vlprompt.learner.editing import LoRASetting, Where
from vlprompt.learner.facts import Facts


@register("clip_lora", paper="arXiv:2405.18541", trains=("text", "vision"), cacheable_images=False, fidelity="code")
class CLIPLoRA(PromptLearner):
    """Low-rank updates of the attention maps in both towers."""

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            tower: text, vision or both.
            rank: rank r of the updates.
            alpha: α in the scale s = α/√r.
            maps: attention maps to update, of q, k, v and o.
            dropout: dropout rate on the input of A, in training.
            template: text template; None uses the first of the dataset that is trained or tested on.
        """

        tower: Where = "both"
        rank: int = 2
        alpha: float = 1.0
        maps: str = "qkv"
        dropout: float = 0.0
        template: str | None = None

    config: Config

    def setup(self) -> None:
        """Create the updates: A (L, r, d) and B (L, d, r) for each map and tower."""
        c = self.config
        made = LoRASetting(c.tower, c.rank, c.alpha, c.maps, dropout=c.dropout).made(self.clip)
        self.lora = nn.ModuleList(made)
        self.edits.extend(made)

    @classmethod
    def facts_of(cls, config: Any) -> Facts:
        """Towers without updates are not trained."""
        if config.tower == "both":
            return cls.registered
        return replace(cls.registered, trains=frozenset({config.tower}), cacheable_images=config.tower == "text")

    @property
    def _template(self) -> str:
        return self.config.template or self.templates[0]

    @property
    def follows_templates(self) -> bool:
        """If no template is set."""
        return self.config.template is None

    def prepare_classes(self) -> None:
        """Tokenize the template with each class name."""
        if "text" in self.facts.trains:
            self.prompts = self.clip.prompts_of_classes(self.class_names, self._template)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D)."""
        if "text" not in self.facts.trains:
            return self.class_text(self._template)
        return self.clip.encode_prompts(self.prompts, self.config.text_chunk, self.edits)[0]
