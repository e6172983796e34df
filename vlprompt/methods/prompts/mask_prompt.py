"""Mask prompt tuning of OVSeg (Liang et al., CVPR 2023, arXiv:2210.04150): classification of regions.

Trained: tokens E (J, P, d_v) for the P patch positions in the first J blocks. An image comes with the mask of a region.
A patch is visible if any of its pixels is in the region; the others are blank and replaced by learnt tokens: E_0 before
position embeddings are added, E_i after block i for i < J. CLS is not changed. The text is the dataset's own, encoded
once; with a mask of ones this is plain CLIP.
Protocols: base-to-new, few-shot, cross-dataset, on images with masks (``dataset=shapes``; a table's column ``mask``;
``NAME_mask.png`` next to ``NAME.jpg``).
Differs from the authors' code: the default loss is cross-entropy over the classes, since in a batch with few classes
the published batch-contrastive loss (``objective=[batch_contrastive]``) treats other images of a class as negatives;
zero-shot text and a frozen backbone, where their script starts from a CLIP fine-tuned on masked images. Segmentation,
region proposals and their ensemble are not included. The tokens are for one image size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.clip.edits import Edit, Rows
from vlprompt.learner import PromptLearner, register
from vlprompt.learner.objectives import Batch
from vlprompt.learner.prompts import random_tokens


class BlankPatches(Edit):
    """Learnt tokens in place of the patches that a mask hides; made for one call, since it holds that batch's masks.

    Args:
        tokens: E (J, P, d_v).
        seen: (B, P), 1 for visible patches and 0 for the others.
        positions: position embeddings of CLS and patches (1+P, d_v).
    """

    tower = "vision"

    def __init__(self, tokens: Tensor, seen: Tensor, positions: Tensor):
        self.learnt, self.seen, self.positions = tokens, seen.unsqueeze(-1), positions

    def embedded(self, x: Tensor) -> Tensor:
        """Blend in E_0, which like x includes positions."""
        return self.blend(x, self.learnt[0] + self.positions[1:])

    def tokens(self, layer: int, x: Tensor, rows: Rows) -> Tensor:
        """Blend in E_i at the input of block i, which is the output of the authors' block i (they count from 1)."""
        return self.blend(x, self.learnt[layer]) if 0 < layer < len(self.learnt) else x

    def blend(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x (B, T, d_v) with ``hidden`` (P, d_v) in place of blank patches; CLS and prompts are kept."""
        patches = 1 + self.seen.shape[1]
        mixed = self.seen * x[:, 1:patches] + (1 - self.seen) * hidden
        return torch.cat([x[:, :1], mixed, x[:, patches:]], dim=1)


@register(
    "mask_prompt",
    paper="arXiv:2210.04150",
    trains=("vision",),
    cacheable_images=False,
    inputs=("image", "mask"),
    fidelity="code",
)
class MaskPrompt(PromptLearner):
    """Learnt tokens in place of the patches outside an image's region."""

    published: ClassVar = {"tokens": "visual.mask_embedding"}

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            depth: number J of blocks in which tokens replace blank patches.
            blank: fill the pixels outside the region with the model's mean colour, as in images cropped by OVSeg.
        """

        depth: int = 3
        blank: bool = True

    config: Config

    def setup(self) -> None:
        """Create the tokens (J, P, d_v) from N(0, 0.02²)."""
        self.clip.require(vision=self.config.depth)
        visual = self.clip.visual
        self.tokens = random_tokens(self.config.depth, len(visual.positions) - 1, visual.width)

    @property
    def follows_templates(self) -> bool:
        """Its class texts are templates."""
        return True

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D), fixed."""
        return self.class_text()

    def encode_images(self, batch: Batch) -> Tensor:
        """Features (B, D) of the images' regions, or of whole images if the batch has no masks."""
        images = batch["image"].to(self.clip.device)
        masks = batch.get("mask")
        if masks is None:
            return self.clip.prompted_image_features(images, {}, edits=self.edits)
        masks = masks.to(images)
        blank = BlankPatches(self.tokens, seen_patches(masks, self.clip.visual.patch_size), self.clip.visual.positions)
        if self.config.blank:
            images = images * masks
        return self.clip.prompted_image_features(images, {}, edits=[blank, *self.edits])


def seen_patches(masks: Tensor, patch: tuple[int, int]) -> Tensor:
    """1 for each patch with any pixel in the region, otherwise 0: masks (B, 1, H, W) -> (B, P)."""
    return F.max_pool2d(masks, patch).flatten(1)
