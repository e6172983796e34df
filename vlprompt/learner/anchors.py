"""Objectives that keep a learner close to the frozen model or to another teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from vlprompt.errors import VlpromptError
from vlprompt.learner.objectives import OBJECTIVES, Batch, Objective, Outputs, Templates

if TYPE_CHECKING:
    from vlprompt.learner.contract import PromptLearner

DISTANCES = ("cos", "l1", "mse")


def _known(name: str) -> str:
    if name not in DISTANCES:
        raise VlpromptError(f"unknown distance '{name}': use {', '.join(DISTANCES)}")
    return name


def distance(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """Mean distance between unit vectors: ``cos`` over rows, ``l1`` and ``mse`` over all entries."""
    if kind == "cos":
        return 1 - (a * b).sum(dim=-1).mean()
    return (F.l1_loss if kind == "l1" else F.mse_loss)(a, b.expand_as(a))


class _TextObjective(Objective):
    """An objective that compares learnt with frozen class features."""

    labelled = False

    def refuses(self, learner: PromptLearner) -> str | None:
        """Without learnt text there is nothing to compare."""
        if "text" in learner.facts.trains:
            return None
        return (
            f"compares learnt with frozen class features, and {learner.method} with these settings learns none; use it "
            "on a method that trains text, such as coop or maple"
        )


@OBJECTIVES.register("text_anchor")
class TextAnchor(_TextObjective):
    """Distance between learnt and frozen class features (KgCoOp; PromptSRC).

    Args:
        weight: its factor. KgCoOp's paper has a squared distance, which is twice ``cos``; this follows its code.
        distance: ``cos``, 1 - cos averaged over classes; ``l1`` and ``mse``, means over all C·D entries.
        templates: for the frozen features: a list, the name of a set, or None for the dataset's own.
        normalise_first: whether each template's feature is normalised before averaging.
    """

    def __init__(
        self,
        weight: float = 1.0,
        distance: str = "cos",
        templates: Templates = None,
        normalise_first: bool = True,
    ):
        super().__init__(weight)
        self.distance, self.templates, self.normalise_first = _known(distance), templates, normalise_first

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean over the classes."""
        frozen = learner.frozen_text(self.templates, self.normalise_first)
        return distance(outputs.text_features, frozen, self.distance)


@OBJECTIVES.register("description_anchor")
class DescriptionAnchor(_TextObjective):
    """Distance between learnt class features and a frozen description, drawn anew in each step (CoPrompt).

    Args:
        weight: its factor.
        distance: as in ``text_anchor``.
        descriptions: a JSON file ``{class: [sentences]}`` in quotes, or templates. None uses the setting
            ``descriptions=FILE`` or, without it, the dataset's templates. In each step one index is drawn for all
            classes, so sentences beyond the length of the shortest list are not used.
    """

    def __init__(self, weight: float = 1.0, distance: str = "cos", descriptions: Templates = None):
        super().__init__(weight)
        self.distance, self.descriptions = _known(distance), descriptions

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean over the classes."""
        chosen = self.descriptions or learner.config.descriptions or learner.templates
        table = learner.teacher.description_table(learner.class_names, chosen)
        frozen = table[int(torch.randint(len(table), ()))]  # (C, D)
        return distance(outputs.text_features, frozen, self.distance)


@OBJECTIVES.register("image_anchor")
class ImageAnchor(Objective):
    """Distance between prompted and frozen image features (PromptSRC; CoPrompt, on another view).

    Args:
        weight: its factor.
        distance: as in ``text_anchor``, averaged over the batch.
        view: what the frozen tower sees: the same view, ``image``, or a second one, ``image_strong``.
    """

    labelled = False

    def __init__(self, weight: float = 1.0, distance: str = "l1", view: Literal["image", "image_strong"] = "image"):
        super().__init__(weight)
        self.distance, self.view = _known(distance), view
        if view == "image_strong":
            self.needs = frozenset({view})

    def refuses(self, learner: PromptLearner) -> str | None:
        """If the image tower is unchanged, both features are the same."""
        if not learner.facts.cacheable_images:
            return None
        return (
            f"compares prompted with frozen image features, and {learner.method} leaves the image tower alone; use it "
            "on a method that trains vision, such as ivlp or maple"
        )

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean over the batch."""
        frozen = learner.teacher.image_features(batch, self.view)
        return distance(outputs.image_features, frozen, self.distance)


