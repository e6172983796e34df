"""MMRL: multi-modal representation learning (Guo & Gu, CVPR 2025, arXiv:2503.08497).

Trained: r representation tokens R in a space of their own; a map to the width of each tower for each of the upper
blocks; and a second projection of the image tower. The tokens are inserted at the input of the first of those blocks,
after start-of-text and next to CLS, and replaced in each block that follows. An image is scored twice: with its class
feature, as in CLIP, and with the mean of its representation tokens under the second projection. The loss is
α·CE(class) + (1-α)·CE(rep), plus λ(1 - cos) to the frozen features of the same view and of the same text. Classes that
were trained on are scored by α·class + (1-α)·rep; all others, and the same classes in another dataset, by class alone.
Protocols: few-shot, base-to-new, cross-dataset, domain generalization.
Differs from the authors' code: blocks 6 to 12 of 12 become the upper half on other towers; class features are
recomputed as they change (theirs are kept during evaluation); training is in fp32 (theirs: mixed precision); the values
that they set per dataset (λ and, for EuroSAT, the width of the token space) are used with ``selection=paper`` only.
Traps in their code: logits have the constant scale 100 instead of the model's; the second projection starts at random,
not at CLIP's; the table of λ overrides the configuration; EuroSAT's wider space makes a checkpoint from ImageNet
unloadable; the protocol is read from the raw command line.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from vlprompt.base.checks import check_templates
from vlprompt.clip.edits import Edit, Rows, Tower
from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner, register
from vlprompt.learner.fusion import PartCrossEntropy
from vlprompt.learner.objectives import Batch
from vlprompt.learner.prompts import random_tokens

Share = Annotated[float, Field(ge=0, le=1)]


class InsertedTokens(Edit):
    """Tokens that lengthen a sequence at the input of one block and are replaced in later ones; made for each call.

    Args:
        tower: ``text``, inserted after start-of-text, or ``vision``, appended to the image's own tokens.
        tokens: (r, d) by the index of the block; the first of them inserts.
        start: text: position of the first.
        share: share β of the new tokens where others are present; those have the rest.

    Attributes:
        read: vision: the tokens after the last block (B, r, d_v).
    """

    needs_all_tokens = True

    def __init__(self, tower: Tower, tokens: Mapping[int, Tensor], last: int, start: int = 0, share: float = 1.0):
        self.tower, self.new, self.last, self.start, self.share = tower, tokens, last, start, share
        self.first, self.read = min(tokens), torch.empty(0)

    def tokens(self, layer: int, x: Tensor, rows: Rows) -> Tensor:
        """Insert r tokens into x (…, T, d), or replace those inserted before."""
        if layer not in self.new:
            return x
        if layer == self.first and self.tower == "vision":
            self.start = x.shape[-2]
        new = self.new[layer].expand(*x.shape[:-2], -1, -1)
        behind = self.start + (0 if layer == self.first else new.shape[-2])
        if layer != self.first and self.share != 1:
            new = torch.lerp(x[..., self.start : behind, :], new, self.share)
        return torch.cat([x[..., : self.start, :], new, x[..., behind:, :]], dim=-2)

    def finished(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        """Keep the inserted tokens of the image tower after the last block."""
        if self.tower == "vision" and layer == self.last:
            self.read = out[:, self.start : self.start + self.new[self.first].shape[-2]]
        return out


class CopiedMaps(nn.ModuleList):
    """A linear map to a tower's width for each block, all initialized as copies of one."""

    def __init__(self, width_in: int, width: int, blocks: int):
        first = nn.Linear(width_in, width)
        super().__init__([first, *(copy.deepcopy(first) for _ in range(blocks - 1))])

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """The tokens (r, d) of each block, from the shared ones (r, d_r)."""
        return [each(tokens) for each in self]


