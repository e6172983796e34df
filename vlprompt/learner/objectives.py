"""Losses and regularisers, as parts that work with any prompt design.

An objective is written as a string, alike in Python, YAML and on the command line: ``ce``, ``text_anchor(weight=8)``.
Those that compare a learner with the frozen model or another teacher are in ``vlprompt.learner.anchors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.base.parts import Part, parse_part
from vlprompt.base.registry import Registry
from vlprompt.base.wiring import lazy_exports
from vlprompt.data.batch import Batch as Batch
from vlprompt.errors import VlpromptError
from vlprompt.learner.facts import Facts, Labels

if TYPE_CHECKING:
    from vlprompt.learner.contract import PromptLearner

__getattr__, __dir__ = lazy_exports(__name__, formerly="vlprompt.learner.anchors")  # whose names were here

Templates = Sequence[str] | str | None


@dataclass
class Outputs:
    """What a learner computed for a batch.

    Attributes:
        image_features: (B, D), normalised.
        text_features: (C, D) or (B, C, D), normalised; empty if per-image features are computed in chunks.
        logits: (B, C); in training, the first of the parts.
        parts: the parts that logits are combined from, by name, (B, C) each.
        raw_image, raw_text: features before normalisation; of text only while a second head is trained.
    """

    image_features: Tensor
    text_features: Tensor
    logits: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    raw_image: Tensor | None = None
    raw_text: Tensor | None = None


class Objective(Part):
    """A weighted term of the loss.

    Args:
        weight: its factor in the sum; with 0 the term is still computed and reported, for a gradient rule to use.

    Attributes:
        needs: ``image_strong`` if batches must contain a second view.
        labelled: whether it needs labels.
        weighs: whether it honours the image weights in a batch's ``weight``.
    """

    needs: frozenset[str] = frozenset()
    labelled: bool = True
    weighs: bool = False

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def refuses(self, learner: PromptLearner) -> str | None:
        """Why it makes no sense for a learner, as a phrase that follows its name; None if it does."""
        return None

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the unweighted value, a scalar."""
        raise NotImplementedError


OBJECTIVES: Registry[type[Objective]] = Registry("objective", shipped="methods")


@OBJECTIVES.register("ce")
class CrossEntropy(Objective):
    """Cross-entropy between logits and labels.

    A batch's ``class_mask`` (B, C) selects the classes that compete, its ``weight`` (B,) weights the images.
    """

    weighs = True

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean over the batch."""
        return self.of(outputs.logits, batch)

    def of(self, logits: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy of given logits (B, C) of the batch."""
        losses = F.cross_entropy(competing(logits, batch), batch["label"], reduction="none")  # (B,)
        return (losses * batch["weight"] if "weight" in batch else losses).mean()


def competing(logits: Tensor, batch: Batch) -> Tensor:
    """Logits (B, C) with -inf for the classes that a batch's ``class_mask`` excludes."""
    return logits.masked_fill(~batch["class_mask"], float("-inf")) if "class_mask" in batch else logits


@OBJECTIVES.register("batch_contrastive")
class BatchContrastive(Objective):
    """CLIP's own loss between the images of a batch and the texts of their classes (OVSeg's loss for mask prompts).

    Each image is classified among the batch's texts, and each text among its images. As published, another image of the
    same class counts as a negative; with few classes use ``ce``.
    """

    def refuses(self, learner: PromptLearner) -> str | None:
        """It needs logits that are similarities, with class features shared by all images."""
        if not learner.facts.head and learner.facts.classifier == "shared":
            return None
        return f"compares images with class features that all share, and {learner.method} scores in another way"

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean of the two directions."""
        logits = outputs.logits[:, batch["label"]]  # (B, B): image i with the text of image j's class
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class _Unlabelled(Objective):
    """An objective without labels that compares images with class features."""

    labelled = False

    def refuses(self, learner: PromptLearner) -> str | None:
        """It needs logits that are similarities."""
        if not learner.facts.head:
            return None
        return f"compares images with class features, and {learner.method} scores in another way; use it on prompts"


@OBJECTIVES.register("transport")
class Transport(_Unlabelled):
    """Cost, 1 - cosine, of moving each image to its likely classes and each class to its likely images (POUF).

    The softmax over likely images runs over the batch, so the batch size affects it.
    """

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean over the images, plus the mean over the classes."""
        v, t = outputs.image_features, outputs.text_features
        if t.dim() == 3 and learner.facts.classifier == "shared":  # of several prompts, as ProDA's
            t = t.mean(dim=0)
        cost = 1 - (v @ t.T if t.dim() == 2 else torch.einsum("bd,bcd->bc", v, t))  # (B, C)
        to_classes = (outputs.logits.softmax(dim=1) * cost).sum(dim=1).mean()
        return to_classes + (outputs.logits.softmax(dim=0) * cost).sum(dim=0).mean()


@OBJECTIVES.register("information_maximization")
class InformationMaximization(_Unlabelled):
    """Mean entropy of the predictions minus the entropy of the batch's mean prediction (POUF, SHOT)."""

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """In nats; the small terms inside the logarithms are those of POUF's code."""
        p = outputs.logits.softmax(dim=1)
        mean = p.mean(dim=0)
        return -(p * (p + 1e-5).log()).sum(dim=1).mean() + (mean * (mean + 1e-6).log()).sum()


_ENSEMBLE = "templates='imagenet80', normalise_first=False"
# what papers add to other designs, by name
SETS = {
    "promptsrc": [
        "ce",
        f"text_anchor(weight=25.0, distance='l1', {_ENSEMBLE})",
        "image_anchor(weight=10.0, distance='l1')",
        f"logit_kl({_ENSEMBLE})",
    ],
    "promptkd": ["logit_kl(weight=1000)"],
}


def parse_objectives(texts: Sequence[str]) -> list[Objective]:
    """Parse a list of objectives or names of sets; each may occur once, and one must have a non-zero weight."""
    objectives = [parse_part(part, OBJECTIVES) for text in texts for part in SETS.get(text.strip(), [text])]
    names = [o.name for o in objectives]
    if len(set(names)) < len(names) or not any(o.weight for o in objectives):
        raise VlpromptError(f"objective={list(texts)} must name each part once, and one part must have a weight")
    return objectives


def weighs(facts: Facts, objectives: Sequence[Objective], head: str | None) -> bool:
    """Whether everything in which a learner with these facts uses labels can weight images."""
    if facts.labels != "needed" or not facts.weighs:
        return False
    return not facts.trains or (head is None and all(o.weighs for o in objectives if o.labelled and o.weight))


def labels_of(facts: Facts, objectives: Sequence[Objective], head: str | None) -> Labels:
    """Whether a learner with these facts needs labels; it does not if none of its objectives does."""
    asked = head is not None or any(o.labelled for o in objectives if o.weight)
    return "none" if facts.labels == "needed" and facts.trains and not facts.head and not asked else facts.labels
