"""GDA: a hard-to-beat baseline for training-free CLIP-based adaptation (Wang et al., ICLR 2024, arXiv:2402.04087).

Fitted in closed form: Gaussians with a shared covariance over the classes' image features. Their linear classifier is
added to the zero-shot one, 100·f·W + α(f·w + b). Priors are equal, whatever the numbers of images (shots=all).
Protocols: few-shot; domain generalization; base-to-new (synthesise=true), where a new class is modelled by the 64
training features nearest to its text, which assumes that it resembles the training classes (so not the default for
cross-dataset); unsupervised, by EM from the zero-shot classifier; also on top of a saved learner (``text=``).
With several views of an image, each view is a sample. α is fixed unless a selection chooses it; the authors choose it
among seven values on the whole validation split (selection=paper), and reuse it for new classes.
Differs from the authors' code: precisions are inverted in float64. For base-to-new, theirs inverts the base classes'
covariance without the shrinkage of their few-shot code, and multiplies a new class's precision by 512 whatever the
width (as_published=true). On emoji with vlprompt-tiny, whose features leave some directions almost empty, 16 shots and
α = 1, base accuracy is then 2.2 instead of 37.4; on a model of width 1024, 512 halves the Gaussians' weight on new
classes. With new and base classes in one label space, base classes use the new ones' precision (our choice). No code
was released for the unsupervised part: equal priors, max_iter, a single view and the shrunk precision are our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.base.devices import exact_device
from vlprompt.data import FeatureBank
from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.learner.facts import Facts
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.selection import Values, at_points, choose, keep_settings
from vlprompt.methods.heads.gaussians import Gaussians, fit_gaussians, fit_soft_gaussians, synthesise
from vlprompt.methods.heads.on_text import BesideText

PUBLISHED_WIDTH = 512
SAME = 1e-4  # between text features of one class, encoded among others


@register("gda", paper="arXiv:2402.04087", new_classes=False, head=True, paper_settings="whole_val", fidelity="code")
class GDA(BesideText):
    """Gaussian discriminant analysis on image features, added to zero-shot CLIP."""

    @dataclass
    class Config(BesideText.Config):
        """Settings.

        Attributes:
            alpha: weight α of the Gaussian classifier, added to zero-shot's.
            fit_views: views of each training image; 1 is the evaluation crop.
            unsupervised: fit to unlabelled images, by EM.
            max_iter: maximum number of EM iterations; EM stops earlier if no image changes its class.
            synthesise: score new classes too, modelled by training features, which are kept for that.
            neighbours: number k of training features that model a new class.
            text_copies: how many times the text feature is counted among them.
            as_published: for base-to-new, do not shrink the base classes' precision, and scale the new ones' by 512.
            grid: values of alpha to choose from on held-out images.
        """

        alpha: float = 1.0
        fit_views: int = 10
        unsupervised: bool = False
        max_iter: int = 10
        synthesise: bool = False
        neighbours: int = 64
        text_copies: int = 16
        as_published: bool = False
        grid: dict[str, Any] = field(default_factory=dict)

    config: Config
    alpha: Tensor
    w: Tensor
    b: Tensor
    means: Tensor
    text: Tensor
    samples: Tensor

    @classmethod
    def facts_of(cls, config: Config) -> Facts:
        """It can score new classes if it synthesises them, and needs labels unless it uses EM."""
        labels: Literal["needed", "none"] = "none" if config.unsupervised else "needed"
        return replace(cls.registered, new_classes=config.synthesise, labels=labels, weighs=not config.synthesise)

    def setup(self) -> None:
        """Create buffers for the linear classifier, w (C, D) and b (C,), and for what new classes are made from."""
        for name, least in (("fit_views", 1), ("max_iter", 1), ("neighbours", 1), ("text_copies", 0)):
            if getattr(self.config, name) < least:
                raise VlpromptError(f"{name} must be at least {least}, not {getattr(self.config, name)}")
        classes, width = len(self.class_names), self.clip.embed_dim
        self._make_room(classes, 0, width)
        keep_settings(self, "alpha")

    def _make_room(self, classes: int, samples: int, width: int) -> None:
        self.register_buffer("w", torch.zeros(classes, width, device=self.clip.device))
        self.register_buffer("b", torch.zeros(classes, device=self.clip.device))
        if self.config.synthesise:
            sizes = {"means": classes, "text": classes, "samples": samples}
            for name, size in sizes.items():
                self.register_buffer(name, torch.zeros(size, width, device=self.clip.device))
        self._found: tuple[Tensor, Tensor, Tensor] | None = None

    def reserve(self, shapes: Mapping[str, torch.Size]) -> None:
        """Create buffers for as many learnt classes and samples as were saved."""
        if self.config.synthesise and {"b", "samples"} <= shapes.keys() and shapes["b"] and shapes["samples"]:
            self._make_room(shapes["b"][0], shapes["samples"][0], self.clip.embed_dim)

    def learn(self, feed: Feed, train: Train) -> None:
        """Fit the Gaussians to the labelled images or to the pool, and choose α if there is a selection."""
        bank = feed.bank("pool" if self.config.unsupervised else "labelled", views=self.config.fit_views)
        found = self._expect(bank.features) if self.config.unsupervised else self._fit(bank)
        kept = {"w": found.w, "b": found.b}
        if self.config.synthesise:
            samples = F.normalize(bank.features.flatten(0, 1), dim=-1)  # (M, D)
            self._make_room(len(self.class_names), *samples.shape)
            kept |= {"means": found.means, "text": self.text_features(), "samples": samples}
        for name, tensor in kept.items():
            self.get_buffer(name).copy_(tensor.float())
        choose(self, feed, at_points(self.logits_at))

    def _fit(self, bank: FeatureBank) -> Gaussians:
        assert bank.labels is not None
        plain = self.config.as_published and self.config.synthesise
        return fit_gaussians(bank.features, bank.labels, len(self.class_names), not plain, bank.counts)

    @torch.no_grad()
    def _expect(self, features: Tensor) -> Gaussians:
        """EM from the zero-shot classifier: γ is the softmax of all logits, to which the Gaussians are fitted."""
        x = F.normalize(features.flatten(0, 1), dim=-1)
        zero_shot = self.clip.similarity(x, self.text_features())
        x, zero_shot = (each.to(exact_device(each.device)) for each in (x, zero_shot))
        logits, before = zero_shot, None
        for _ in range(self.config.max_iter):
            found = fit_soft_gaussians(x, logits.double().softmax(dim=1))
            logits = zero_shot + float(self.alpha) * (x @ found.w.T + found.b)
            now = logits.argmax(dim=1)
            if before is not None and torch.equal(now, before):
                break
            before = now
        return found

    def linear_head(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (C, D) and biases (C,) of s·v·tᵀ + α(v·wᵀ + b)."""
        w, b = self._classes(t)
        return self.clip.logit_scale * t + self.alpha * w, self.clip.logit_bias + self.alpha * b

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C): s·v·tᵀ + α(v·wᵀ + b)."""
        w, b = self._classes(t)
        return super().score(v, t) + self.alpha * (v @ w.T + b)

    def logits_at(self, v: Tensor, values: Values) -> Tensor:
        """Logits (P, N, C) of normalised image features v (N, D) with P values of α (P, 1, 1)."""
        t = self.text_features()
        w, b = self._classes(t)
        return super().score(v, t) + values["alpha"] * (v @ w.T + b)

    def _classes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """w (C, D) and b (C,) for classes with these text features, learnt and new ones."""
        if not self.config.synthesise:
            return self.w, self.b
        if self._found is None or self._found[0] is not t:  # the same tensor as long as nothing changes
            self._found = (t, *self._make_classes(t.detach()))
        return self._found[1:]

    def _make_classes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if not len(self.samples):  # nothing was learnt yet
            return torch.zeros_like(t), torch.zeros_like(t[:, 0])
        place = (t @ self.text.T).argmax(dim=1)  # of the learnt class with the nearest text
        new = (t - self.text[place]).abs().amax(dim=1) > SAME
        if not new.any():
            return self.w[place], self.b[place]
        settings, width = self.config, PUBLISHED_WIDTH if self.config.as_published else None
        made = synthesise(self.samples, t[new], settings.neighbours, settings.text_copies, width)
        means = self.means[place].to(made.means)
        means[new.to(means.device)] = made.means
        found = Gaussians(means, made.precision)
        return found.w.to(t.device), found.b.to(t.device)
