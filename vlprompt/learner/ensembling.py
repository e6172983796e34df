"""Ensembles of a learner with its frozen model: ``ensemble=logits(weight=0.5)`` or ``weights(weight=0.5)``.

The learner has weight λ, and zero-shot CLIP over the dataset's templates 1 - λ: the frozen model knows what a learner
forgets when it is trained on few images. It is the inexpensive form of WiSE-FT (Wortsman et al., CVPR 2022,
arXiv:2109.01903, §3), which averages all weights of a model before and after fine-tuning, and of LEVI
(arXiv:2402.04644). Training is not affected, so λ may differ wherever the learner is tested.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.base.parts import Part, parse_part
from vlprompt.base.registry import Registry
from vlprompt.errors import VlpromptError
from vlprompt.learner.facts import Facts


class Ensemble(Part):
    """Base class of ensembles of a learner with its frozen model.

    Args:
        weight: λ in [0, 1]; 0 is the frozen model, 1 the learner.
    """

    def __init__(self, weight: float = 0.5):
        if not 0 <= weight <= 1:
            raise VlpromptError(f"an ensemble's weight must be between 0, the frozen model, and 1, not {weight}")
        self.weight = weight

    def refuses(self, facts: Facts) -> str | None:
        """Why it is not possible for a learner with these facts, as a phrase after the method's name; None if it is."""
        if facts.predicts != "alone":
            return "predicts an image from other test images too, beside which the frozen model has no place"
        if facts.inputs != ("image",):
            return f"predicts from an image's {' and '.join(facts.inputs)} in its own way"
        return None

    def narrow(self, facts: Facts) -> Facts:
        """The facts of the learner with the ensemble."""
        return facts

    def logits(self, learnt: Tensor, frozen: Tensor) -> Tensor:
        """Combine both logits (B, C); by default the learner's."""
        return learnt

    def class_features(self, learnt: Tensor, frozen: Tensor) -> Tensor:
        """Combine both class features (C, D); by default the learner's."""
        return learnt


ENSEMBLES: Registry[type[Ensemble]] = Registry("ensemble", shipped="methods")


@ENSEMBLES.register("logits")
class LogitEnsemble(Ensemble):
    """λ·logits + (1 - λ)·the frozen model's logits of the same images, for any learner that predicts images alone.

    If the learner prompts the image tower, each test image is encoded twice.
    """

    def narrow(self, facts: Facts) -> Facts:
        """Its logits are more than similarities."""
        return replace(facts, head=True)

    def logits(self, learnt: Tensor, frozen: Tensor) -> Tensor:
        """λ·learnt + (1 - λ)·frozen; at λ = 0 and 1 exactly one of them."""
        return torch.lerp(frozen, learnt, self.weight)


@ENSEMBLES.register("weights")
class WeightEnsemble(Ensemble):
    """Class features λ·t + (1 - λ)·t_frozen, scaled to their mean norm: a single classifier, at no extra cost.

    The scaling, as when templates are averaged, keeps a class whose feature moved far from getting a shorter one;
    without it this would equal ``logits``. For learners of class features on the frozen model's image features.
    """

    def refuses(self, facts: Facts) -> str | None:
        """It needs a single classifier, of class features alone, on the frozen model's image features."""
        usual, instead = super().refuses(facts), ": take ensemble=logits"
        if usual is not None:
            return usual
        if facts.classifier == "per_image":
            return "has another classifier for each image, so there are no class weights to mix" + instead
        if facts.head:
            return "scores with more than class features, so there are no class weights to mix" + instead
        if not facts.cacheable_images:
            return "changes image features, which do not go with the frozen model's class weights" + instead
        return None

    def class_features(self, learnt: Tensor, frozen: Tensor) -> Tensor:
        """Features (C, D) with mixed directions and mixed lengths."""
        lengths = torch.lerp(frozen.norm(dim=-1, keepdim=True), learnt.norm(dim=-1, keepdim=True), self.weight)
        return F.normalize(torch.lerp(frozen, learnt, self.weight), dim=-1) * lengths


def make_ensemble(setting: str | None, method: str, facts: Facts) -> Ensemble | None:
    """The ensemble in a setting, for a learner with these facts, or None.

    Raises:
        VlpromptError: it is unknown, or a learner of this kind cannot have it.
    """
    if setting is None:
        return None
    made = parse_part(setting, ENSEMBLES)
    reason = made.refuses(facts)
    if reason is not None:
        raise VlpromptError(f"ensemble={setting} is not possible: {method} with these settings {reason}")
    return made
