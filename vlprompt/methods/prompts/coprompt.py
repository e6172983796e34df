"""CoPrompt: consistency-guided prompt learning (Roy & Etemad, ICLR 2024, arXiv:2306.01195).

Trained: MaPLe's prompts and maps, and a bottleneck adapter on each tower's final feature. The loss adds 1 - cos to the
frozen feature of a description of the class and to that of another augmented view of the image.
Protocols: few-shot, base-to-new, cross-dataset, domain generalization.
Differs from the authors' code: descriptions (``descriptions=FILE``, ``{class: [sentences]}``) are read while training
only, fall back to the templates where there are none, and may differ in number between classes; settings do not depend
on the dataset that is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from vlprompt.clip import FrozenCLIP
from vlprompt.learner import register
from vlprompt.learner.objectives import Batch
from vlprompt.methods.prompts.maple import MaPLe


class Adapter(nn.Module):
    """Mixes a feature with a bottleneck of it: r·relu(W₂ relu(W₁ x)) + (1 - r)·x."""

    def __init__(self, clip: FrozenCLIP, reduction: int, ratio: float):
        super().__init__()
        width = clip.embed_dim
        hidden = max(1, width // reduction)
        self.ratio = ratio
        self.fc = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Adapt features (…, D)."""
        adapted: Tensor = self.ratio * self.fc(x) + (1 - self.ratio) * x
        return adapted


@register("coprompt", paper="arXiv:2306.01195", trains=("text", "vision"), cacheable_images=False, fidelity="code")
class CoPrompt(MaPLe):
    """Coupled deep prompts and adapters, consistent with the frozen model on other inputs."""

    @dataclass
    class Config(MaPLe.Config):
        """Settings, as MaPLe's.

        Attributes:
            text_ratio, image_ratio: share of the adapter's output in each feature.
            reduction: of the adapters' bottleneck.
        """

        objective: list[str] = field(
            default_factory=lambda: [
                "ce",
                "description_anchor(weight=1.0)",
                "image_anchor(weight=1.0, distance='cos', view='image_strong')",
            ]
        )
        text_ratio: float = 0.2
        image_ratio: float = 0.1
        reduction: int = 4

    config: Config

    def setup(self) -> None:
        """Create MaPLe's learnables and the two adapters, D -> D/4 -> D."""
        super().setup()
        self.adapter_text = Adapter(self.clip, self.config.reduction, self.config.text_ratio)
        self.adapter_image = Adapter(self.clip, self.config.reduction, self.config.image_ratio)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Adapted class features (C, D)."""
        adapted: Tensor = self.adapter_text(super().encode_text(v))
        return adapted

    def encode_images(self, batch: Batch) -> Tensor:
        """Adapted features (B, D) of images seen with the coupled tokens."""
        adapted: Tensor = self.adapter_image(super().encode_images(batch))
        return adapted
