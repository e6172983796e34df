"""UPL: unsupervised prompt learning for vision-language models (Huang et al., 2022, arXiv:2204.03649).

Trained: CoOp's context, on images without labels: of those that zero-shot CLIP takes for a class, the K it is surest
of.
Protocols: unsupervised.
Differs from the authors' code: fp32; one run is one seed (their ensemble over 16 seeds averages the logits of 16 runs),
and one backbone labels the pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.data.splits import NO_LABEL
from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.learner.learning import Feed, Train
from vlprompt.methods.prompts.coop import CoOp


def surest_of_each_class(probabilities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and classes of the K surest images of each predicted class, class by class, the surest first.

    A class that no image is taken for gets none, and another may get fewer than K; nothing else is asked of them.

    Args:
        probabilities: (N, C); of several models their mean.
        k: images a class, at most.
    """
    confidence, predicted = probabilities.max(dim=1)
    index = []
    for c in range(probabilities.shape[1]):
        of_class = (predicted == c).nonzero().squeeze(1)
        index.append(of_class[confidence[of_class].argsort(descending=True, stable=True)[:k]])
    chosen = torch.cat(index)
    return chosen, predicted[chosen]


@register("upl", paper="arXiv:2204.03649", trains=("text",), labels="none")
class UPL(CoOp):
    """CoOp on pseudo-labels of the images that zero-shot CLIP is surest of."""

    @dataclass
    class Config(CoOp.Config):
        """Settings, as CoOp's with sixteen random tokens.

        Attributes:
            pseudo_shots: K, images of each predicted class at most.
            template: of the zero-shot classifier that labels the pool; None takes the dataset's own.
        """

        n_ctx: int | None = 16
        pseudo_shots: int = 16
        template: list[str] | None = None

    config: Config

    def setup(self) -> None:
        """Create the context (n, d_t)."""
        if self.config.pseudo_shots < 1:
            raise VlpromptError(f"pseudo_shots must be at least 1, not {self.config.pseudo_shots}")
        super().setup()

    def label(self, image_features: Tensor) -> Tensor:
        """Pseudo-labels (N,) of image features (N, D); -1 leaves an image out."""
        zero_shot = self.clip.similarity(F.normalize(image_features, dim=-1), self.frozen_text(self.config.template))
        index, classes = surest_of_each_class(zero_shot.softmax(dim=1), self.config.pseudo_shots)
        labels = torch.full((len(image_features),), NO_LABEL, device=classes.device)
        labels[index] = classes
        return labels

    def learn(self, feed: Feed, train: Train) -> None:
        """Label the pool once, and train on what it is surest of."""
        labels = self.label(feed.bank("pool").features[0])
        train(self, feed.labelled_as(labels.cpu()).batches())
