"""Where the CLS token and the learnt tokens of a ViT look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.analysis.figures import FONT, GREY, displayable, new_figure, paper_figure
from vlprompt.base.checks import checked, index_of
from vlprompt.clip.edits import Edit
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.towers import VisionTower
from vlprompt.errors import VlpromptError
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.recording import extra_edits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AttentionMaps:
    """Attention weights of B images in L blocks of H heads; n learnt tokens, an (h, w) grid of patches.

    A token's weights over all keys sum to one: over the patches (the maps), CLS and the learnt tokens (``shares``).

    Attributes:
        cls: of CLS over the patches (B, L, H, h, w).
        prompts: of the learnt tokens over the patches (B, L, H, n, h, w); n is 0 where the image tower has none.
        shares: of CLS, then of each learnt token, the weight on CLS, on all patches and on all learnt tokens
            (B, L, H, 1+n, 3).
        images: (B, 3, H, W) in [0, 1], to draw over.
    """

    cls: Tensor
    prompts: Tensor
    shares: Tensor
    images: Tensor


@checked
@torch.no_grad()
def attention_maps(model: PromptLearner | FrozenCLIP, images: Tensor) -> AttentionMaps:
    """Return the attention weights of CLS and of the learnt tokens while a learner encodes images.

    A frozen model, or a learner that leaves the image tower alone, has maps of CLS only. Attention says where
    information is taken from, not what decides: two heads that look at the same patch may have opposite effects.

    Args:
        model: a learner, or the frozen model for comparison.
        images: (B, 3, H, W) as the backbone takes them; memory grows with B·L·H·(1+n)·T numbers.

    Raises:
        VlpromptError: the image tower is not an OpenCLIP ViT, or its blocks have different numbers of learnt tokens.
    """
    clip = model.clip if isinstance(model, PromptLearner) else model
    tower = clip.visual
    if not tower.promptable:
        raise VlpromptError(f"{clip.name}: attention maps need a ViT of OpenCLIP, and its image tower is {tower.kind}")
    patch_height, patch_width = tower.patch_size
    grid = clip.image_size // patch_height, clip.image_size // patch_width  # (h, w)
    own = 1 + grid[0] * grid[1]  # CLS and patches come before the learnt tokens
    recorder = _WeightRecorder(tower, own)
    if isinstance(model, PromptLearner):
        with extra_edits(model, recorder):
            model.image_features(images.to(clip.device))
    else:
        clip.prompted_image_features(images, {}, edits=[recorder])
    if len({block.shape for block in recorder.weights}) > 1:
        who = model.method if isinstance(model, PromptLearner) else clip.name
        raise VlpromptError(
            f"{who} has blocks with different numbers of learnt tokens, so there is no map for all of them"
        )
    weights = torch.stack(recorder.weights, dim=1)  # (B, L, H, 1+n, T)
    on_cls, on_patches, on_prompts = weights.split([1, own - 1, weights.shape[-1] - own], dim=-1)
    maps = on_patches.unflatten(-1, grid)  # (B, L, H, 1+n, h, w)
    shares = torch.stack([part.sum(dim=-1) for part in (on_cls, on_patches, on_prompts)], dim=-1)
    return AttentionMaps(maps[:, :, :, 0], maps[:, :, :, 1:], shares, displayable(clip, images))


class _WeightRecorder(Edit):
    """Keeps each block's attention weights of CLS and of the learnt tokens, which follow the ``own`` tokens."""

    tower = "vision"
    needs_all_tokens = True

    def __init__(self, view: VisionTower, own: int):
        self.view, self.own = view, own
        self.weights: list[Tensor] = []  # (B, H, 1+n, T) a block

    def project(self, layer: int, x: Tensor, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep the attention weights of this block's queries; the projections themselves stay as they are."""
        if "q" in parts:
            q, k = (self.view.blocks[layer].in_heads(part, parts[part]) for part in "qk")  # (B, T, H, d_h)
            self.weights.append(attention_weights(torch.cat([q[:, :1], q[:, self.own :]], dim=1), k).cpu())
        return parts


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Softmax attention of queries (B, Q, H, d_h) over keys (B, T, H, d_h): (B, H, Q, T)."""
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    scores: Tensor = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1)


@checked
@paper_figure
def plot_attention(
    maps: AttentionMaps, layer: int = -1, head: int | None = None, frozen: AttentionMaps | None = None
) -> Figure:
    """Draw one row per image: the image, then the attention maps of CLS and of each learnt token over it.

    Each map is scaled to its own largest weight. The number above it is the share of attention that falls on patches;
    the rest falls on CLS and on the learnt tokens.

    Args:
        maps: what ``attention_maps`` returned.
        layer: index of the block.
        head: index of the head; None takes the mean over heads.
        frozen: maps of the frozen model on the same images, shown before the learner's.
    """
    layer = index_of("layer", layer, maps.cls.shape[1])
    columns = [("CLS", maps.cls[:, layer], maps.shares[:, layer, :, 0, 1])]
    if frozen is not None:
        columns.insert(0, ("CLS, frozen", frozen.cls[:, layer], frozen.shares[:, layer, :, 0, 1]))
    for i in range(maps.prompts.shape[3]):
        columns.append((f"token {i + 1}", maps.prompts[:, layer, :, i], maps.shares[:, layer, :, i + 1, 1]))
    count, across = len(maps.images), 1 + len(columns)
    figure, axes = new_figure(0.95 * across, 1.1 * count, nrows=count, ncols=across, squeeze=False)
    for row, image in zip(range(count), maps.images, strict=True):
        for ax in axes[row]:
            ax.axis("off")
            ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="bilinear")
        axes[row, 0].set_title("image" if row == 0 else "", pad=2)
        for ax, (title, weights, share) in zip(axes[row, 1:], columns, strict=True):
            _draw_over(ax, _over_heads(weights, head)[row], image.shape[-2:])
            heading = f"{title if row == 0 else ''}\n{float(_over_heads(share, head)[row]):.0%}"
            ax.set_title(heading.strip(), pad=2)
    figure.supxlabel("above each map: the share of attention on patches", fontsize=FONT, color=GREY)
    return figure


@checked
@paper_figure
def plot_attention_heads(maps: AttentionMaps, image: int = 0, token: int = 0) -> Figure:
    """Draw where one token looks in every head (columns) of every block (rows), on the grid of patches.

    Args:
        maps: what ``attention_maps`` returned.
        image: index of the image.
        token: 0 for CLS, i for the i-th learnt token.
    """
    weights = maps.cls[image] if token == 0 else maps.prompts[image, :, :, token - 1]  # (L, H, h, w)
    layers, heads = weights.shape[:2]
    figure, axes = new_figure(0.62 * heads + 0.3, 0.62 * layers + 0.4, nrows=layers, ncols=heads, squeeze=False)
    for i, row in enumerate(axes):
        for j, ax in enumerate(row):
            ax.imshow(weights[i, j].numpy(), cmap="magma", vmin=0)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if i == 0:
                ax.set_title(f"head {j + 1}", color=GREY)
            if j == 0:
                ax.set_ylabel(f"block {i + 1}", color=GREY)
    figure.suptitle("attention of CLS" if token == 0 else f"attention of learnt token {token}")
    return figure


def _over_heads(values: Tensor, head: int | None) -> Tensor:
    """One head of (B, H, …), or the mean over heads: (B, …)."""
    return values.mean(dim=1) if head is None else values[:, head]


def _draw_over(ax: Axes, weights: Tensor, size: tuple[int, int]) -> None:
    """Lay a map (h, w), enlarged smoothly, over the image that the axes show."""
    smooth = F.interpolate(weights[None, None], size=tuple(size), mode="bicubic")[0, 0].clamp_min(0)
    ax.imshow((smooth / smooth.max().clamp_min(1e-12)).numpy(), cmap="inferno", alpha=0.65, vmin=0, vmax=1)
