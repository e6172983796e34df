"""CoPrompt: consistency-guided prompt learning (Roy & Etemad, ICLR 2024, arXiv:2306.01195).

Trained: MaPLe's prompts and maps, and a bottleneck adapter on each tower's final feature. The loss adds 1 - cos to the
frozen feature of a description of the class, and 1 - cos to the frozen feature of another augmented view of the image.
Protocols: few-shot, base-to-new, cross-dataset, domain generalization.
Differs from the authors' code: descriptions (``descriptions=FILE``, ``{class: [sentences]}``) are read in training
only, are replaced by the templates if there are none, and may differ in number between classes; settings do not depend
on the dataset that is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlprompt.learner import register
from vlprompt.learner.edits import Adapter
from vlprompt.methods.prompts.maple import MaPLe


@register("coprompt", paper="arXiv:2306.01195", trains=("text", "vision"), cacheable_images=False, fidelity="code")
class CoPrompt(MaPLe):
    """Coupled deep prompts and adapters, kept consistent with the frozen model on other inputs."""

    @dataclass
    class Config(MaPLe.Config):
        """Settings, those of MaPLe and more.

        Attributes:
            text_ratio, image_ratio: share of the adapter's output in each feature.
            reduction: the feature width divided by that of the adapters' bottleneck.
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
        reduction = self.config.reduction
        self.adapter_text = Adapter(self.clip, "text", reduction, self.config.text_ratio)
        self.adapter_image = Adapter(self.clip, "vision", reduction, self.config.image_ratio)
        self.edits += [self.adapter_text, self.adapter_image]
