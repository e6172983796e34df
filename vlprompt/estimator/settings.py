"""What a classifier's settings come to: its method's recipe, and the frozen model that it learns on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import check_random_state
from torch import nn

from vlprompt.base.checks import told
from vlprompt.base.devices import resolve_device
from vlprompt.base.settings import AUTO, ChoiceOptions
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.loading import shared_clip
from vlprompt.errors import VlpromptError, nearest
from vlprompt.estimator.inputs import published_shots
from vlprompt.learner.facts import Labels
from vlprompt.learner.registration import METHODS, method_facts
from vlprompt.training.recipes import Learning, resolve_learning
from vlprompt.training.trainer import TrainOptions

if TYPE_CHECKING:
    from vlprompt.estimator.classifier import PromptClassifier

CHOICES = tuple(f.name for f in fields(ChoiceOptions))  # options of method=auto alone
SETTINGS = ("epochs", "lr", "batch_size", "views", "workers")


def learning_of(
    estimator: PromptClassifier,
    labels: np.ndarray,
    seed: int | None = None,
    method: str | None = None,
    own: Mapping[str, Any] | None = None,
) -> Learning:
    """A method's few-shot recipe with the settings that an estimator was given.

    Args:
        estimator: whose settings.
        labels: of the images (N,).
        seed: that its ``random_state`` gave; None asks it.
        method: one that was chosen; None takes the estimator's.
        own: settings of that method, where the estimator says nothing else.
    """
    allowed = {f.name for f in fields(TrainOptions)} | {"transform"}
    allowed |= set(CHOICES) if method else {f.name for f in fields(METHODS.get(estimator.method).Config)}
    options = options_of(estimator)
    for key in options:
        if key not in allowed:
            raise VlpromptError(f"unknown option '{key}' for method={estimator.method}: {nearest(key, allowed)}")
    seed, method = seed_of(estimator) if seed is None else seed, method or estimator.method
    options = {key: value for key, value in options.items() if key not in CHOICES}
    given = {key: _plain(getattr(estimator, key)) for key in SETTINGS if getattr(estimator, key) is not None}
    settings = {"shots": published_shots(labels), "seed": seed} | dict(own or {}) | given | options
    protocol = "few_shot"
    if (labels < 0).any():
        protocol = "semi_supervised" if (labels >= 0).any() else "unsupervised"
    return resolve_learning(method, settings, protocol=protocol, backbone=_name_of(estimator.backbone))


def labels_asked(estimator: PromptClassifier) -> Labels:
    """What an estimator's method, with the settings that it was given, asks of labels."""
    if estimator.method == AUTO:
        return "needed"
    own = {f.name for f in fields(METHODS.get(estimator.method).Config)}
    return method_facts(estimator.method, {k: v for k, v in options_of(estimator).items() if k in own}).labels


def options_of(estimator: PromptClassifier) -> dict[str, Any]:
    """The options that an estimator was given, with Python's own numbers."""
    if not isinstance(estimator.options, (Mapping, type(None))):
        raise VlpromptError(f"options must be a dictionary of settings, not {told(estimator.options)}")
    return {key: _plain(value) for key, value in (estimator.options or {}).items()}


def seed_of(estimator: PromptClassifier) -> int:
    """The seed that an estimator's ``random_state`` gives."""
    seed = estimator.random_state
    return int(seed if isinstance(seed, Integral) else check_random_state(seed).randint(2**31 - 1))


def _plain(value: Any) -> Any:
    """A NumPy number, as grids of settings hold them, as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _name_of(backbone: Any) -> str | None:
    """The name that recipes may have cases for."""
    if isinstance(backbone, FrozenCLIP):
        return backbone.source["name"] if backbone.source else None
    return backbone if isinstance(backbone, str) else None


def clip_of(estimator: PromptClassifier) -> FrozenCLIP:
    """The frozen model that an estimator was given, or the one of its name, which all of that name share."""
    backbone = estimator.backbone
    if isinstance(backbone, FrozenCLIP):
        return backbone
    if not isinstance(backbone, (str, nn.Module)):
        raise VlpromptError(f"backbone must be a name or a model, not {told(backbone)}")
    device = str(resolve_device(estimator.device))
    return shared_clip(backbone, estimator.pretrained, None, estimator.precision, device)
