"""RESTORE: towards feature shift for vision-language prompt learning (Yang et al., 2024, arXiv:2403.06136).

Trained: MaPLe's prompts and maps, and a "surgery" block on each tower's final feature, f + r·FFN(LN(f)). The loss adds
the squared difference between the modalities' prompt norms ‖P_iᵀP_i‖_F, relative to their initial values, per layer.
Protocols: base-to-new, cross-dataset.
Differs from the authors' code: the initial norms are part of the checkpoint, so that a resumed run has the same loss.
The consistency term is the code's; the paper describes it as the shift of block features between with and without
prompts, which ``vlprompt.analysis.feature_shift`` measures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vlprompt.learner import PromptLearner, register
from vlprompt.learner.edits import Surgery
from vlprompt.learner.objectives import OBJECTIVES, Batch, Objective, Outputs
from vlprompt.methods.prompts.maple import MaPLe

TEXT_STEP, IMAGE_STEP = 0.02, 0.005  # growth of the ratios, once, per unit of mean prompt norm


def gram_norm(prompt: Tensor) -> Tensor:
    """‖PᵀP‖_F of a prompt (n, d), computed as ‖PPᵀ‖_F of (n, n)."""
    norm: Tensor = (prompt @ prompt.T).norm()
    return norm


@OBJECTIVES.register("prompt_shift")
class PromptShift(Objective):
    """Squared difference of the two modalities' relative prompt norms, summed over deep layers (RESTORE's code)."""

    def refuses(self, learner: PromptLearner) -> str | None:
        """Only RESTORE keeps the norms."""
        return None if isinstance(learner, RESTORE) else "compares norms that restore alone keeps"

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Sum over layers 1…J-1."""
        assert isinstance(learner, RESTORE)  # or it was refused
        text, image = learner.prompt_norms()
        learner.remember_norms(text, image)
        return (text / learner.first_text_norms - image / learner.first_image_norms).pow(2).sum()


@register("restore", paper="arXiv:2403.06136", trains=("text", "vision"), cacheable_images=False, fidelity="code")
class RESTORE(MaPLe):
    """Coupled deep prompts whose shift is kept equal in both modalities."""

    own_state: ClassVar = ("first_text_norms", "first_image_norms")
    published: ClassVar = {
        **MaPLe.published,
        "text_adapter.ratio": "text_cali_ratio",
        "visual_adapter.ratio": "vis_cali_ratio",
    }

    @dataclass
    class Config(MaPLe.Config):
        """Settings, those of MaPLe and more.

        Attributes:
            text_ratio, image_ratio: initial r of the surgery blocks.
            grow_ratios: whether r grows once, a third into training, with the prompts' norms.
        """

        objective: list[str] = field(default_factory=lambda: ["ce", "prompt_shift(weight=1.0)"])
        text_ratio: float = 0.1
        image_ratio: float = 0.01
        grow_ratios: bool = True

    config: Config
    first_text_norms: Tensor
    first_image_norms: Tensor

    def setup(self) -> None:
        """Create MaPLe's learnables and the surgery blocks, D -> 4D -> D."""
        super().setup()
        self.text_adapter = Surgery(self.clip, "text", self.config.text_ratio)
        self.visual_adapter = Surgery(self.clip, "vision", self.config.image_ratio)
        self.edits += [self.text_adapter, self.visual_adapter]
        for name in ("first_text_norms", "first_image_norms"):  # zero until the first forward pass
            self.register_buffer(name, torch.zeros(self.config.depth - 1))

    def prompt_norms(self) -> tuple[Tensor, Tensor]:
        """‖PᵀP‖_F of the deep text prompts and of the visual prompts made from them: two tensors (J-1,)."""
        visual = self.coupling([self.prompt.ctx, *self.prompt.deep])
        if not self.prompt.deep:
            return self.first_text_norms, self.first_image_norms
        text = torch.stack([gram_norm(p) for p in self.prompt.deep])
        return text, torch.stack([gram_norm(visual[i + 1]) for i in range(len(self.prompt.deep))])

    def remember_norms(self, text: Tensor, image: Tensor) -> None:
        """Keep the norms of the first forward pass."""
        if not self.first_text_norms.any():
            self.first_text_norms.copy_(text.detach())
            self.first_image_norms.copy_(image.detach())

    @torch.no_grad()
    def after_epoch(self, epoch: int, epochs: int) -> None:
        """A third into training let the ratios grow with the mean prompt norms, once."""
        if self.config.grow_ratios and epoch == epochs // 3 and self.prompt.deep:
            text, image = self.prompt_norms()
            self.text_adapter.ratio += TEXT_STEP * text.mean()
            self.visual_adapter.ratio += IMAGE_STEP * image.mean()
