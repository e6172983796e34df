"""What heads share that start from a text classifier: zero-shot's, or a saved learner's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vlprompt.errors import VlpromptError
from vlprompt.learner.objectives import Objective
from vlprompt.learner.teacher import SavedTeacher
from vlprompt.methods.zero_shot import ZeroShot


class OnText(ZeroShot):
    """A head on zero-shot's class features or, with ``teacher=``, on those of a saved learner."""

    @classmethod
    def asks_teacher(cls, objectives: Sequence[Objective]) -> bool:
        """A saved learner stands in zero-shot's place."""
        return True

    @property
    def predicts_with_teacher(self) -> bool:
        """Whether it stands on a saved learner."""
        return self.config.teacher is not None

    @property
    def beneath(self) -> SavedTeacher | None:
        """The saved learner that this head stands on; None for zero-shot.

        Raises:
            VlpromptError: it was not loaded with the head.
        """
        if self.config.teacher is not None and self.taught_by is None:
            raise VlpromptError(
                f"this {self.method} stands on the learner {self.config.teacher}, which was not loaded with it: "
                "vlprompt.saving.teacher.teach(head, place) gives it back"
            )
        return self.taught_by

    @property
    def has_class_features(self) -> bool:
        """Whether all that it stands on are class features beside the frozen model's image features."""
        return self.beneath is None or self.beneath.has_class_features

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D) of the saved learner, or of zero-shot."""
        beneath = self.beneath
        if beneath is None:
            return super().encode_text(v)
        if not beneath.has_class_features:
            raise VlpromptError(
                f"{self.method} needs class features that stand beside the frozen model's image features, and the "
                f"learner {beneath.name} scores in another way"
            )
        return beneath.text_features(self.class_names)
