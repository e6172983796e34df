"""LP++: a surprisingly strong linear probe for few-shot CLIP (Huang et al., CVPR 2024, arXiv:2404.02285).

Trained, on all features in each step: class weights W, initialized to the sum of each class's features, biases b, and
class-wise weights α of the text; the logits are f·Wᵀ + b + α_c(f·t_c), without CLIP's scale. Step sizes are derived
from the features (the curvature of the cross-entropy is bounded), so there is no learning rate to choose.
Protocols: few-shot, domain generalization; also on top of a saved learner (``text=``). The last step is used unless a
selection chooses it (selection=fewshot_val; the authors choose it on as many validation images per class as there are
shots, here at most four).
Differs from the authors' code: fp32. In theirs, α's gradient is never reset, so each of its steps (one in ten) follows
the sum of all gradients so far, and b starts at random (as_published=true). Here α follows its current gradient, which
its step size is the bound for, and b starts at zero. On the golden case, logits differ by at most 0.4 and 0.25.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.base.devices import exact_device
from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.learner.facts import Facts
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.selection import best_step
from vlprompt.methods.heads.on_text import BesideText

ALPHA_SCALE = 250.0
State = tuple[Tensor, Tensor, Tensor]  # W (C, D), b (C,), α (C,)


@dataclass(frozen=True)
class StepSizes:
    """Step sizes of W with b and of α, and initial α, §4: from features v (N, D), labels (N,), text (C, D)."""

    w: float
    alpha: float
    start: float

    @classmethod
    def of(cls, v: Tensor, labels: Tensor, text: Tensor) -> StepSizes:
        """4N/λ_max(FᵀF), N/(4 max_c Σ_i (f_i·t_c)²), and 250 times the mean over classes of the mean of f_i·t_y."""
        try:
            largest = torch.linalg.eigvalsh((v.T @ v).to(exact_device(v.device)).double())[-1]
        except RuntimeError as error:
            raise VlpromptError(f"lp_plus_plus finds no eigenvalues of these features (eigvalsh): {error}") from error
        own = (v * text[labels]).sum(dim=1)
        count = torch.bincount(labels, minlength=len(text))
        means = own.new_zeros(len(text)).index_add_(0, labels, own)[count > 0] / count[count > 0]
        along = (v @ text.T).square().sum(dim=0).max()
        return cls(float(4 * len(v) / largest), float(len(v) / (4 * along)), float(ALPHA_SCALE * means.mean()))


@register(
    "lp_plus_plus",
    paper="arXiv:2404.02285",
    trains=("head",),
    new_classes=False,
    head=True,
    paper_settings="none",
    paper_epoch="val",
    fidelity="code",
)
class LPPlusPlus(BesideText):
    """A linear probe on image features, plus the text classifier with a learnt weight per class."""

    @dataclass
    class Config(BesideText.Config):
        """Settings.

        Attributes:
            full_steps: number of steps, each over all features.
            heavy_ball: momentum of W and b.
            alpha_every: α is updated in every alpha_every-th step.
            fit_views: views of each training image; 1 is the evaluation crop.
            as_published: start b at random, and never reset α's gradient.
        """

        full_steps: int = 300
        heavy_ball: float = 0.9
        alpha_every: int = 10
        fit_views: int = 1
        as_published: bool = False

    config: Config
    w: Tensor
    b: Tensor
    alpha: Tensor

    def setup(self) -> None:
        """Create buffers for W (C, D), b (C,) and α (C,)."""
        classes, width = len(self.class_names), self.clip.embed_dim
        for name in ("full_steps", "alpha_every", "fit_views"):
            if getattr(self.config, name) < 1:
                raise VlpromptError(f"{name} must be at least 1, not {getattr(self.config, name)}")
        drawn = nn.Linear(width, classes).bias.detach()
        self.register_buffer("w", torch.zeros(classes, width))
        self.register_buffer("b", drawn if self.config.as_published else torch.zeros(classes))
        self.register_buffer("alpha", torch.full((classes,), self.clip.logit_scale))  # zero-shot, until it is fitted

    @classmethod
    def trained_by_loop(cls, facts: Facts) -> bool:
        """It takes its own steps."""
        return False

    @torch.no_grad()
    def learn(self, feed: Feed, train: Train) -> None:
        """Step over all features at once, and keep the last state or the one that a selection chooses."""
        bank = feed.bank(views=self.config.fit_views)
        assert bank.labels is not None
        v, labels = F.normalize(bank.features.flatten(0, 1), dim=-1), bank.labels.repeat(bank.views)
        t = self.text_features()
        states: Iterator[State] = (state for state, _ in self.steps(v, labels, t))

        def logits(held_out: Tensor, state: State) -> Tensor:
            w, b, alpha = state
            return torch.addmm(b, held_out, combined(w, alpha, t).T)

        chosen: State = best_step(feed, states, logits)
        for name, tensor in zip(("w", "b", "alpha"), chosen, strict=True):
            self.get_buffer(name).copy_(tensor)

    def steps(self, v: Tensor, labels: Tensor, t: Tensor) -> Iterator[tuple[State, float]]:
        """Yield the state after each step and the loss before it, for normalised v (N, D) and text t (C, D)."""
        sizes, n, config = StepSizes.of(v, labels, t), len(v), self.config
        w = v.new_zeros(self.w.shape).index_add_(0, labels, v)
        b, alpha = self.b.clone(), torch.full_like(self.alpha, sizes.start)
        of_w, of_b, of_alpha = torch.zeros_like(w), torch.zeros_like(b), torch.zeros_like(alpha)
        rows, logits, log_p = torch.arange(n, device=v.device), *v.new_empty(2, n, len(w))
        for step in range(1, config.full_steps + 1):
            # tensors (N, C) are large, so they are reused and passed over as rarely as possible
            torch.addmm(b, v, combined(w, alpha, t).T, out=logits)
            torch.log_softmax(logits, dim=1, out=log_p)
            loss = -log_p[rows, labels].mean()
            residual = log_p.exp_()  # n times the gradient of the logits: p - y
            residual[rows, labels] -= 1
            along = residual.T @ v / n  # the gradient of W; its products with t are that of α
            of_w = config.heavy_ball * of_w + along
            of_b = config.heavy_ball * of_b + residual.sum(dim=0) / n
            w, b = w - sizes.w * of_w, b - sizes.w * of_b
            of_alpha = (along * t).sum(dim=1) + (of_alpha if config.as_published else 0)
            if step % config.alpha_every == 0:
                alpha = alpha - sizes.alpha * of_alpha
            yield (w, b, alpha), float(loss)

    def linear_head(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (C, D) and biases (C,) of f·(W + α t)ᵀ + b."""
        return combined(self.w, self.alpha, t), self.b

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C): f·Wᵀ + b + α_c(f·t_c)."""
        return torch.addmm(self.b, v, combined(self.w, self.alpha, t).T)


def combined(w: Tensor, alpha: Tensor, t: Tensor) -> Tensor:
    """W + α·t (C, D), the weights of the logits without b, since α_c(f·t_c) = f·(α_c t_c)."""
    return torch.addcmul(w, alpha.unsqueeze(1), t)
