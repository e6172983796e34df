"""Meta-learning of a prompt's initialization and of a gradient regulator, over tasks from clustered image–text pairs.

A reconstruction of GRAM (Li et al., ICCV 2023, arXiv:2303.06571), whose code is not public. From its abstract: bi-level
learning of a prompt's initialization and of a lightweight gradient-regulating function, over tasks that result from
hierarchical clustering of image–text pairs, without labels. Decided here: two levels of k-means, the upper one on text,
the lower one on images; support and query of a task are two lower clusters of one upper cluster; one inner step; first
order; captions as classes. Two parts of SUPMER, the same group's work on language models, are left out: the mixing of
queries, and the regularisation of the gate.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.errors import VlpromptError
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.names import named
from vlprompt.learner.regulation import Regulator

TRIES = 1000  # draws of a task before giving up


def clustered(text: Tensor, images: Tensor, topics: int, styles: int, seed: int) -> Tensor:
    """Cluster N pairs at two levels: (N, 2), the topic of each pair, and its cluster within the topic.

    Args:
        text: normalised features of the captions (N, D), for the upper level.
        images: normalised features of the images (N, D), for the lower level.
        topics: number of clusters of the upper level.
        styles: number of clusters of the lower level in each topic.
        seed: seed of k-means.
    """
    upper = _k_means(text, topics, seed)
    lower = torch.zeros_like(upper)
    for topic in upper.unique():
        members = (upper == topic).nonzero().squeeze(1)
        lower[members] = _k_means(images[members], styles, seed)
    return torch.stack([upper, lower], dim=1)


def _k_means(features: Tensor, clusters: int, seed: int) -> Tensor:
    from sklearn.cluster import KMeans  # here, since scikit-learn takes a second to import

    distinct = len(features.unique(dim=0))
    found = KMeans(min(clusters, distinct), n_init=1, random_state=seed).fit_predict(features.double().numpy())
    return torch.as_tensor(found).long()


@dataclass(frozen=True)
class Tasks:
    """Tasks, drawn anew in each epoch depending only on its index and the seed.

    Attributes:
        clusters: (N, 2), as returned by ``clustered``.
        labels: index of each pair's caption (N,).
        size: maximum number of pairs in support and in query.
        steps: number of tasks per epoch.
        seed: seed of the draws.
    """

    clusters: Tensor
    labels: Tensor
    size: int
    steps: int
    seed: int

    def __call__(self, epoch: int) -> Iterator[Any]:
        """The tasks of an epoch: indices of pairs, ``support`` and ``query``, each with at least two captions."""
        draw = random.Random(f"{self.seed}/{epoch}")
        for _ in range(self.steps):
            support, query = self.drawn(draw)
            yield {"support": support, "query": query}

    def drawn(self, draw: random.Random) -> tuple[Tensor, Tensor]:
        """Indices of support and query, from two lower clusters of a topic, or from halves of its only one."""
        for _ in range(TRIES):
            topic = self.clusters[draw.randrange(len(self.clusters)), 0]
            members = (self.clusters[:, 0] == topic).nonzero().squeeze(1).tolist()
            groups: dict[int, list[int]] = {}
            for place in members:
                groups.setdefault(int(self.clusters[place, 1]), []).append(place)
            draw.shuffle(members)
            halves = [members[::2], members[1::2]]
            sides = draw.sample([groups[key] for key in sorted(groups)], 2) if len(groups) > 1 else halves
            chosen = [torch.tensor(draw.sample(side, min(self.size, len(side))), dtype=torch.long) for side in sides]
            if all(len(self.labels[side].unique()) > 1 for side in chosen):
                return chosen[0], chosen[1]
        raise VlpromptError("the pairs make no task with two captions on either side: give more pairs, or fewer topics")


class MetaLearner(nn.Module):
    """Learns an initialization θ and a regulator ψ such that one regulated step on a task's support helps on its query.

    Both are trained on the query's loss at θ' = θ - α·ψ(∇L_support(θ)), to first order: ∂θ'/∂θ is replaced by the
    identity, and the support's gradient is treated as a constant.

    Args:
        learner: its learnables are θ; it scores the captions of a task as classes.
        regulator: ψ.
        images: N images (N, 3, H, W), or their features (N, D) if the learner takes those.
        labels: index of each pair's caption (N,).
        captions: the texts.
        inner_lr: α.
    """

    def __init__(
        self,
        learner: PromptLearner,
        regulator: Regulator,
        images: Tensor,
        labels: Tensor,
        captions: Sequence[str],
        inner_lr: float,
    ):
        super().__init__()
        self.learner, self.regulator, self.inner_lr = learner, regulator, inner_lr
        self.key = "image_features" if images.dim() == 2 else "image"
        self.images, self.labels, self.captions = images, labels, tuple(captions)
        self.outer: tuple[Sequence[Tensor], list[Tensor]] = ((), [])

    def loss(self, task: Any) -> dict[str, Tensor]:
        """``loss``, the query's loss after the inner step, and ``support``, the support's loss before it."""
        theta = self.learner.trainable_parameters()
        with torch.enable_grad():
            support = self._loss(task["support"])
            inner = torch.autograd.grad(support, theta, materialize_grads=True)
            steps = [self.regulator(gradient) for gradient in inner]
            start = [p.detach().clone() for p in theta]
            try:
                self._move(theta, [p - self.inner_lr * step for p, step in zip(start, steps, strict=True)])
                query = self._loss(task["query"])
                self.outer = torch.autograd.grad(query, theta, materialize_grads=True), steps
            finally:
                self._move(theta, start)
        return {"loss": query.detach(), "support": support.detach()}

    def backward(self, losses: dict[str, Tensor]) -> None:
        """Set the gradients: of θ the query's at θ', and of ψ what follows from that through the inner step."""
        outer, steps = self.outer
        for parameter, gradient in zip(self.learner.trainable_parameters(), outer, strict=True):
            parameter.grad = gradient
        through = [(step, -self.inner_lr * g) for step, g in zip(steps, outer, strict=True) if step.requires_grad]
        torch.autograd.backward([step for step, _ in through], [g for _, g in through])

    def after_step(self) -> None:
        """Apply the learner's own constraint to θ."""
        self.learner.after_step()

    def _loss(self, places: Tensor) -> Tensor:
        """The learner's loss on the given pairs, with their captions as classes."""
        known, label = self.labels[places].unique(return_inverse=True)
        self.learner.class_names = named(self.learner.config, tuple(self.captions[i] for i in known.tolist()))
        self.learner.prepare_classes()
        return self.learner.loss({self.key: self.images[places], "label": label})["loss"]  # type: ignore[misc]

    @staticmethod
    def _move(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)


def unit(features: Tensor) -> Tensor:
    """Normalised features on the CPU."""
    return F.normalize(features.float().cpu(), dim=-1)
