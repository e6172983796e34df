"""Heads that start from class features: those of the frozen model or of a saved learner (``text=``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner
from vlprompt.learner.facts import Facts
from vlprompt.learner.teacher import SavedTeacher
from vlprompt.methods.zero_shot import ZeroShot


class OnText(PromptLearner):
    """A head that starts from class features."""

    takes_probabilities: ClassVar[bool] = False  # of a learner that has no class features
    by_name: ClassVar = False

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            text: a saved learner, the folder of a run or ``hf://user/name`` whose class features replace the frozen
                model's, and its image features too if it prompts the image tower.
        """

        text: str | None = None

    config: Config

    @classmethod
    def builds_on(cls, config: Any) -> str | None:
        """The learner that the setting ``text`` names."""
        place: str | None = config.text
        others = ["template", "names", *(["descriptions"] if cls.reads_descriptions(()) else [])]
        said = [key for key in others if getattr(config, key, None) is not None]
        if place is not None and said:
            raise VlpromptError(f"{cls.method} takes its texts from {said[0]} or from text: give one of them")
        return place

    @classmethod
    def facts_on(cls, built_on: SavedTeacher, facts: Facts) -> Facts:
        """Facts of the head on a saved learner, which must have class features."""
        if built_on.lacks and not cls.takes_probabilities:
            raise VlpromptError(
                f"{cls.method} starts from class features (C, D) to compare with image features, and the learner "
                f"{built_on.name} {built_on.lacks}: use another, such as CoOp or MaPLe on this backbone"
            )
        return super().facts_on(built_on, facts)

    def start_text(self, normalise_first: bool = True, normalise_last: bool = True) -> Tensor:
        """Class features (C, D) to start from: zero-shot's over the dataset's templates, or the saved learner's.

        Args:
            normalise_first: whether zero-shot's are normalised before the mean over templates.
            normalise_last: whether they are normalised; else the saved learner's too have the lengths of zero-shot's,
                on which what learning rates and constraints mean depends.
        """
        if self.built_on is None:
            return self.frozen_text(None, normalise_first, normalise_last)
        t = self.built_on.text_features(self.learnt_names)
        if normalise_last:
            return t
        lengths: Tensor = self.frozen_text(None, normalise_first, normalise_last=False).norm(dim=1, keepdim=True)
        return F.normalize(t, dim=-1) * lengths


class BesideText(OnText):
    """A head that scores with class features without changing them."""

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D): zero-shot's over the dataset's templates, or the saved learner's."""
        return self.start_text()

    def text_features(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D), as the saved learner scores with them, or normalised."""
        return super().text_features(v) if self.built_on is None else self.encode_text(v)


class BesideZeroShot(BesideText, ZeroShot):
    """The same, with the settings of zero-shot."""

    @dataclass
    class Config(BesideText.Config, ZeroShot.Config):
        """Settings, those of zero-shot and of all heads."""

    config: Config

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D) of zero-shot, or of the saved learner."""
        return ZeroShot.encode_text(self, v) if self.built_on is None else self.start_text()
