"""PromptKD: unsupervised prompt distillation for vision-language models (Li et al., CVPR 2024, arXiv:2403.02781).

Trained, on unlabelled images: a student's visual prompts, and a projection of its unnormalised image features to the
teacher's width (linear, batch norm, ReLU, linear). The classifier is the teacher's class features of all names, those
of later tests included; the loss is KL(teacher ‖ student) of the class probabilities, with a weight that compensates
for a division by B·C. The teacher is any saved learner (``teacher=RUN``), such as PromptSRC on a larger backbone,
trained on labelled images of the base classes; without one it is the student's own frozen model.
Protocols: base-to-new without labels; unsupervised (their cross-dataset: the target's training images).
The student keeps the teacher's class features, so it needs the teacher only for other class names.
Differs from the authors' code: the last epoch is tested (theirs takes the epoch that is best on the base classes' test
images, and across datasets on the test set itself); widths are read from the models. Traps: tables list its figures
next to 16-shot methods, although it uses a larger teacher, all training images and the new classes' names; the weight
includes the number of classes; the first map's bias gets no gradient but rounding noise, since a norm follows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner, register
from vlprompt.learner.fusion import is_known, rows_of
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.objectives import Batch
from vlprompt.learner.prompts import VisualPrompt

LAST = "projection.second.weight"  # (D_t, D_t)


class BatchNorm(nn.Module):
    """Batch normalisation of features (B, D): batch statistics in training, running ones in evaluation."""

    running_mean: Tensor
    running_var: Tensor
    eps, momentum = 1e-5, 0.1

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D)."""
        if self.training and len(x) < 2:
            raise VlpromptError("promptkd normalises over a batch, so a batch of one image cannot be learnt from")
        means = self.running_mean, self.running_var
        return F.batch_norm(x, *means, self.weight, self.bias, self.training, self.momentum, self.eps)


def make_projection(width: int, wider: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear, from the student's width D to the teacher's D_t."""
    layers: dict[str, nn.Module] = {"first": nn.Linear(width, wider), "norm": BatchNorm(wider), "relu": nn.ReLU()}
    return nn.Sequential(OrderedDict(layers, second=nn.Linear(wider, wider)))


@register(
    "promptkd",
    paper="arXiv:2403.02781",
    trains=("vision",),
    cacheable_images=False,
    labels="none",
    paper_settings="none",
    paper_epoch="test",
    fidelity="code",
)
class PromptKD(PromptLearner):
    """A student that is distilled from a larger learner on unlabelled images."""

    published: ClassVar = {
        "prompt.tokens.{i}": "visual_prompts.{i}",
        "projection.first.": "VPT_image_trans.conv1.0.",
        "projection.norm.": "VPT_image_trans.conv1.1.",
        "projection.second.": "VPT_image_trans.conv1.3.",
    }
    own_state: ClassVar = ("teacher_text",)
    by_name: ClassVar = False  # its teacher's class features

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            n_ctx: number of tokens in each prompted image block.
            depth: number of prompted image blocks, including the first.
        """

        objective: list[str] = field(default_factory=lambda: ["logit_kl(weight=1000)"])
        n_ctx: int = 4
        depth: int = 9

    config: Config
    teacher_text: Tensor

    def setup(self) -> None:
        """Create the tokens, J times (n, d_v), and the projection D -> D_t if the teacher's width is known."""
        self.prompt = VisualPrompt(self.clip, self.config.n_ctx, self.config.depth)
        self.width = self.clip.embed_dim
        if self.taught_by is not None:
            if self.config.names:
                raise VlpromptError("promptkd scores with its teacher's class features: give names to the teacher")
            self._take(self.taught_by.text_features(self.class_names))
        elif self.config.teacher is None:
            self.projection = make_projection(self.width, self.width)

    def reserve(self, shapes: Mapping[str, torch.Size]) -> None:
        """Create buffers for saved class features of a teacher (C, D_t), and the projection to their width."""
        kept = shapes.get("teacher_text", torch.Size())
        if self.taught_by is None and len(kept) == 2 and shapes.get(LAST) == (kept[1], kept[1]):
            self._take(torch.zeros(kept))

    def _take(self, text: Tensor) -> None:
        """Keep a teacher's class features (C, D_t), and project to their width."""
        self.register_buffer("teacher_text", F.normalize(text, dim=-1).to(self.clip.device))
        self.width = text.shape[-1]
        self.projection = make_projection(self.clip.embed_dim, self.width).to(self.clip.device)

    @property
    def feature_width(self) -> int:
        """D_t, the teacher's."""
        return self.width

    def prepare_classes(self) -> None:
        """Find the classes among those with stored features, or ask the teacher."""
        known = is_known(self.class_names, self.trained_names)
        if not known and self.taught_by is None and self.config.teacher is not None:
            raise VlpromptError(
                f"this promptkd learner keeps its teacher's features of the {len(self.trained_names)} classes that it "
                "learnt, and others were given: load the teacher with it, by vlprompt.saving.teacher.teach"
            )
        self._others = self.taught_by.text_features(self.class_names) if self.taught_by and not known else None

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """The teacher's class features (C, D_t)."""
        if self.config.teacher is None:
            return self.frozen_text()
        if self._others is not None:
            return self._others
        return self.teacher_text[rows_of(self.class_names, self.trained_names, self.places)]

    def encode_images(self, batch: Batch) -> Tensor:
        """Projected features (B, D_t) of images seen with the learnt tokens."""
        projected: Tensor = self.projection(self.prompt.encode(self.clip, batch["image"], self.edits))
        return projected

    def learn(self, feed: Feed, train: Train) -> None:
        """Train on the pool."""
        train(self, feed.batches("pool"))
