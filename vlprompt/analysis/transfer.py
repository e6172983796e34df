"""Which saved prompt another task could start from: how alike two prompts move the class features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.analysis.figures import new_figure, paper_figure
from vlprompt.base.checks import check_templates, checked, listed
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.naming import natural_name
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.errors import VlpromptError
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.teacher import filled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Transferability:
    """How alike prompts move class features.

    Attributes:
        names: M names of the learners.
        scores: (M, M) in [-1, 1], 1 on the diagonal: the mean over classes of the cosine between two learners' shifts.
        class_names: the classes that they were compared on.
    """

    names: tuple[str, ...]
    scores: Tensor
    class_names: tuple[str, ...]

    def best_source(self, target: str) -> str:
        """The name of the other learner whose shift is most similar to that of ``target``."""
        if target not in self.names:
            raise VlpromptError(f"there is no learner called '{target}': {', '.join(self.names)}")
        place = self.names.index(target)
        others = [i for i in range(len(self.names)) if i != place]
        return self.names[max(others, key=lambda i: float(self.scores[place, i]))]


@checked
@torch.no_grad()
def transferability(
    learners: Mapping[str, PromptLearner], class_names: Sequence[str] | None = None, template: str = DEFAULT_TEMPLATE
) -> Transferability:
    """Compare how saved prompts move the class features from the frozen model's.

    A prompt's shift of a class is its normalised class feature minus the frozen model's for ``template``. If two
    prompts move the same classes in one direction, each is likely a good start for the other's task. PANDA
    (arXiv:2208.10160) scores pairs of tasks in this spirit; the measure here is ours, and needs no training.

    Args:
        learners: two or more by name, on one backbone, that learn text and can score new classes; each has its own
            classes again afterwards.
        class_names: the classes to compare on; by default all classes of all learners.
        template: the text of the frozen model's class features, with ``{}`` for the class name.

    Raises:
        VlpromptError: there are fewer than two, they are on several backbones, or one has class features of each
            image's own or cannot score new classes.
    """
    if not isinstance(learners, Mapping) or not all(isinstance(each, PromptLearner) for each in learners.values()):
        raise VlpromptError("learners must be learners by name, {name: load_learner(FOLDER)}, and not their folders")
    if len(learners) < 2:
        raise VlpromptError("transferability compares two learners or more")
    clip, (template,) = _one_backbone(learners), check_templates([template])
    if class_names is None:
        every: dict[str, str] = {}  # by the name as prompts write it
        for name in (name for learner in learners.values() for name in learner.class_names):
            every.setdefault(natural_name(name), name)
        names = tuple(every.values())
    else:
        names = listed(class_names, "class names")
    frozen = F.normalize(clip.encode_text(filled(names, [template])), dim=-1)
    shifts = torch.stack([_features(learner, names, title) - frozen for title, learner in learners.items()])
    units = F.normalize(shifts, dim=-1)  # (M, C, D)
    scores = torch.einsum("icd,jcd->ijc", units, units).mean(dim=-1)
    return Transferability(tuple(learners), scores.cpu(), names)


def _one_backbone(learners: Mapping[str, PromptLearner]) -> FrozenCLIP:
    """The frozen model that all learners share; an error if they have different ones."""
    clips = [learner.clip for learner in learners.values()]
    if any(clip.identity() != clips[0].identity() for clip in clips):
        raise VlpromptError("these learners have different backbones, whose features cannot be compared")
    return clips[0]


def _features(learner: PromptLearner, names: tuple[str, ...], title: str) -> Tensor:
    """A learner's normalised features (C, D) of some classes."""
    if "text" not in learner.facts.trains or learner.facts.classifier == "per_image":
        raise VlpromptError(f"{title} ({learner.method}) has no learnt class features that all images share")
    with learner.eval().scoring(names):
        return F.normalize(learner.text_features(), dim=-1)


@checked
@paper_figure
def plot_transferability(found: Transferability) -> Figure:
    """Draw the scores as a matrix, each with its number."""
    size = 1.2 + 0.5 * len(found.names)
    figure, ax = new_figure(size + 0.6, size)
    image = ax.imshow(found.scores.numpy(), cmap="PuOr", vmin=-1, vmax=1)
    places = range(len(found.names))
    ax.set_xticks(places, found.names, rotation=45, ha="right")
    ax.set_yticks(places, found.names)
    for i in places:
        for j in places:
            value = float(found.scores[i, j])
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > 0.7 else "black")
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, label="cosine of class-feature shifts", shrink=0.8)
    return figure
