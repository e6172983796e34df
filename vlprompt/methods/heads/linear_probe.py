"""Linear probe (Radford et al., ICML 2021, arXiv:2103.00020, §3.2): logistic regression on image features, no text.

Fitted with scikit-learn (L-BFGS, multinomial, L2): class weights and biases on the frozen tower's features. The lower
bound in few-shot tables: with one shot it is far below zero-shot.
Protocols: few-shot, domain generalization. C, the inverse strength of the regularisation, is 1 unless a selection
chooses it; CoOp's baseline chooses it on few-shot validation images (selection=fewshot_val, or paper).
Differs from CoOp's baseline: features are normalised, as in all methods here. Theirs are unnormalised, with norm 10 for
OpenAI's models, so our C of 100 is about their C of 1. It does not search between the grid's seven values.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner, register
from vlprompt.learner.held_out import Point
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.selection import choose, keep_settings, refitted


@register("linear_probe", paper="arXiv:2103.00020", new_classes=False, head=True, paper_settings="val", weighs=True)
class LinearProbe(PromptLearner):
    """Logistic regression on image features."""

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            inverse_strength: C of scikit-learn's LogisticRegression: smaller means stronger regularisation.
            fit_views: views of each training image; 1 is the evaluation crop.
            max_iter: maximum number of L-BFGS steps.
            grid: values of inverse_strength to choose from on held-out images.
        """

        inverse_strength: float = 1.0
        fit_views: int = 1
        max_iter: int = 1000
        grid: dict[str, Any] = field(default_factory=dict)

    config: Config
    w: Tensor
    b: Tensor
    inverse_strength: Tensor

    def setup(self) -> None:
        """Create buffers for the classifier, w (C, D) and b (C,), zero until it is fitted."""
        values = [self.config.inverse_strength, *self.config.grid.get("inverse_strength", [])]
        if not all(isinstance(value, str) or value > 0 for value in values):
            raise VlpromptError("inverse_strength must be above 0")
        classes, width = len(self.class_names), self.clip.embed_dim
        self.register_buffer("w", torch.zeros(classes, width))
        self.register_buffer("b", torch.zeros(classes))
        keep_settings(self, "inverse_strength")

    def learn(self, feed: Feed, train: Train) -> None:
        """Choose C if there is a selection, and fit to the labelled images."""
        bank = feed.bank(views=self.config.fit_views)
        assert bank.labels is not None
        v, labels = F.normalize(bank.features.flatten(0, 1), dim=-1), bank.labels.repeat(bank.views)
        counts = None if bank.counts is None else bank.counts.repeat(bank.views)
        fitted: dict[float, tuple[Tensor, Tensor]] = {}

        def fit(point: Point) -> Any:
            w, b = fitted[point["inverse_strength"]] = self.fit(v, labels, point["inverse_strength"], counts)
            return lambda held_out: held_out @ w.T + b

        chosen = choose(self, feed, refitted(fit)).get("inverse_strength", self.config.inverse_strength)
        w, b = fitted.get(chosen) or self.fit(v, labels, chosen, counts)
        self.w.copy_(w)
        self.b.copy_(b)

    def fit(self, v: Tensor, labels: Tensor, strength: float, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fit to features v (N, D), labels (N,) and counts (N,), if given: weights (C, D) and biases (C,)."""
        found = LogisticRegression(C=strength, max_iter=self.config.max_iter, solver="lbfgs")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # max_iter is a setting
            warnings.filterwarnings("ignore", "The number of unique classes")  # as with one shot
            found.fit(v.cpu().numpy(), labels.cpu().numpy(), None if counts is None else counts.cpu().numpy())
        seen, n_classes = torch.from_numpy(found.classes_), len(self.class_names)
        if len(seen) < n_classes:
            lacking = next(name for c, name in enumerate(self.class_names) if c not in set(seen.tolist()))
            raise VlpromptError(f"linear_probe needs an image of each class, and '{lacking}' has none")
        w, b = (torch.from_numpy(part).float().to(v.device) for part in (found.coef_, found.intercept_))
        return (torch.cat([-w, w]) / 2, torch.cat([-b, b]) / 2) if n_classes == 2 else (w, b)  # sigmoid as softmax

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """The zero-shot class features (C, D), which do not affect the logits."""
        return self.frozen_text()

    def linear_head(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (C, D) and biases (C,) of v·wᵀ + b."""
        return self.w, self.b

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C): v·wᵀ + b, whatever the classes are called."""
        return v @ self.w.T + self.b
