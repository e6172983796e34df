"""Saving and loading a classifier: a saved learner, with the labels of its classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted
from typing_extensions import Self

from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.errors import VlpromptError
from vlprompt.estimator.answers import settings_of_answers
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.held_out import Search
from vlprompt.saving.description import read_description
from vlprompt.saving.folder import find_saved, load_learner
from vlprompt.saving.hub import PREFIX, fetch

# keys of the metadata that is saved with the learner: a label for each class, and which images are answered
LABELS, ANSWERS = "labels", "answers"
ANSWERING = ("calibrate", "min_probability", "coverage", "unsure")


class Kept:
    """Saving and loading of a ``PromptClassifier``."""

    learner_: PromptLearner
    classes_: np.ndarray
    history_: list[dict[str, Any]]
    searches_: list[Search]
    pseudo_labels_: list[dict[str, np.ndarray]]

    def save_pretrained(self, path: str | os.PathLike[str]) -> Path:
        """Save to a folder, created if needed: the learner (kilobytes), the labels and the thresholds for answering.

        ``from_pretrained`` and ``vlprompt.load_learner`` read it, and ``vlprompt predict learner=`` on the command
        line.
        """
        check_is_fitted(self, "learner_")
        return _save(self, path)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], backbone: FrozenCLIP | None = None, device: str = "auto"
    ) -> Self:
        """Return a classifier that predicts as the saved one does, with its settings for fitting again.

        Args:
            path: a folder of ``save_pretrained``, of a classifier or of a learner, the folder of a run, or
                ``hf://user/name[@revision]``. If it has no labels, as for a run, class names are the labels.
            backbone: the frozen model; by default the one that the learner was saved with is loaded.
            device: the device of a backbone that is loaded here.

        Raises:
            VlpromptError: there is no learner, its files are inconsistent or were changed, or the backbone is another
                one.

        >>> PromptClassifier.from_pretrained("my-learner").predict(["another.jpg"])  # doctest: +SKIP
        """
        learner, labels, extra = read_saved(path, backbone, device)
        settings: dict[str, Any] = settings_of(learner, labels, extra) | {"device": device}
        classifier = cls(**settings)
        classifier.learner_, classifier.classes_ = learner, labels
        classifier.history_, classifier.searches_, classifier.pseudo_labels_ = [], [], []
        return classifier


def read_saved(
    path: str | os.PathLike[str], clip: FrozenCLIP | None, device: str
) -> tuple[PromptLearner, np.ndarray, Mapping[str, Any]]:
    """Return a saved learner, the sorted labels (C,) of its classes, and the metadata saved with it.

    Args:
        path: a folder that a classifier or a learner was saved to, the folder of a run, or
            ``hf://user/name[@revision]``.
        clip, device: as in ``load_learner``.

    Raises:
        VlpromptError: as ``load_learner``; its labels are invalid, or two classes have the same name and no labels.
    """
    remote = str(path).startswith(PREFIX)
    folder = fetch(str(path)) if remote else find_saved(path)
    learner = load_learner(str(path) if remote else folder, clip=clip, device=device)
    extra = read_description(folder)["extra"]
    names = list(learner.class_names)
    labels = _checked(extra[LABELS], len(names), path) if LABELS in extra else _distinct(names, path)
    order = sorted(range(len(labels)), key=lambda i: labels[i])
    if order != list(range(len(labels))):  # as of a run, whose classes stand in their dataset's order
        learner.set_class_names([names[i] for i in order])
    return learner, np.array([labels[i] for i in order]), extra


def _checked(labels: Any, count: int, path: object) -> list[Any]:
    """Check labels from a file, which may come from anyone: one per class, distinct, all texts or all numbers."""
    if (
        isinstance(labels, list)
        and len(labels) == count
        and any(all(isinstance(label, kind) for label in labels) for kind in (str, (int, float)))
        and len(set(labels)) == count
    ):
        return labels
    raise VlpromptError(f"{path} does not have a label for each of its {count} classes: save it again, or load_learner")


def _distinct(names: Sequence[str], path: object) -> list[str]:
    """Class names as labels, which two classes must not share."""
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise VlpromptError(
            f"{path} has two classes of the name '{twice}', which cannot both be labels: use vlprompt.load_learner"
        )
    return list(names)


def settings_of(learner: PromptLearner, labels: np.ndarray, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a classifier that would learn as a saved learner did.

    Args:
        learner: the saved learner.
        labels: (C,) of its classes.
        extra: the metadata saved with it; the settings of its answers are checked when they are used.
    """
    names = dict(zip(labels.tolist(), learner.class_names, strict=True))
    seed, answers = extra.get("seed"), extra.get(ANSWERS)
    return {
        "method": learner.method,
        "backbone": learner.clip,
        "class_names": None if all(label == name for label, name in names.items()) else names,
        "templates": list(learner.templates),
        "options": asdict(learner.config),
        **({"random_state": seed} if type(seed) is int and seed >= 0 else {}),
        **settings_of_answers(learner),  # of a run; a classifier saves its own, which follow
        **({name: answers[name] for name in ANSWERING if name in answers} if isinstance(answers, dict) else {}),
    }


def _save(estimator: Kept, path: str | os.PathLike[str]) -> Path:
    """Save a fitted classifier's learner, with the labels of its classes and the settings of its answers."""
    answers = {name: getattr(estimator, name) for name in ANSWERING}
    plain = {name: value for name, value in answers.items() if isinstance(value, (str, int, float, NoneType))}
    return estimator.learner_.save_pretrained(path, extra={LABELS: estimator.classes_.tolist(), ANSWERS: plain})
