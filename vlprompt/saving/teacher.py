"""``teacher=``: a saved learner as a teacher, with its own backbone, transform and logit scale."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vlprompt.errors import VlpromptError
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.saved_teacher import LearnerTeacher as LearnerTeacher
from vlprompt.saving.folder import load_saved


def load_teacher(place: str | os.PathLike[str], student: PromptLearner) -> LearnerTeacher:
    """Load a saved learner as a student's teacher; it shares the student's frozen model if that is its backbone.

    Args:
        place: a run's folder, a saved learner's, or ``hf://user/name``.
        student: the teacher must be able to score its classes.

    Raises:
        VlpromptError: there is no learner, it cannot score the classes, or the student had another teacher before.
    """
    teacher = load_saved(place, student.clip, student.class_names, "teacher")
    before = student.taught_by_identity
    if before is not None and before != teacher.identity:
        raise VlpromptError(
            f"{place} is not the teacher that this learner had: {_say(before)}, and not {_say(teacher.identity)}"
        )
    return teacher


def teach(student: PromptLearner, place: str | os.PathLike[str]) -> None:
    """Give a student a teacher, for example one that was loaded to be trained further.

    Args:
        student: it saves the identity of its teacher, and accepts no other later.
        place: as in ``load_teacher``.

    Raises:
        VlpromptError: as ``load_teacher``.
    """
    student.taught_by = load_teacher(place, student)
    student.taught_by_identity = student.taught_by.identity


def _say(identity: Mapping[str, Any]) -> str:
    """A teacher in an error."""
    return (
        f"{identity.get('method')} of {str(identity.get('sha256'))[:8]} on weights {str(identity.get('weights'))[:8]}"
    )