@register(
    "mmrl",
    paper="arXiv:2503.08497",
    trains=("text", "vision"),
    cacheable_images=False,
    head=True,
    parts=("class", "rep"),
    paper_settings="unnamed",
    fidelity="code",
)
class MMRL(PromptLearner):
    """Representation tokens in the upper blocks of both towers, which give a second image feature."""

    published: ClassVar = {
        "tokens": "representation_learner.compound_rep_tokens",
        "to_vision.{i}.": "representation_learner.compound_rep_tokens_r2vproj.{i}.",
        "to_text.{i}.": "representation_learner.compound_rep_tokens_r2tproj.{i}.",
        "proj_rep": "image_encoder.proj_rep",
    }

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            n_rep_tokens: number r of representation tokens.
            rep_dim: width of their space.
            rep_start, rep_end: first and last block with tokens, counted from 1; None means the upper half of the
                shallower tower.
            alpha: share α of the class feature in the logits of classes that were trained on; the loss has its own
                weights.
            scale: factor of the cosines; None uses the model's.
            template: text template; None uses the first of the dataset that is trained or tested on.
        """

        objective: list[str] = field(
            default_factory=lambda: [
                "ce(weight=0.7)",
                "part_ce(part=rep, weight=0.3)",
                "text_anchor(weight=0.5)",
                "image_anchor(weight=0.5, distance=cos)",
            ]
        )
        n_rep_tokens: Annotated[int, Field(ge=1)] = 5
        rep_dim: Annotated[int, Field(ge=1)] = 512
        rep_start: Annotated[int, Field(ge=1)] | None = None
        rep_end: Annotated[int, Field(ge=1)] | None = None
        alpha: Share = 0.7
        scale: Annotated[float, Field(gt=0)] | None = 100.0
        template: str | None = None

    config: Config
    to_vision: nn.Module  # from the shared space to the tokens of each block
    to_text: nn.Module

    def setup(self) -> None:
        """Create the tokens (r, d_r), the maps to both towers, and the second projection (d_v, D)."""
        config, clip = self.config, self.clip
        clip.require(text=1, vision=1)
        if clip.visual.projection is None:
            raise VlpromptError(f"{clip.name}: its image tower has no projection, which {self.method} has a second of")
        trained = any(isinstance(each, PartCrossEntropy) and each.part == "rep" for each in self.objectives)
        if config.alpha < 1 and not trained:
            raise VlpromptError(
                f"{self.method} also scores the trained classes by representation features, which nothing in its "
                "objective trains: add part_ce(part=rep, weight=0.3), or set alpha=1"
            )
        self.templates = check_templates([config.template or self.templates[0]])  # the anchor uses it too
        self.blocks = self._blocks(min(clip.text.layers, clip.visual.layers))
        self.tokens = random_tokens(config.n_rep_tokens, config.rep_dim)
        self._make_maps()

    def _make_maps(self) -> None:
        """Create the maps from the shared space to the towers, and from the image tower to the joint width."""
        clip, sizes = self.clip, (self.config.rep_dim, len(self.blocks))
        self.to_vision = CopiedMaps(sizes[0], clip.visual.width, sizes[1])
        self.to_text = CopiedMaps(sizes[0], clip.text.width, sizes[1])
        width = clip.visual.width
        self.proj_rep = nn.Parameter(torch.randn(width, clip.embed_dim) * width**-0.5)

    def _blocks(self, most: int) -> range:
        """Indices of the blocks with tokens, out of ``most`` blocks."""
        first = max(1, most // 2) if self.config.rep_start is None else self.config.rep_start
        last = most if self.config.rep_end is None else self.config.rep_end
        if first <= last <= most:
            return range(first - 1, last)
        raise VlpromptError(
            f"{self.clip.name} has {most} blocks in its shallower tower, and representation tokens were asked for in "
            f"blocks {first} to {last}: set rep_start and rep_end to 1 or more and {most} or less, in this order"
        )

    def inserted(self, tower: Tower) -> InsertedTokens:
        """The tokens of each block of a tower, as an edit for one call."""
        maps, view = (self.to_text, self.clip.text) if tower == "text" else (self.to_vision, self.clip.visual)
        tokens = dict(zip(self.blocks, maps(self.tokens), strict=True))
        return InsertedTokens(tower, tokens, view.layers - 1, len(self.clip.start_embedding()), self.new_share)

    @property
    def new_share(self) -> float:
        """Share of a block's own tokens in those that enter it, after the first block."""
        return 1.0

    def second_projection(self) -> Tensor:
        """The projection of the representation tokens (d_v, D)."""
        return self.proj_rep

    @property
    def follows_templates(self) -> bool:
        """If no template is set."""
        return self.config.template is None

    def prepare_classes(self) -> None:
        """Tokenize the template with each class name."""
        self.prompts = self.clip.prompts_of_classes(self.class_names, self.templates[0])

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D)."""
        edits = [self.inserted("text"), *self.edits]
        return self.clip.encode_prompts(self.prompts, self.config.text_chunk, edits)[0]

    def encode_images(self, batch: Batch) -> Tensor:
        """Class and representation features (B, 2, D)."""
        inserted = self.inserted("vision")
        own = self.clip.prompted_image_features(batch["image"], {}, edits=[inserted, *self.edits])
        # the norm comes before the mean over the tokens
        rep = self.clip.visual.final_norm(inserted.read).mean(dim=1) @ self.second_projection()
        return torch.stack([own, rep], dim=1)

    @property
    def logit_scale(self) -> float:
        """A constant, as published."""
        return self.clip.logit_scale if self.config.scale is None else self.config.scale

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C) of features v (B, D) of either kind."""
        return self.logit_scale * (v @ t.T) + self.clip.logit_bias

    def parts(self, v: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Logits by the class feature and, if known, by the representation feature."""
        kinds = v.unbind(dim=1) if v.dim() == 3 else (v,)
        return {name: self.score(kind, t) for name, kind in zip(self.facts.parts, kinds, strict=False)}

    def fuse(self, parts: Mapping[str, Tensor]) -> Tensor:
        """α·class + (1-α)·rep for trained classes in images of the same dataset; class alone otherwise."""
        if self.familiar != "trained":
            return parts["class"]
        return torch.lerp(parts["rep"], parts["class"], self.config.alpha)
