"""Zero-shot CLIP (Radford et al., ICML 2021, arXiv:2103.00020): hand-written templates, nothing learnt.

Source: §3.1.4 of the paper ("Prompt engineering and ensembling"); features of several templates are normalised,
averaged and normalised again. With descriptions=FILE, sentences about each class replace the templates (CuPL: Pratt et
al., ICCV 2023, arXiv:2209.03320).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner, register
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.objectives import Objective


@register("zero_shot", paper="arXiv:2103.00020", labels="none")
class ZeroShot(PromptLearner):
    """CLIP's zero-shot classifier, with one template or an ensemble of them."""

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            template: templates to average over, each with one ``{}``; None uses the dataset's own. ``descriptions``
                replace them; a loaded learner reads that file again only as part of the user's own run.
        """

        template: list[str] | None = None

    config: Config

    def setup(self) -> None:
        """Learn nothing."""
        if self.config.template is not None and self.config.descriptions is not None:
            raise VlpromptError(f"{self.method} takes its texts from template or from descriptions: give one of them")
        if self.config.names and self.config.descriptions is not None:
            raise VlpromptError(f"{self.method} says descriptions in place of names: give names or descriptions")

    @property
    def follows_templates(self) -> bool:
        """If no texts are set."""
        return self.config.template is None and self.config.descriptions is None

    @classmethod
    def reads_descriptions(cls, objectives: Sequence[Objective]) -> bool:
        """Class features are made from descriptions, if there are any."""
        return True

    def learn(self, feed: Feed, train: Train) -> None:
        """Learn nothing."""

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D)."""
        if self.config.descriptions is not None:
            return self.teacher.described(self.class_names, self.config.descriptions)
        return self.class_text(self.config.template)
