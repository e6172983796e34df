"""Zero-shot CLIP (Radford et al., ICML 2021, arXiv:2103.00020): hand-written templates, nothing learnt.

Source: §3.1.4 of the paper ("Prompt engineering and ensembling"); features of several templates are normalised,
averaged and normalised again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlprompt.learner import PromptLearner, register


@register("zero_shot", paper="arXiv:2103.00020", labels="none")
class ZeroShot(PromptLearner):
    """CLIP's zero-shot classifier, with one template or an ensemble of them."""

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            template: templates to average over, each with one ``{}``; None takes the dataset's own.
        """

        template: list[str] | None = None

    def setup(self) -> None:
        """Learn nothing."""

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D)."""
        return self.frozen_text(self.config.template)
