"""ZLaP: label propagation for zero-shot classification with vision-language models (CVPR 2024, arXiv:2404.04072).

Fitted: a graph of class texts and unlabelled images, over which the label of each class propagates; an image gets the
class with the largest share. With ``mode=transductive`` the graph contains the test images, which are predicted
jointly. Otherwise it contains the pool of training images, and each test image is connected to the most similar of them
on its own; with ``sparse``, each node passes on only its largest class.
Source: Stojnić, Kalantidis and Tolias. Protocols: test-time (transductive), unsupervised (inductive, sparse);
also on top of a saved learner (``text=``).
Differs from the authors' code: an image is never its own neighbour, even if a copy is as similar; a linear system that
does not converge is an error; the inductive modes solve one system per class in advance, which by symmetry is
equivalent to one per image. Logits are the logarithms of the scores, so that probabilities are proportional to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array, csr_array, diags_array, eye_array, vstack
from scipy.sparse.linalg import cg
from torch import Tensor

from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.learner.facts import Facts
from vlprompt.learner.learning import Feed, Train
from vlprompt.methods.heads.neighbours import most_similar
from vlprompt.methods.heads.on_text import BesideZeroShot


class Solved(NamedTuple):
    """The graph's systems for a pool (U, D) and class texts (C, D): columns (C+U, C), and the smallest similarity."""

    pool: Tensor
    texts: Tensor
    columns: np.ndarray
    least: float


@register("zlap", paper="arXiv:2404.04072", labels="none", head=True, predicts="jointly", fidelity="code")
class ZLaP(BesideZeroShot):
    """Label propagation from class texts over a graph of images."""

    @dataclass
    class Config(BesideZeroShot.Config):
        """Settings.

        Attributes:
            mode: whether the graph contains the test images (transductive) or the pool (inductive, sparse).
            k: number of most similar images that an image is connected to, itself included, and of most similar
                classes.
            gamma: exponent γ of the similarities between images and classes.
            alpha: α in [0, 1), how far labels propagate.
            scaled: whether similarities are first scaled to [0, 1], as for class proxies that lie among the images.
            tolerance: relative residual at which a linear system counts as solved.
            iterations: maximum number of iterations to solve it.
        """

        mode: Literal["transductive", "inductive", "sparse"] = "transductive"
        k: int = 5
        gamma: float = 5.0
        alpha: float = 0.3
        scaled: bool = False
        tolerance: float = 1e-6
        iterations: int = 50

    config: Config
    pool: Tensor

    @classmethod
    def facts_of(cls, config: Config) -> Facts:
        """If the graph contains the pool, each test image is predicted alone."""
        return cls.registered if config.mode == "transductive" else replace(cls.registered, predicts="alone")

    def setup(self) -> None:
        """Create a buffer for the pool, empty until its size is known."""
        super().setup()
        if self.config.k < 1 or not 0 <= self.config.alpha < 1:
            raise VlpromptError("zlap needs k of at least 1, and alpha of at least 0 and below 1")
        self._solved: Solved | None = None
        self.reserve({})

    def reserve(self, shapes: Mapping[str, torch.Size]) -> None:
        """Create the buffer of the pool's normalised features (U, D)."""
        if self.config.mode != "transductive":
            self.register_buffer(
                "pool", torch.zeros(shapes.get("pool", (0, self.clip.embed_dim)), device=self.clip.device)
            )

    def learn(self, feed: Feed, train: Train) -> None:
        """Keep the pool, if the graph contains it."""
        if self.config.mode != "transductive":
            self.pool = F.normalize(feed.bank("pool").features[0], dim=-1)

    @torch.no_grad()
    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (N, C): logarithms of the scores, which are bounded below by the solver's tolerance."""
        return self.scores(v, t).clamp_min(max(self.config.alpha * self.config.tolerance, 1e-12)).log()

    def scores(self, v: Tensor, t: Tensor) -> Tensor:
        """Non-negative scores (N, C) of each class at images v (N, D), given class features t (C, D)."""
        if self.config.mode == "transductive":
            ties, _ = self.ties(v, v, t, own=0)
            return torch.from_numpy(self.solve(ties)[len(t) :]).to(v)
        if not len(self.pool):
            raise VlpromptError(f"zlap with mode={self.config.mode} needs a pool of images: use protocol=unsupervised")
        known = self._solved
        if known is None or not (torch.equal(known.pool, self.pool) and torch.equal(known.texts, t)):
            ties, least = self.ties(self.pool, self.pool, t, own=0)
            columns = self.solve(ties)
            if self.config.mode == "sparse":
                columns = np.where(columns == columns.max(axis=1, keepdims=True), columns, 0)
            known = self._solved = Solved(self.pool.clone(), t.clone(), columns, least)
        ties, _ = self.ties(v, self.pool, t, least=known.least)
        return torch.from_numpy(ties @ known.columns).to(v)

    def ties(
        self, v: Tensor, images: Tensor, t: Tensor, own: int | None = None, least: float | None = None
    ) -> tuple[csr_array, float]:
        """The edges (N, C+M) of images v (N, D) to class texts and images (M, D), and the least of their similarities.

        Args:
            v, images, t: normalised features.
            own: the row that is the first of ``images``, and so on from there.
            least: where similarities begin that are spread over [0, 1]; None takes that of these edges.
        """
        c = self.config
        named, alike = most_similar(v, t, c.k), most_similar(v, images, c.k - (own is not None), own=own)
        texts, others = named.cosine.cpu().double(), alike.cosine.cpu().double()
        if c.scaled:
            least = min(part.min().item() for part in (texts, others) if part.numel()) if least is None else least
            texts, others = ((part - least) / max(1 - least, 1e-12) for part in (texts, others))  # 1 is with itself
        weight = torch.cat([texts.clamp_min(0) ** c.gamma, others.clamp_min(0)], dim=1).numpy()
        column = torch.cat([named.index, alike.index + len(t)], dim=1).cpu().numpy()
        row = np.repeat(np.arange(len(v)), column.shape[1])
        edges = coo_array((weight.ravel(), (row, column.ravel())), shape=(len(v), len(t) + len(images)))
        return edges.tocsr(), least or 0.0

    def solve(self, ties: csr_array) -> np.ndarray:
        """(I - αS)⁻¹ e_c for each class c (C+N, C), with S the graph of texts and images, normalised by degrees.

        Args:
            ties: the edges (N, C+N) of the graph's images; an edge that both its images have counts twice.
        """
        size, classes = ties.shape[1], ties.shape[1] - ties.shape[0]
        directed = vstack([csr_array((classes, size)), ties])  # class texts have no edges of their own
        graph = directed + directed.T
        degree = graph.sum(axis=0)
        root = diags_array(1 / np.sqrt(np.where(degree > 0, degree, 1)))
        system = (eye_array(size) - self.config.alpha * (root @ graph @ root)).tocsr()
        columns = np.empty((size, classes), dtype=np.float32)
        for c in range(classes):
            label = np.zeros(size)
            label[c] = 1
            columns[:, c], left = cg(system, label, rtol=self.config.tolerance, maxiter=self.config.iterations)
            if left:
                raise VlpromptError(
                    f"zlap's labels still flow after {self.config.iterations} iterations: take a smaller alpha, or "
                    "more of them"
                )
        return columns
