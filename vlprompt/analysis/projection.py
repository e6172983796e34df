"""Projection of image and text features to a plane, before and after learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.analysis.figures import FONT, GREY, new_figure, paper_figure
from vlprompt.base.checks import checked
from vlprompt.base.fonts import shorten
from vlprompt.base.sanitizing import figure_text
from vlprompt.base.tensor_checks import check_labels
from vlprompt.clip.naming import natural_name
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.errors import VlpromptError
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.fusion import first_kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY_CLASSES = 10  # of which a qualitative colour map has distinct colours
SHOWN_NAMES = 20


@dataclass(frozen=True)
class FeatureProjection:
    """Features of B images and C classes in one common plane.

    Attributes:
        image_before, image_after: points of the images (B, 2), from the frozen model and from the learner.
        text_before, text_after: points of the classes (C, 2), from the template and from the learner.
        labels: classes of the images (B,).
        class_names: C names.
        by: ``pca`` or ``tsne``.
        explained: share of the variance along each axis; None for t-SNE.
    """

    image_before: np.ndarray
    image_after: np.ndarray
    text_before: np.ndarray
    text_after: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    by: str
    explained: tuple[float, float] | None = None


@checked
@torch.no_grad()
def project_features(
    learner: PromptLearner,
    images: Tensor,
    labels: Tensor,
    by: Literal["pca", "tsne"] = "pca",
    *,
    close_gap: bool = True,
    template: str = DEFAULT_TEMPLATE,
    seed: int = 0,
) -> FeatureProjection:
    """Project normalised image and text features, before and after learning, by one map for all of them.

    CLIP's image and text features lie in two distant cones. With ``close_gap`` each modality's mean over its features
    *before* learning is subtracted from its features before and after, so that the plane shows classes instead of that
    gap; movements by learning stay visible. In a t-SNE plane only neighbourhoods are meaningful, not distances, sizes
    or directions.

    Args:
        learner: any learner; class features made for each image (CoCoOp) enter as their mean over the images.
        images: (B, 3, H, W) as the backbone takes them.
        labels: (B,), indices into the learner's class names.
        by: principal components, or t-SNE.
        close_gap: subtract each modality's mean.
        template: the text before learning, with ``{}`` for the class name.
        seed: the random seed of t-SNE.

    Raises:
        VlpromptError: ``by`` is unknown, or labels and images do not match.
    """
    if by not in ("pca", "tsne"):
        raise VlpromptError(f"unknown projection '{by}': use pca or tsne")
    labels = check_labels(labels, len(images), len(learner.class_names))
    learner.eval()
    texts = [template.replace("{}", natural_name(name)) for name in learner.class_names]
    image_before = F.normalize(learner.clip.encode_image(images), dim=-1)
    encoded = learner.encoded(images.to(learner.clip.device))
    image_after = F.normalize(first_kind(encoded), dim=-1)
    text_before, text_after = F.normalize(learner.clip.encode_text(texts), dim=-1), _text_after(learner, encoded)
    pairs = [(image_before, image_after), (text_before, text_after)]
    if close_gap:
        pairs = [(before - before.mean(dim=0), after - before.mean(dim=0)) for before, after in pairs]
    parts = [part for pair in pairs for part in pair]
    points, explained = _project(torch.cat(parts).cpu().numpy(), by, seed)
    i0, i1, t0, t1 = np.split(points, np.cumsum([len(part) for part in parts])[:-1])
    return FeatureProjection(i0, i1, t0, t1, labels.cpu().numpy(), learner.class_names, by, explained)


def _text_after(learner: PromptLearner, encoded: Tensor) -> Tensor:
    """Normalised class features (C, D), their mean over the images where each has its own."""
    if learner.facts.classifier == "shared":
        return F.normalize(learner.text_features(), dim=-1)
    each = torch.cat([learner.outputs(x).text_features for x in encoded.split(1)])  # (B, C, D)
    return F.normalize(each.mean(dim=0), dim=-1)


def _project(features: np.ndarray, by: str, seed: int) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Points (N, 2) of features (N, D), and the axes' shares of variance where there are any."""
    if by == "pca":
        from sklearn.decomposition import PCA

        pca = PCA(2, svd_solver="full")
        points = pca.fit_transform(features)
        x, y = map(float, pca.explained_variance_ratio_)
        return points, (x, y)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(features), None


@checked
@paper_figure
def plot_projection(projection: FeatureProjection) -> Figure:
    """Draw the plane before and after: dots are images, stars are class names, each class in its own colour.

    Both panels have the same axes. In the right panel a line leads from each star's earlier position to the star.
    """
    p = projection
    figure, axes = new_figure(6.6, 3.2, ncols=2, sharex=True, sharey=True)
    colours = _colours(len(p.class_names))
    panels = (("before", p.image_before, p.text_before), ("after", p.image_after, p.text_after))
    for ax, (title, images, text) in zip(axes, panels, strict=True):
        ax.scatter(*images.T, s=9, c=colours[p.labels], alpha=0.55, linewidths=0)
        if title == "after":
            for start, end in zip(p.text_before, text, strict=True):
                ax.plot(*zip(start, end, strict=True), color=GREY, linewidth=0.7, zorder=2)
        ax.scatter(*text.T, s=75, c=colours, marker="*", edgecolors="black", linewidths=0.6, zorder=3)
        ax.set(title=title, xticks=[], yticks=[])
        for side in ("top", "right"):
            ax.spines[side].set_visible(True)
    if p.explained:
        axes[0].set_ylabel(f"component 2 ({p.explained[1]:.0%} of variance)")
        figure.supxlabel(f"component 1 ({p.explained[0]:.0%} of variance)", fontsize=FONT)
    if len(p.class_names) <= SHOWN_NAMES:
        names = [figure_text(shorten(name, 24)) for name in p.class_names]
        handles = [axes[0].scatter([], [], c=[c], s=12, label=n) for c, n in zip(colours, names, strict=True)]
        figure.legend(handles=handles, loc="outside right center", handletextpad=0.1)
    return figure


def _colours(count: int) -> np.ndarray:
    """The colour of each class as RGBA (C, 4)."""
    import matplotlib

    if count <= MANY_CLASSES:
        return matplotlib.colormaps["tab10"](np.arange(count))
    return matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, count))
