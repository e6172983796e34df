"""How far prompts move the outputs of the towers' blocks: the feature shift of RESTORE (arXiv:2403.06136)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.analysis.figures import GREY, IMAGE, TEXT, new_figure, paper_figure
from vlprompt.base.checks import checked
from vlprompt.base.tensor_checks import check_images
from vlprompt.clip.naming import natural_name
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.recording import ImageRecorder, TextRecorder, extra_edits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

States = dict[int, list[Tensor]]


@dataclass(frozen=True)
class FeatureShift:
    """Relative change ‖f - f⁰‖ / ‖f⁰‖ of features with prompts, f, against features without, f⁰.

    Attributes:
        text: after each text block, of N class prompts (L_t, N); N is C, or a multiple of C for a learner with several
            prompts.
        image: after each image block, of B images (L_v, B).
        text_feature: of the normalised class features, adapters included (C,), or (B·C,) if each image has its own.
        image_feature: of the normalised image features, adapters included (B,).

    A tower that the learner does not change has shifts of 0; one without transformer blocks (a ResNet) has none.
    """

    text: Tensor
    image: Tensor
    text_feature: Tensor
    image_feature: Tensor

    @property
    def discrepancy(self) -> Tensor:
        """|mean text shift - mean image shift| after each block that both towers have: (min(L_t, L_v),)."""
        blocks = min(len(self.text), len(self.image))
        return (self.text[:blocks].mean(dim=1) - self.image[:blocks].mean(dim=1)).abs()


@checked
@torch.no_grad()
def feature_shift(learner: PromptLearner, images: Tensor, template: str = DEFAULT_TEMPLATE) -> FeatureShift:
    """Measure how far a learner moves the states of both towers' blocks from the frozen model's.

    RESTORE calls the change of block features by prompts their feature shift, and wants it to be alike in both
    modalities: then ``discrepancy`` is small. The paper gives no formula that could be verified, so the relative
    Euclidean change is our reading. It is taken at the token that the tower pools: end-of-text, and CLS (the mean over
    CLS and patches in a tower that pools otherwise). RESTORE's training uses another quantity, the norms of its
    prompts; see ``vlprompt.methods.prompts.restore``.

    Args:
        learner: any learner.
        images: (B, 3, H, W) as the backbone takes them; contexts that depend on the image are made from these.
        template: the text without prompts, with ``{}`` for the class name.
    """
    learner.eval()
    clip, images = learner.clip, check_images(images, learner.clip.image_size).to(learner.clip.device)
    image, image_feature = _image_shift(learner, images)
    frozen_text = [template.replace("{}", natural_name(name)) for name in learner.class_names]
    prompted, frozen = TextRecorder(), TextRecorder()
    with extra_edits(learner, prompted):
        if learner.facts.classifier == "per_image":
            features = torch.cat([learner.outputs(x).text_features for x in learner.encoded(images).split(1)])
        else:
            features = learner.text_features().unsqueeze(0)  # (1, C, D)
    if not prompted.calls:
        nothing = torch.zeros(clip.text.layers, len(frozen_text))
        return FeatureShift(nothing, image, torch.zeros(len(frozen_text)), image_feature)
    without = F.normalize(clip.encode_text(frozen_text, edits=[frozen]), dim=-1)
    text = _by_block(prompted.states, frozen.states, lambda states: states)
    return FeatureShift(text, image, _relative(features, without).flatten().cpu(), image_feature)


def _image_shift(learner: PromptLearner, images: Tensor) -> tuple[Tensor, Tensor]:
    """Shifts after each image block (L_v, B) and of the final feature (B,)."""
    tower = learner.clip.visual
    if learner.facts.cacheable_images:
        return torch.zeros(tower.layers, len(images)), torch.zeros(len(images))
    own = tower.embed(images[:1]).shape[1]
    prompted, frozen = ImageRecorder(), ImageRecorder()
    with extra_edits(learner, prompted):
        feature = learner.image_features(images)
    without = F.normalize(learner.clip.prompted_image_features(images, {}, edits=[frozen]), dim=-1)
    read = (lambda x: x[:, 0]) if tower.cls_only else (lambda x: x[:, :own].mean(dim=1))
    return _by_block(prompted.states, frozen.states, read), _relative(feature, without).cpu()


def _by_block(prompted: States, frozen: States, read: Callable[[Tensor], Tensor]) -> Tensor:
    """Relative change (L, N) of each block's states, at the tokens that ``read`` takes."""
    shifts = [
        _relative(torch.cat([read(x) for x in prompted[i]]), torch.cat([read(x) for x in frozen[i]])).flatten()
        for i in sorted(frozen)
    ]
    return torch.stack(shifts).cpu()


def _relative(changed: Tensor, original: Tensor) -> Tensor:
    """‖f - f⁰‖ / ‖f⁰‖ over the last axis."""
    relative: Tensor = (changed - original).norm(dim=-1) / original.norm(dim=-1)
    return relative


@checked
@paper_figure
def plot_feature_shift(shift: FeatureShift) -> Figure:
    """Draw each tower's shift against the block: the mean over inputs, a band of one standard deviation around it.

    The last point, set apart, is the final feature. A tower without transformer blocks has no line.
    """
    figure, ax = new_figure(3.3, 2.3)
    deepest = max(len(shift.text), len(shift.image))
    for name, colour, marker, blocks, feature in (
        ("text", TEXT, "o", shift.text, shift.text_feature),
        ("image", IMAGE, "s", shift.image, shift.image_feature),
    ):
        if not len(blocks):
            continue
        x = range(1, len(blocks) + 1)
        mean, deviation = blocks.mean(dim=1).numpy(), blocks.std(dim=1, correction=0).numpy()
        ax.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
        ax.plot(x, mean, marker=marker, markersize=3.5, color=colour, label=name)
        spread = float(feature.std(correction=0))
        ax.errorbar(deepest + 1, float(feature.mean()), spread, marker=marker, markersize=3.5, color=colour, capsize=2)
    ax.set_xticks([*range(1, deepest + 1), deepest + 1], [*map(str, range(1, deepest + 1)), "feature"])
    ax.axvline(deepest + 0.5, color=GREY, linewidth=0.5, linestyle=":")
    ax.set(xlabel="block", ylabel="relative shift  ‖f − f⁰‖ / ‖f⁰‖", ylim=(0, None))
    ax.legend()
    return figure
