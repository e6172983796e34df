"""Cross-modal linear probe: multimodality helps unimodality (Lin et al., CVPR 2023, arXiv:2301.06267).

Trained: class weights (C, D), initialized with the zero-shot classifier, on image features and equally many text
features, those of the class names in the dataset's templates: a name is one more shot. Features are normalised; weights
only at the start.
Protocols: few-shot, domain generalization; also on top of a saved learner (``text=``), whose class features are then
the text samples.
Differs from the authors' code: settings and epoch are fixed (theirs are chosen on a few validation images per class,
among twelve settings, every hundred steps); each of an image's two views is a centre crop mirrored at random (theirs
are the crop and its mirror image); the logit scale is the model's (theirs is exp(4.60517), that of OpenAI's models).
Text samples are drawn anew in each step, without replacement; if there are fewer than images, all are used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.data.templates import resolve_templates
from vlprompt.learner import register
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.objectives import Batch
from vlprompt.methods.heads.on_text import OnText


@register("cross_modal_lp", paper="arXiv:2301.06267", trains=("head",), new_classes=False, weighs=True, fidelity="code")
class CrossModalLP(OnText):
    """A linear probe trained on image and text features alike."""

    texts: Tensor
    text_labels: Tensor

    def setup(self) -> None:
        """Create the weights (C, D), each template's feature not normalised before their mean."""
        self.weight = nn.Parameter(self.start_text(normalise_first=False).float().clone())

    def prepare_classes(self) -> None:
        """Compute the text samples (T·C, D): each class's name in each template, or in a saved learner's prompt."""
        if self.built_on is None:
            table = self.teacher.description_table(self.class_names, resolve_templates(None, self))  # (T, C, D)
        else:
            table = self.start_text().unsqueeze(0)
        labels = torch.arange(len(self.class_names), device=table.device)
        self.register_buffer("texts", table.flatten(0, 1), persistent=False)
        self.register_buffer("text_labels", labels.repeat(len(table)), persistent=False)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """The weights (C, D)."""
        return self.weight

    def text_features(self, v: Tensor | None = None) -> Tensor:
        """The weights (C, D), not normalised."""
        return self.weight

    def learn(self, feed: Feed, train: Train) -> None:
        """Train on every view of the labelled images, beside text."""
        train(self, feed.batches(every_view=True))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named losses of a batch, ``loss`` being the mean over its images and as many texts, §3."""
        images = super().loss(batch)
        count = len(batch["label"])
        drawn = torch.randperm(len(self.texts))[:count].to(self.texts.device)
        text = F.cross_entropy(self.score(self.texts[drawn], self.text_features()), self.text_labels[drawn])
        total = (count * images["loss"] + len(drawn) * text) / (count + len(drawn))
        return {**images, "loss": total, "text_ce": text}
