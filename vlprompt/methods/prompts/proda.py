"""ProDA: prompt distribution learning (Lu et al., CVPR 2022, arXiv:2205.03340).

Trained: K contexts, a quarter with the class name in front, a quarter in the middle, half at the end. Class features
are modelled as Gaussians over prompts; the loss is an upper bound on the expected cross-entropy, and keeps the prompts'
class-free features orthogonal. At test time the classifier is the mean over prompts.
Protocols: few-shot, base-to-new.
The authors' code is not available: this follows two third-party ports that agree. The covariance term is computed by
the exact identity Σ_d v_d²(Σ_yy + Σ_cc - 2Σ_yc)_d = 1/(m+1) Σ_k ‖v⊙(δ_yk - δ_ck)‖², without a C×C tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner, register
from vlprompt.learner.attributes import AttributeSettings
from vlprompt.learner.objectives import OBJECTIVES, Batch, Objective, Outputs, competing
from vlprompt.learner.prompts import Position, TextPrompt


def covariance_margin(v: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Σ_d v_d²(Σ_yy + Σ_cc - 2Σ_yc)_d of the features' covariance over prompts: (B, C), never negative, 0 for c = y.

    Args:
        v: normalised image features (B, D).
        features: normalised class features (M, C, D) of M prompts.
        labels: y (B,).
    """
    centred = features - features.mean(dim=0)  # δ, (M, C, D)
    squares = v.pow(2)  # (B, D)
    own = squares @ centred.pow(2).sum(dim=0).T  # Σ_k ‖v⊙δ_ck‖², (B, C)
    weighted = squares.unsqueeze(1) * centred[:, labels].transpose(0, 1)  # (B, M, D)
    cross = weighted.flatten(1) @ centred.transpose(0, 1).flatten(1).T  # Σ_k <v⊙δ_yk, v⊙δ_ck>, (B, C)
    of_label = own.gather(1, labels.unsqueeze(1))  # (B, 1)
    margin = (of_label + own - 2 * cross).clamp_min(0)  # rounding may leave -1e-9
    return margin.scatter(1, labels.unsqueeze(1), 0.0) / (len(features) + 1)


class _OverPrompts(Objective):
    """An objective on a distribution of prompts."""

    def refuses(self, learner: PromptLearner) -> str | None:
        """Other designs have a single prompt, so their features have no axis of prompts."""
        return None if isinstance(learner, ProDA) else "is over a distribution of prompts, which only proda learns"


@OBJECTIVES.register("bounded_ce")
class BoundedCrossEntropy(_OverPrompts):
    """ProDA's upper bound on the expected cross-entropy: wrong classes gain half their variance against y."""

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean over the batch."""
        margin = covariance_margin(outputs.image_features, outputs.text_features, batch["label"])
        bound = 0.5 * learner.clip.logit_scale**2 * margin
        return F.cross_entropy(competing(outputs.logits, batch) + bound, batch["label"])


@OBJECTIVES.register("prompt_orthogonality")
class PromptOrthogonality(_OverPrompts):
    """Mean |cos| between the class-free features of different prompts (ProDA)."""

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean over ordered pairs of prompts."""
        assert isinstance(learner, ProDA)  # or it was refused
        g = learner.class_free_features()  # (K, D)
        cosine: Tensor = (g @ g.T).abs()
        return (cosine.sum() - cosine.diagonal().sum()) / (len(g) * (len(g) - 1))


@register("proda", paper="arXiv:2205.03340", trains=("text",), head=False)
class ProDA(PromptLearner):
    """A distribution over prompts."""

    @dataclass
    class Config(AttributeSettings, PromptLearner.Config):
        """Settings.

        Attributes:
            n_prompts: number K of contexts, a multiple of 4.
            n_ctx: number of tokens of each.
            prompts_per_step: contexts per training step, drawn without replacement until all have been used.
        """

        objective: list[str] = field(default_factory=lambda: ["bounded_ce", "prompt_orthogonality(weight=0.1)"])
        n_prompts: int = 32
        n_ctx: int = 16
        prompts_per_step: int = 4

    config: Config

    def setup(self) -> None:
        """Create the contexts: K/4, K/4 and K/2 of (n, d_t)."""
        count, step = self.config.n_prompts, self.config.prompts_per_step
        if count % 4 or count < 4 or not 2 <= step <= count:
            raise VlpromptError(
                f"n_prompts={count} must be a multiple of 4, with 2 <= prompts_per_step={step} <= n_prompts"
            )
        places: dict[Position, int] = {"front": count // 4, "middle": count // 4, "end": count // 2}
        self.prompts = nn.ModuleList(
            TextPrompt(self.clip, self.config.n_ctx, position=place, n_prompts=k, attributes=self.config)
            for place, k in places.items()
        )
        self._queue: list[int] = []
        self._chosen: Tensor | None = None  # the prompts of the current training step

    def _by_place(self) -> list[TextPrompt]:
        """The contexts with the class name after, among and before them: ``prompts`` with their type."""
        return [prompt for prompt in self.prompts if isinstance(prompt, TextPrompt)]

    def prepare_classes(self) -> None:
        """Tokenize the class prompts, and the prompt without a class."""
        prompt = self._by_place()[0]
        self.tokens = prompt.tokenize(self.clip, self.class_names)
        self.no_class = prompt.tokenize(self.clip, [""])

    def prompt_features(self, chosen: Tensor | None = None) -> Tensor:
        """Normalised class features (M, C, D) of the chosen prompts, or of all K."""
        out, start = [], 0
        for prompt in self._by_place():
            count = len(prompt.ctx)
            ctx: Tensor = prompt.ctx
            if chosen is not None:
                ctx = ctx[chosen[(chosen >= start) & (chosen < start + count)] - start]
            start += count
            if len(ctx):
                out.append(prompt.encode(self.clip, self.tokens, ctx, self.config.text_chunk, edits=self.edits))
        return F.normalize(torch.cat(out), dim=-1)

    def class_free_features(self) -> Tensor:
        """Normalised features (K, D) of the contexts with no class name."""
        prompts = self._by_place()
        ctx = torch.cat([prompt.ctx for prompt in prompts])
        return F.normalize(prompts[-1].encode(self.clip, self.no_class, ctx, edits=self.edits)[:, 0], dim=-1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch over the next mini-batch of prompts."""
        self._chosen = torch.tensor(self._next_prompts(), device=self.clip.device)
        try:
            return super().loss(batch)
        finally:
            self._chosen = None

    def _next_prompts(self) -> list[int]:
        """Indices of a step's prompts: each once per permutation; without gradients, no prompt is used up."""
        size, queue = self.config.prompts_per_step, self._queue
        if len(queue) < size or not torch.is_grad_enabled():
            queue = torch.randperm(self.config.n_prompts).tolist()
        if torch.is_grad_enabled():
            self._queue = queue[size:]
        return queue[:size]

    def text_features(self, v: Tensor | None = None) -> Tensor:
        """The classifier (C, D), mean of normalised features over all prompts, not normalised again.

        In a training step, normalised features (M, C, D) of its mini-batch of prompts, which the objectives need.
        """
        if self._chosen is not None:
            return self.prompt_features(self._chosen)
        return self.prompt_features().mean(dim=0)

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C) by the mean over prompts."""
        return super().score(v, t.mean(dim=0) if t.dim() == 3 else t)

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Start each epoch with a new permutation, so that a run can be resumed after any epoch."""
        self._queue = []
