"""Logits of several parts, such as two heads', and the rule that combines them.

A method that scores in more than one way names the parts in its facts (``parts``), computes them in ``parts`` and
combines them in ``fuse``. Objectives use the first part, and classes that were not trained on are scored by it alone.
Which those are, ``Familiar``, is set by the evaluator, since the rule may depend on the protocol; otherwise names
decide. A result also records the accuracy of each part, to show what combining them gains.

``part_ce`` is the loss of one part. ``head=dept`` adds a second head, besides the similarities, to any design that
learns from labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.base.parts import Part, parse_part
from vlprompt.base.registry import Registry
from vlprompt.clip.naming import same_names
from vlprompt.errors import VlpromptError
from vlprompt.learner.facts import Facts
from vlprompt.learner.method import Method
from vlprompt.learner.objectives import OBJECTIVES, Batch, CrossEntropy, Outputs

if TYPE_CHECKING:
    from vlprompt.learner.contract import PromptLearner

OWN_WAYS = ("loss", "score", "parts", "text_features", "text_encoder", "parameter_groups")


@OBJECTIVES.register("part_ce")
class PartCrossEntropy(CrossEntropy):
    """Cross-entropy of one part of the logits, for learners that have several (MMRL's).

    Args:
        part: its name.
        weight: its factor.
    """

    def __init__(self, part: str, weight: float = 1.0):
        super().__init__(weight)
        self.part = part

    def refuses(self, learner: PromptLearner) -> str | None:
        """The learner's logits must have this part."""
        parts = learner.facts.parts
        if self.part in parts:
            return None
        return f"is of logits called {self.part}, and {learner.method}'s are {' and '.join(parts) or 'in one piece'}"

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean over the batch."""
        return self.of(outputs.parts[self.part], batch)


class SecondHead(Part, nn.Module):
    """A classifier with its own learnables besides the similarities, bound to the classes that it is trained on.

    Args:
        weight: w in [0, 1], its share of the loss and of the combined logits; the similarities have the rest.
        lr_scale: its learning rate, relative to the rest of the learner.

    Attributes:
        part: the name of its logits; its loss is called ``ce_`` followed by it.
        published: the authors' names, see ``vlprompt.learner.publishing``.
    """

    part: ClassVar[str]
    published: ClassVar[Mapping[str, str]] = {}

    def __init__(self, weight: float, lr_scale: float):
        super().__init__()
        if not 0 <= weight <= 1:
            raise VlpromptError(f"a second head's weight must be between 0, none of it, and 1, not {weight}")
        if lr_scale <= 0:
            raise VlpromptError(f"lr_scale must be above 0, not {lr_scale}")
        self.weight, self.lr_scale = weight, lr_scale

    def setup(self, width: int, classes: int) -> None:
        """Create the learnables, for features of width D and C classes."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of image features (B, D), as the tower gives them."""
        raise NotImplementedError

    def loss(self, x: Tensor, text: Tensor, label: Tensor) -> Tensor:
        """Its cross-entropy.

        Args:
            x: image features (B, D), not normalised.
            text: features of each image's own class (B, D), not normalised.
            label: (B,).
        """
        raise NotImplementedError

    def fuse(self, parts: Mapping[str, Tensor]) -> Tensor:
        """(1 - w)·the first part + w·its own (B, C)."""
        return torch.lerp(next(iter(parts.values())), parts[self.part], self.weight)

    def join(self, losses: dict[str, Tensor], weights: dict[str, float], outputs: Outputs, label: Tensor) -> None:
        """Put its loss among those of objectives, and its weight, which is taken from the cross-entropy's."""
        x, text = outputs.raw_image, outputs.raw_text
        assert x is not None  # as all outputs of a learner with a second head in training
        assert text is not None
        own = text[label] if text.dim() == 2 else text[torch.arange(len(label), device=label.device), label]
        if "ce" in weights:
            weights["ce"] *= 1 - self.weight
        name = f"ce_{self.part}"
        losses[name], weights[name] = self.loss(x, own, label), self.weight


HEADS: Registry[type[SecondHead]] = Registry("head")


class Affine(nn.Module):
    """A scale and a shift per channel, initialized as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Features (…, D)."""
        return self.scale * x + self.bias


@HEADS.register("dept")
class DePT(SecondHead):
    """Decoupled prompt tuning (Zhang et al., CVPR 2024, arXiv:2309.07439): a linear head on base-specific channels.

    Channel-wise affine maps A_v, A_t of the unnormalised image and text features, and one linear map from both to the
    classes, trained on images and, for each image, on the text feature of its class. Classes that were trained on are
    scored by (1 - w)·similarity + w·linear, also in another dataset; all others by similarity alone. The loss follows
    the authors' code: (1 - w)·CE(similarity) + w·CE(linear), plus any other objectives.

    Args:
        weight: w.
        lr_scale: 6.5, as published.
    """

    part = "linear"
    published: ClassVar = {
        "image.": "film_lp_img.",
        "text.": "film_lp_text.",
        "linear.": "linear_probe_proj.",
    }

    def __init__(self, weight: float = 0.7, lr_scale: float = 6.5):
        super().__init__(weight, lr_scale)

    def setup(self, width: int, classes: int) -> None:
        """Create the maps, D each, and the linear one, D -> C."""
        self.image, self.text = Affine(width), Affine(width)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of image features (B, D), as the tower gives them."""
        logits: Tensor = self.linear(self.image(x))
        return logits

    def loss(self, x: Tensor, text: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy over 2B samples: class texts, then images."""
        both = torch.cat([self.text(text), self.image(x)])
        return F.cross_entropy(self.linear(both), label.repeat(2))


def parse_head(setting: str | None) -> SecondHead | None:
    """The head in a setting, still without learnables, or None."""
    return None if setting is None else parse_part(setting, HEADS)


def facts_with_head(cls: type[Method], config: Any, facts: Facts, usual: type[Method]) -> Facts:
    """The facts of a learner with the second head in its settings, if any.

    Args:
        cls: the learner's class.
        config: its settings.
        facts: of the learner without the head.
        usual: a class whose ways of scoring and learning work with a second head.

    Raises:
        VlpromptError: the head is unknown, or a learner of this kind cannot have it.
    """
    head = parse_head(config.head)
    if head is None:
        return facts
    reason = _refused(cls, facts, usual)
    if reason is not None:
        raise VlpromptError(f"head={config.head} is not possible: {cls.method} with these settings {reason}")
    return replace(facts, head=True, trains=facts.trains | {"head"}, parts=("similarity", head.part))


def _refused(cls: type[Method], facts: Facts, usual: type[Method]) -> str | None:
    """Why a learner cannot have a second head, as a phrase after its method's name; None if it can."""
    if facts.labels != "needed":
        return "learns from images without labels, and a head of classes needs them"
    if facts.head:
        return "has a head of its own"
    if facts.predicts != "alone" or facts.inputs != ("image",):
        return "predicts in its own way"
    own = [hook for hook in OWN_WAYS if getattr(cls, hook) is not getattr(usual, hook)]
    return f"has a {own[0]} of its own, which a second head does not know" if own else None


def first_kind(features: Tensor) -> Tensor:
    """Of image features (B, D) or (B, K, D), those that are compared with class features: (B, D)."""
    return features[:, 0] if features.dim() == 3 else features


def is_known(names: Sequence[str], trained: Sequence[str]) -> bool:
    """Whether all names are among the trained ones, compared as prompts see them."""
    return set(same_names(names)) <= set(same_names(trained))


def rows_of(names: Sequence[str], trained: Sequence[str], places: Sequence[int] = ()) -> list[int]:
    """Positions of classes among those trained on, which include all of them.

    Args:
        names, trained: the classes.
        places: their positions, if known in advance. Otherwise, a name that occurs several times among the trained
            ones, as two of ImageNet's do, refers to one position after the other.
    """
    if places:
        return [*places]
    by_name: dict[str, list[int]] = {}
    for place, name in enumerate(same_names(trained)):
        by_name.setdefault(name, []).append(place)
    return [found.pop(0) if len(found := by_name[name]) > 1 else found[0] for name in same_names(names)]
