"""GDA: a hard-to-beat baseline for training-free CLIP-based adaptation (Wang et al., ICLR 2024, arXiv:2402.04087).

Fitted, in closed form: Gaussians of one covariance over the classes' image features, whose linear classifier is added
to the zero-shot one, 100·f·W + α(f·w + b).
Protocols: few-shot, domain generalization. Trained on several views of each image, each a sample of its own.
Differs from the authors' code: α is fixed (theirs is chosen among seven values on the whole validation split); the
width D stands where theirs has 512; the inverse is taken in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner, register
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.selection import Values, at_points, choose, keep_settings


@dataclass(frozen=True)
class Gaussians:
    """Gaussians of one covariance.

    Attributes:
        means: μ_c (C, D), not normalised.
        precision: P (D, D).
        w: P μ_c (C, D).
        b: log(1/C) - ½ μ_cᵀ P μ_c (C,).
    """

    means: Tensor
    precision: Tensor
    w: Tensor
    b: Tensor


def fit_gaussians(features: Tensor, labels: Tensor, n_classes: int) -> Gaussians:
    """Fit a Gaussian to each class, §3 of the paper, with the precision of Kubokawa and Srivastava.

    P = D·pinv((N-1)·Σ + tr(Σ)·I), Σ the unbiased covariance of the samples around their class means.

    Args:
        features: (V, N, D) views of N images; each view is normalised and is a sample. A single sample a class has no
            spread: P is then 0, and zero-shot's classifier stands alone.
        labels: (N,), one at least of each class.
        n_classes: C.

    Raises:
        VlpromptError: a class has no sample, or the matrix cannot be inverted.
    """
    x, y = F.normalize(features.double(), dim=-1).flatten(0, 1), labels.repeat(len(features))  # (V·N, D), (V·N,)
    counts = torch.bincount(y, minlength=n_classes)
    if not counts.all():
        raise VlpromptError(f"gda needs an image of each class, and label {int((counts == 0).nonzero()[0])} has none")
    means = x.new_zeros(n_classes, x.shape[1]).index_add_(0, y, x) / counts.unsqueeze(1)
    centred = x - means[y]
    scatter, eye = centred.T @ centred, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)  # (N-1)·Σ
    try:
        precision = x.shape[1] * torch.linalg.pinv(scatter + scatter.trace() / max(1, len(x) - 1) * eye, hermitian=True)
    except RuntimeError as error:  # torch's LinAlgError among them
        raise VlpromptError(f"gda cannot invert the covariance of these features: {error}") from error
    w = means @ precision
    b = -math.log(n_classes) - 0.5 * (w * means).sum(dim=1)
    return Gaussians(*(part.float() for part in (means, precision, w, b)))


@register("gda", paper="arXiv:2402.04087", new_classes=False, head=True, paper_settings="whole_val")
class GDA(PromptLearner):
    """Gaussian discriminant analysis on image features, beside zero-shot CLIP."""

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            alpha: α, what the Gaussians' classifier counts beside zero-shot's.
            fit_views: views of each training image; 1 is the evaluation crop.
            grid: values of alpha that a selection on held-out images chooses among.
        """

        alpha: float = 1.0
        fit_views: int = 10
        grid: dict[str, Any] = field(default_factory=dict)

    def setup(self) -> None:
        """Make room for the linear classifier: w (C, D) and b (C,)."""
        classes, width = len(self.class_names), self.clip.embed_dim
        self.register_buffer("w", torch.zeros(classes, width))
        self.register_buffer("b", torch.zeros(classes))
        keep_settings(self, "alpha")

    def learn(self, feed: Feed, train: Train) -> None:
        """Fit the Gaussians to the labelled images."""
        bank = feed.bank(views=self.config.fit_views)
        found = fit_gaussians(bank.features, bank.labels, len(self.class_names))
        self.w.copy_(found.w)
        self.b.copy_(found.b)
        choose(self, feed, at_points(self.logits_at))

    def logits_at(self, v: Tensor, values: Values) -> Tensor:
        """Logits (P, N, C) of normalised image features v (N, D) with P values of α (P, 1, 1)."""
        return self.clip.similarity(v, self.text_features()) + values["alpha"] * (v @ self.w.T + self.b)

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Zero-shot class features (C, D) over the dataset's templates."""
        return self.frozen_text()

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C): s·v·tᵀ + α(v·wᵀ + b)."""
        return super().score(v, t) + self.alpha * (v @ self.w.T + self.b)
