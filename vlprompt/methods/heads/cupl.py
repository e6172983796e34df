"""CuPL: what does a platypus look like? Generating customized prompts (Pratt et al., ICCV 2023, arXiv:2209.03320).

Computed: class features that are means over sentences about each class, which a language model wrote
(``descriptions=FILE``); with ``texts=both`` the dataset's templates are sentences like the others.
Protocols: zero-shot, on any classes that have sentences.
Differs from the authors' code: in nothing; sentences that are longer than the context are cut, as theirs are. Keys of
their files find the published class names, or are refused one by one (``datasets_registry.descriptions``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from datasets_registry.descriptions import DESCRIPTION_SETS
from vlprompt.learner import register
from vlprompt.methods.zero_shot import ZeroShot


@register("cupl", paper="arXiv:2209.03320", labels="none", fidelity="code")
class CuPL(ZeroShot):
    """Zero-shot by sentences about each class."""

    @dataclass
    class Config(ZeroShot.Config):
        """Settings; ``descriptions`` are needed in a run, and without them a learner's texts are the templates.

        Attributes:
            texts: the sentences alone, or both these and the templates, every sentence with equal weight.
        """

        texts: Literal["sentences", "both"] = "sentences"

    config: Config

    @classmethod
    def lacks(cls, config: Any) -> str:
        """A run without sentences would be zero-shot by another name."""
        if config.descriptions is not None:
            return ""
        return (
            "classifies by sentences about each class: say descriptions=FILE, a JSON file {class: [sentences]}, or one "
            f"of the package's sets, {', '.join(DESCRIPTION_SETS)}"
        )

    def setup(self) -> None:
        """Learn nothing."""

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D)."""
        templates = self.templates if self.config.template is None else self.config.template
        if self.config.descriptions is None:
            return self.frozen_text(templates)
        added = templates if self.config.texts == "both" else ()
        return self.teacher.described(self.class_names, self.config.descriptions, added, cut=True)
