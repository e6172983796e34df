"""Learning to start: tasks that are clustered from image–text pairs, and a start and a regulator learnt over them.

A reconstruction of GRAM (Li et al., ICCV 2023, arXiv:2303.06571), whose code nobody has. From its abstract: bi-level
learning of a prompt's start and of a light gradient-regulating function, over tasks that hierarchical clustering of
image–text pairs makes, without labels. Decided here: two levels of k-means, the upper on text, the lower on images; a
task's support and query are two lower clusters of one upper; one inner step; first order; captions as classes. Of
SUPMER, the same group's work on language models, its mixing of queries and the term that draws its gate are left out.
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

TRIES = 1000  # of drawing a task, before too few pairs are given up on


def clustered(text: Tensor, images: Tensor, topics: int, styles: int, seed: int) -> Tensor:
    """Two levels of clusters of N pairs: (N, 2), of a pair its topic, and its cluster among the topic's images.

    Args:
        text: normalised features of the captions (N, D).
        images: normalised features of the images (N, D).
        topics: clusters of the upper level.
        styles: of the lower level, in each topic.
        seed: of k-means.
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
    """Tasks that are drawn anew each epoch, by its index and the seed alone.

    Attributes:
        clusters: (N, 2) of ``clustered``.
        labels: the caption of each pair (N,).
        size: pairs of support and of query, at most.
        steps: tasks an epoch.
        seed: of the draws.
    """

    clusters: Tensor
    labels: Tensor
    size: int
    steps: int
    seed: int

    def __call__(self, epoch: int) -> Iterator[Any]:
        """The tasks of an epoch: places of pairs, ``support`` and ``query``, each of two captions or more."""
        draw = random.Random(f"{self.seed}/{epoch}")
        for _ in range(self.steps):
            support, query = self.drawn(draw)
            yield {"support": support, "query": query}

    def drawn(self, draw: random.Random) -> tuple[Tensor, Tensor]:
        """Two lower clusters of one upper, or two halves of its only one."""
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
    """A learner's start θ and a regulator, learnt so that one regulated step on a task helps on the rest of it.

    θ' = θ - α·ψ(∇L_support(θ)); the query's loss at θ' is what both are learnt from, to first order: ∂θ'/∂θ is taken
    for the identity, and ψ sees the support's gradient as it is.

    Args:
        learner: whose learnables are θ; it scores the captions of a task as classes.
        regulator: ψ.
        images: of the N pairs: features (N, D) that the learner takes, or images (N, 3, H, W).
        labels: the caption of each pair (N,).
        captions: texts.
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
        """``loss``, of the query behind the inner step, and ``support``, of the support before it."""
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
        """Give θ the query's gradient at θ', and the regulator what follows from it through the inner step."""
        outer, steps = self.outer
        for parameter, gradient in zip(self.learner.trainable_parameters(), outer, strict=True):
            parameter.grad = gradient
        through = [(step, -self.inner_lr * g) for step, g in zip(steps, outer, strict=True) if step.requires_grad]
        torch.autograd.backward([step for step, _ in through], [g for _, g in through])

    def after_step(self) -> None:
        """Hold θ to what the learner's is held to."""
        self.learner.after_step()

    def _loss(self, places: Tensor) -> Tensor:
        """The learner's loss on pairs, among their captions."""
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
