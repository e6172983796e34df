"""TaskRes: task residual for tuning vision-language models (Yu et al., CVPR 2023, arXiv:2211.10277).

Trained: a residual x_c per class, starting at zero, that is added to zero-shot CLIP's class feature: t_c + α·x_c.
Protocols: few-shot, domain generalization; also on top of a saved learner (``text=``), whose class features are then
scaled to the norms of zero-shot's.
Differs from the authors' code: fp32; the enhanced base (a text projection that they tuned on each dataset) is not
included. As in theirs, the last epoch is tested.
The residual is added to the text tower's unnormalised features, and the sum is normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlprompt.learner import register
from vlprompt.methods.heads.on_text import OnText


@register(
    "taskres", paper="arXiv:2211.10277", trains=("head",), new_classes=False, paper_settings="none", fidelity="code"
)
class TaskRes(OnText):
    """A learnt residual on each class feature."""

    published: ClassVar[Mapping[str, str]] = {"residual": "text_feature_residuals"}

    @dataclass
    class Config(OnText.Config):
        """Settings.

        Attributes:
            alpha: α, the scale of the residual.
        """

        alpha: float = 0.5

    config: Config

    def setup(self) -> None:
        """Create the residual (C, D)."""
        self.residual = nn.Parameter(torch.zeros(len(self.class_names), self.clip.embed_dim))

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D): t + α·x, eq. 6."""
        return self.start_text(normalise_first=False, normalise_last=False) + self.config.alpha * self.residual