class LogitArguments(TypedDict, total=False):
    """Arguments of all objectives on logits; see ``logit_kl``."""

    weight: float
    temperature: float
    templates: Templates
    normalise_first: bool


class LogitObjective(Objective):
    """An objective that compares with the frozen model's logits, or with those of the learner's ``teacher``."""

    labelled = False

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 1.0,
        templates: Templates = None,
        normalise_first: bool = True,
    ):
        super().__init__(weight)
        self.temperature, self.templates, self.normalise_first = temperature, templates, normalise_first

    def frozen_logits(self, learner: PromptLearner, batch: Batch) -> Tensor:
        """Logits (B, C) of the teacher (by default the frozen model), divided by the temperature."""
        if learner.taught_by is not None:
            return learner.taught_by.logits(batch, learner.class_names) / self.temperature
        if learner.config.teacher is not None:
            raise VlpromptError(
                f"this learner was taught by {learner.config.teacher}, which is not loaded with it: give it its "
                "teacher by vlprompt.saving.teacher.teach(learner, FOLDER)"
            )
        text = learner.frozen_text(self.templates, self.normalise_first)
        return learner.clip.similarity(learner.teacher.image_features(batch), text) / self.temperature


@OBJECTIVES.register("logit_kl")
class LogitKL(LogitObjective):
    """KL(frozen ‖ learnt) of the class probabilities (PromptSRC); with the setting ``teacher``, KL(teacher ‖ learnt).

    Args:
        weight: its factor.
        temperature: of both distributions.
        templates, normalise_first: as in ``text_anchor``, for the frozen model; a teacher has its own.
        reduction: ``numel`` divides the sum by B·C as the authors' code does; ``batchmean`` by B, which is C times
            stronger.
    """

    def __init__(self, reduction: Literal["numel", "batchmean"] = "numel", **options: Unpack[LogitArguments]):
        super().__init__(**options)
        if reduction not in ("numel", "batchmean"):
            raise VlpromptError(f"unknown reduction '{reduction}' of logit_kl: use numel or batchmean")
        self.reduction = reduction

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Sum over classes, divided as ``reduction`` says."""
        learnt = F.log_softmax(outputs.logits / self.temperature, dim=-1)
        frozen = F.log_softmax(self.frozen_logits(learner, batch), dim=-1)
        divergence = F.kl_div(learnt, frozen, reduction="sum", log_target=True) * self.temperature**2
        return divergence / (learnt.numel() if self.reduction == "numel" else len(learnt))


@OBJECTIVES.register("logit_mse")
class LogitMSE(LogitObjective):
    """Mean squared difference between the learnt and the frozen logits, both divided by the temperature (PANDA).

    With the setting ``teacher``, a saved learner takes the frozen model's place.
    """

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean over the batch and the classes."""
        return F.mse_loss(outputs.logits / self.temperature, self.frozen_logits(learner, batch))


@OBJECTIVES.register("distillation")
class Distillation(LogitObjective):
    """Cross-entropy of the learnt with the frozen probabilities (ProGrad; same gradient as the KL divergence).

    With the setting ``teacher``, a saved learner takes the frozen model's place.
    """

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean over the batch, times the squared temperature."""
        frozen = self.frozen_logits(learner, batch).softmax(dim=-1)
        return F.cross_entropy(outputs.logits / self.temperature, frozen) * self.temperature**2
