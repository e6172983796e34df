"""From the settings of a classifier to its method's recipe and its frozen model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import check_random_state
from torch import nn

from vlprompt.base.checks import brief
from vlprompt.base.devices import resolve_device
from vlprompt.base.settings import AUTO, ChoiceOptions, TrainOptions
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.loading import shared_clip
from vlprompt.errors import VlpromptError, nearest
from vlprompt.estimator.inputs import published_shots
from vlprompt.learner.facts import Labels
from vlprompt.learner.registration import METHODS, method_facts
from vlprompt.training.recipes import Learning, resolve_learning

if TYPE_CHECKING:
    from vlprompt.estimator.classifier import PromptClassifier

CHOICES = tuple(f.name for f in fields(ChoiceOptions))  # options of method=auto only
SETTINGS = ("epochs", "lr", "batch_size", "views", "workers")


def learning_of(
    estimator: PromptClassifier,
    labels: np.ndarray,
    seed: int | None = None,
    method: str | None = None,
    own: Mapping[str, Any] | None = None,
) -> Learning:
    """Return a method's few-shot recipe, changed by the settings of an estimator.

    Args:
        estimator: its ``options`` and other settings override the recipe.
        labels: (N,) class indices of the images, -1 for none; they decide the protocol and the number of shots.
        seed: drawn from its ``random_state`` before; None draws it now.
        method: the method that ``auto`` chose; None means the estimator's.
        own: settings that ``auto`` chose, which the estimator's override.

    Raises:
        VlpromptError: an option is unknown or invalid.
    """
    allowed = {f.name for f in fields(TrainOptions)} | {"transform"}
    allowed |= set(CHOICES) if method else {f.name for f in fields(METHODS.get(estimator.method).Config)}
    options = options_of(estimator)
    for key in options:
        if key not in allowed:
            raise VlpromptError(f"unknown option '{key}' for method={estimator.method}: {nearest(key, allowed)}")
    seed, method = seed_of(estimator) if seed is None else seed, method or estimator.method
    options = {key: value for key, value in options.items() if key not in CHOICES}
    arguments = {key: _plain(getattr(estimator, key)) for key in SETTINGS if getattr(estimator, key) is not None}
    settings = {"shots": published_shots(labels), "seed": seed} | dict(own or {}) | arguments | options
    protocol = "few_shot"
    if (labels < 0).any():
        protocol = "semi_supervised" if (labels >= 0).any() else "unsupervised"
    return resolve_learning(method, settings, protocol=protocol, backbone=_name_of(estimator.backbone))


def labels_needed(estimator: PromptClassifier) -> Labels:
    """Whether an estimator's method, with its options, needs labelled images: ``Facts.labels``."""
    if estimator.method == AUTO:
        return "needed"
    own = {f.name for f in fields(METHODS.get(estimator.method).Config)}
    return method_facts(estimator.method, {k: v for k, v in options_of(estimator).items() if k in own}).labels


def options_of(estimator: PromptClassifier) -> dict[str, Any]:
    """The ``options`` of an estimator, with NumPy numbers as Python's."""
    if not isinstance(estimator.options, (Mapping, type(None))):
        raise VlpromptError(f"options must be a dictionary of settings, not {brief(estimator.options)}")
    return {key: _plain(value) for key, value in (estimator.options or {}).items()}


def seed_of(estimator: PromptClassifier) -> int:
    """Draw a seed from an estimator's ``random_state``; an integer is the seed itself."""
    seed = estimator.random_state
    return int(seed if isinstance(seed, Integral) else check_random_state(seed).randint(2**31 - 1))


def _plain(value: Any) -> Any:
    """Convert a NumPy number, as grids of settings contain them, to Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _name_of(backbone: Any) -> str | None:
    """The name of a backbone, which a recipe may have its own settings for; None if it has none."""
    if isinstance(backbone, FrozenCLIP):
        return backbone.source["name"] if backbone.source else None
    return backbone if isinstance(backbone, str) else None


def clip_of(estimator: PromptClassifier) -> FrozenCLIP:
    """The frozen model of an estimator; estimators that name the same one share it.

    Raises:
        VlpromptError: ``backbone`` is neither a name nor a model, or cannot be loaded.
    """
    backbone = estimator.backbone
    if isinstance(backbone, FrozenCLIP):
        return backbone
    if not isinstance(backbone, (str, nn.Module)):
        raise VlpromptError(f"backbone must be a name or a model, not {brief(backbone)}")
    device = str(resolve_device(estimator.device))
    return shared_clip(backbone, estimator.pretrained, None, estimator.precision, device)
