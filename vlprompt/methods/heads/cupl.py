"""CuPL: what does a platypus look like? Generating customized prompts (Pratt et al., ICCV 2023, arXiv:2209.03320).

Computed: class features averaged over sentences about each class, written by a language model
(``descriptions=FILE``); with ``texts=both`` the dataset's templates are included as further sentences.
Protocols: zero-shot, on any classes that have sentences.
Differs from the authors' code: in nothing; as theirs, it truncates sentences that are too long. Class names used as
keys in their files are matched to the published ones, or refused one by one (``datasets_registry.descriptions``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from datasets_registry.descriptions import DESCRIPTION_SETS
from vlprompt.learner import register
from vlprompt.methods.zero_shot import ZeroShot


@register("cupl", paper="arXiv:2209.03320", labels="none", fidelity="code")
class CuPL(ZeroShot):
    """Zero-shot with sentences that describe each class."""

    @dataclass
    class Config(ZeroShot.Config):
        """Settings; a run needs ``descriptions``, and a learner without them uses the templates.

        Attributes:
            texts: only the sentences, or both sentences and templates, all with equal weight.
        """

        texts: Literal["sentences", "both"] = "sentences"

    by_name: ClassVar = False  # sentences are of classes
    config: Config

    @classmethod
    def lacks(cls, config: Any) -> str:
        """Without sentences it would be zero-shot under another name."""
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
