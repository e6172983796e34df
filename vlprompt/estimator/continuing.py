"""Whether a ``PromptClassifier`` can go on with what it learnt: its settings may have changed in the meantime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlprompt.base.checks import listed
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.naming import same_names
from vlprompt.errors import VlpromptError
from vlprompt.learner.contract import PromptLearner
from vlprompt.training.recipes import Learning

if TYPE_CHECKING:
    from vlprompt.estimator.classifier import PromptClassifier


def check_continues(
    estimator: PromptClassifier, learning: Learning, clip: FrozenCLIP, templates: Sequence[str]
) -> None:
    """Raise a ``VlpromptError`` if an estimator's settings ask for another learner than the one it has.

    Settings of training, such as ``epochs`` and ``lr``, may change from one call to the next.

    Args:
        estimator: with ``warm_start``, or in a ``partial_fit`` that is not the first.
        learning, clip, templates: what its settings ask for now.
    """
    learner = estimator.learner_
    other = _setting(learner, learning)
    if clip is not learner.clip and clip.identity() != learner.clip.identity():
        other = f"backbone={learner.clip.name}, not {clip.name}"
    elif estimator.templates is not None and tuple(templates) != learner.templates:
        other = f"templates={list(learner.templates)[:3]}, not {list(templates)[:3]}"
    elif (renamed := _renamed(estimator)) is not None:
        other = "the class name '{}', not '{}'".format(*renamed)
    if other:
        raise VlpromptError(
            f"warm_start and partial_fit continue to train the {learner.method} learner, which has {other}: to start "
            "again, call fit with warm_start=False"
        )


def _setting(learner: PromptLearner, learning: Learning) -> str:
    """The first setting of the method that the user gave and the learner does not have; empty if there is none."""
    settings, had = learning.method_settings, vars(learner.config)
    if isinstance(settings["names"], str):  # a file, whose content a learner keeps in its place
        settings = settings | {"names": had["names"]}
    changed = [key for key in settings if key in learning.user_keys and settings[key] != had[key]]
    return f"{changed[0]}={had[changed[0]]}, not {settings[changed[0]]}" if changed else ""


def _renamed(estimator: PromptClassifier) -> tuple[str, str] | None:
    """The first class that is called otherwise in the settings than in the learner: its name there, and here."""
    new_names: Any = estimator.class_names
    labels, names = estimator.classes_.tolist(), estimator.learner_.class_names
    if not isinstance(new_names, Mapping):
        listed_names = listed(new_names, "class_names") if new_names is not None else ()
        same = len(listed_names) == len(labels)  # otherwise classes were added later
        new_names = dict(zip(labels, listed_names, strict=True)) if same else {}
    pairs = [(name, new_names.get(label, name)) for label, name in zip(labels, names, strict=True)]
    return next((pair for pair in pairs if len(set(same_names(pair))) > 1), None)
