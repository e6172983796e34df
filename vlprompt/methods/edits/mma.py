"""MMA: multi-modal adapter for vision-language models (Yang et al., CVPR 2024).

Trained: in the upper blocks of both towers, a branch from the block's input x that is added to its output,
y = s·up(ReLU(S(ReLU(down(LN x))))), where the middle map S is shared by the towers. The scale s is small, but as in the
authors' code the branches get the gradients of s = 1; with the true gradients, the same learning rate would move them
1/s times less. The text is "a photo of a {class}." for every dataset.
Protocols: base-to-new, cross-dataset, domain generalization; few-shot, without a recipe from the authors.
Differs from the authors' code: blocks 5 to 12 of 12 become the upper two thirds on other towers; the towers may differ
in depth (theirs fails if the text tower is deeper); class features are recomputed as they change (theirs are kept from
the first evaluation on, so a validation between epochs scores stale ones); training is in fp32 (theirs: mixed
precision). Traps in their code: its defaults (from block 4, s = 0.1) are not the recipe's; a branch on the embeddings,
index 0, is never used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from vlprompt.base.checks import check_templates
from vlprompt.clip.edits import Edit, Tower
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner, register


class _Scaled(torch.autograd.Function):
    """Multiplies by one factor in the forward pass and by another in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: float, back: float) -> Tensor:
        """Scale x."""
        ctx.back = back
        return x * forth

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient."""
        return gradients[0] * ctx.back, None, None


def scaled(x: Tensor, forth: float, back: float) -> Tensor:
    """Return forth·x, with the gradient of back·x."""
    if not torch.is_grad_enabled():  # and exports contain plain operations
        return x * forth
    return cast(Tensor, _Scaled.apply(x, forth, back))


class Bottleneck(nn.Module):
    """The maps d -> r and r -> d of one branch; weights Kaiming normal (fan-out), biases 0."""

    def __init__(self, width: int, middle: int):
        super().__init__()
        self.down = nn.Sequential(nn.Linear(width, middle), nn.ReLU())
        self.up = nn.Linear(middle, width)

    def forward(self, x: Tensor, middle: nn.Module) -> Tensor:
        """The branch's output for x (…, d), given the function between its two maps."""
        out: Tensor = self.up(middle(self.down(x)))
        return out


def branch_weights(module: nn.Module) -> None:
    """Draw the weights of a branch's linear maps."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(module.bias)


class SideBranches(Edit):
    """Branches from the input of a tower's blocks to their output.

    Args:
        clip: the frozen model.
        tower: ``text`` or ``vision``.
        own: the tower's ``Bottleneck`` of each block, by its number, counted from 1.
        shared: the map between down and up of each block.
        scale: s.
    """

    def __init__(self, clip: FrozenCLIP, tower: Tower, own: nn.ModuleDict, shared: nn.ModuleDict, scale: float):
        self.clip, self.tower, self.own, self.shared, self.scale = clip, tower, own, shared, scale

    def finished(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        """Add the branch of the block's input x (…, d) to its output."""
        block = str(layer + 1)
        if block not in self.own:
            return out
        view = self.clip.text if self.tower == "text" else self.clip.visual
        entering = scaled(view.blocks[layer].normed(x), 1.0, self.scale)  # the gradient to earlier blocks keeps s
        return out + scaled(self.own[block](entering, self.shared[block]), self.scale, 1.0)


@register("mma", paper="CVPR 2024", trains=("text", "vision"), cacheable_images=False, fidelity="code")
class MMA(PromptLearner):
    """Adapters beside the upper blocks of both towers, which share their middle layer."""

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            adapter_start, adapter_end: first and last block with an adapter, counted from 1; None means the upper two
                thirds of the shallower tower.
            adapter_dim: width r of the bottleneck.
            adapter_scale: factor s of the adapter's output.
            template: text template.
        """

        adapter_start: Annotated[int, Field(ge=1)] | None = None
        adapter_end: Annotated[int, Field(ge=1)] | None = None
        adapter_dim: Annotated[int, Field(ge=1)] = 32
        adapter_scale: Annotated[float, Field(gt=0)] = 1e-3
        template: str = DEFAULT_TEMPLATE

    config: Config

    def setup(self) -> None:
        """Create the branches: maps d -> r and r -> d for each tower and block, and r -> r for each block."""
        config, clip = self.config, self.clip
        clip.require(text=1, vision=1)
        blocks = self._blocks(clip.text.layers, clip.visual.layers)
        self.text_adapter, self.visual_adapter = (
            nn.ModuleDict({str(n): Bottleneck(tower.width, config.adapter_dim) for n in blocks if n <= tower.layers})
            for tower in (clip.text, clip.visual)
        )
        middle = {str(n): nn.Sequential(nn.Linear(config.adapter_dim, config.adapter_dim), nn.ReLU()) for n in blocks}
        self.shared_adapter = nn.ModuleDict(middle)
        for part in (self.text_adapter, self.visual_adapter, self.shared_adapter):
            part.apply(branch_weights)
        shared, scale = self.shared_adapter, config.adapter_scale
        self.edits.append(SideBranches(clip, "text", self.text_adapter, shared, scale))
        self.edits.append(SideBranches(clip, "vision", self.visual_adapter, shared, scale))

    def _blocks(self, *layers: int) -> range:
        """Numbers of the blocks with a branch, given both depths; the last may exist in the deeper tower only."""
        most = min(layers)
        first = most // 3 + 1 if self.config.adapter_start is None else self.config.adapter_start
        last = most if self.config.adapter_end is None else self.config.adapter_end
        if first <= last <= max(layers) and first <= most:
            return range(first, last + 1)
        raise VlpromptError(
            f"{self.clip.name} has towers of {layers[0]} and {layers[1]} blocks, and adapters were asked for in blocks "
            f"{first} to {last}: set adapter_start to {most} or less, and adapter_end to no less than that and to "
            f"{max(layers)} or less"
        )

    def prepare_classes(self) -> None:
        """Tokenize the template with each class name."""
        (template,) = check_templates([self.config.template])
        self.prompts = self.clip.prompts_of_classes(self.class_names, template)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D)."""
        return self.clip.encode_prompts(self.prompts, self.config.text_chunk, self.edits)[0]
