"""TCP: textual-based class-aware prompt tuning (Yao et al., CVPR 2024, arXiv:2311.18231).

Trained: CoOp's context, and a meta-net that maps each class's frozen text feature w_c to class-specific tokens P_c.
These replace the context at the input of one block, two thirds up the text tower: from there on, the context acts only
through the tokens that have attended to it. The loss adds λ(1 - cos) to the frozen class features. Below that block the
prefix is shared by all classes; from it on, each class has its own. Attribute words and their vectors stand before the
replaced tokens and are not replaced.
Protocols: base-to-new; few-shot, cross-dataset and domain generalization, without recipes from the authors.
Differs from the authors' code: the block follows from the tower's depth (theirs is hard-coded, 8 of 12, and so is a
width); λ is a setting (theirs is hard-coded, and the configuration's is not read); fp32, so that Adam needs no larger
eps, which the recipe keeps nevertheless. Traps in their code: a given ``CTX_INIT`` is ignored in favour of "a photo of
a"; for ImageNet and SUN397 the number of epochs overrides the command line; prompt and teacher use different templates.
On datasets other than that of training, both stay those of training here; theirs are chosen by the dataset's name.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from vlprompt.base.checks import check_templates
from vlprompt.clip.edits import Edit, Rows
from vlprompt.clip.openclip import QuickGELU
from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner, register
from vlprompt.learner.attributes import AttributeSettings
from vlprompt.learner.prompts import TextPrompt


class ClassAware(Edit):
    """Class-specific tokens in place of the context, from the input of one block on.

    Args:
        own: P (C, n, d_t).
        layer: index of the block.
        start: position of the first token that is replaced.
        weight: share of the new tokens, 1 in the published code; those present have the rest.
    """

    tower = "text"

    def __init__(self, own: Tensor, layer: int, start: int, weight: float):
        self.own, self.shared_until, self.start, self.weight = own.unsqueeze(0), layer, start, weight

    def tokens(self, layer: int, x: Tensor, rows: Rows) -> Tensor:
        """Replace n tokens of x (G, C, T, d_t) in the block's input."""
        if layer != self.shared_until:
            return x
        own = rows.take(self.own).expand(*x.shape[:2], -1, -1)  # (G, C, n, d_t)
        end = self.start + own.shape[-2]
        if self.weight != 1:
            own = torch.lerp(x[..., self.start : end, :], own, self.weight)
        return torch.cat([x[..., : self.start, :], own, x[..., end:, :]], dim=-2)


@register("tcp", paper="arXiv:2311.18231", trains=("text",), fidelity="code")
class TCP(PromptLearner):
    """A context that is replaced, midway, by tokens made from each class's frozen text feature."""

    published: ClassVar = {"prompt.ctx": "ctx"}

    @dataclass
    class Config(AttributeSettings, PromptLearner.Config):
        """Settings.

        Attributes:
            n_ctx: number n of learnt tokens, and of class-specific ones.
            prompt_template: words after the learnt tokens, with {} for the class name.
            teacher_template: template of the frozen class features from which tokens are made and to which the loss
                keeps close; None uses the dataset's own.
            class_layer: block, counted from 0, at whose input class-specific tokens enter; None is two thirds up.
            class_weight: share of those tokens; the tokens present have the rest.
            meta_width: width of the meta-net's hidden layer; None is a quarter of the joint width.
        """

        objective: list[str] = field(default_factory=lambda: ["ce", "text_anchor(weight=8.0)"])
        n_ctx: int = 4
        prompt_template: str = "{}."
        teacher_template: str | None = None
        class_layer: Annotated[int, Field(ge=1)] | None = None
        class_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
        meta_width: Annotated[int, Field(ge=1)] | None = None

    config: Config

    def setup(self) -> None:
        """Create the context (n, d_t), and the meta-net D -> D/4 -> n·d_t."""
        config, text, width = self.config, self.clip.text, self.clip.embed_dim
        self.prompt = TextPrompt(self.clip, config.n_ctx, attributes=config)
        self.class_layer = 2 * text.layers // 3 if config.class_layer is None else config.class_layer
        if not 1 <= self.class_layer < text.layers:
            raise VlpromptError(
                f"class-aware tokens enter between two blocks, and the text tower of {self.clip.name} has {text.layers}"
                f": set class_layer to a number from 1 to {text.layers - 1}, not {self.class_layer}"
            )
        hidden = max(1, width // 4) if config.meta_width is None else config.meta_width
        layers = {
            "linear1": nn.Linear(width, hidden),
            "gelu": QuickGELU(),
            "linear2": nn.Linear(hidden, config.n_ctx * text.width),
        }
        self.meta_net = nn.Sequential(OrderedDict(layers))
        if config.teacher_template is not None:  # of the anchor and of w_c alike
            self.templates = check_templates([config.teacher_template])

    def prepare_classes(self) -> None:
        """Tokenize the class prompts."""
        (template,) = check_templates([self.config.prompt_template])
        before, _, behind = template.partition("{}")
        self.tokens = self.clip.class_tokens(self.class_names, before.strip(), self.prompt.n_inserted, behind)

    def class_aware(self) -> ClassAware:
        """P_c of the present classes (C, n, d_t), as an edit."""
        w = self.frozen_text()  # (C, D)
        own = self.meta_net(w).unflatten(-1, (self.config.n_ctx, -1))
        return ClassAware(own, self.class_layer, self.prompt.first(self.clip), self.config.class_weight)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D)."""
        edits = [self.class_aware(), *self.edits]
        return self.prompt.encode(self.clip, self.tokens, chunk=self.config.text_chunk, edits=edits)[0]
