"""TransCLIP's two alternating steps: votes of the most similar images, and Gaussians of diagonal covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.methods.heads.neighbours import as_sparse, most_similar

LEAST_VARIANCE = 1e-8  # of images that are all alike


@dataclass(frozen=True)
class Labelled:
    """Labelled images that take part.

    Attributes:
        features: normalised (S, D).
        labels: (S,), integers.
        n_classes: C.
    """

    features: Tensor
    labels: Tensor
    n_classes: int

    def sums(self) -> Tensor:
        """Sums (C, D) of the images of each class."""
        zeros = self.features.new_zeros(self.n_classes, self.features.shape[1])
        return zeros.index_add_(0, self.labels, self.features)


class Votes(NamedTuple):
    """Wᵀz + Wz: votes among test images, a symmetric matrix (Q, Q), and of labelled images (Q, C), which are fixed."""

    own: Tensor
    labelled: Tensor | float = 0.0

    @classmethod
    def of(cls, v: Tensor, k: int, labelled: Labelled | None, published: bool) -> Votes:
        """What images hear from the k neighbours that each has, and from those whose neighbour it is.

        Args:
            v: normalised features (Q, D) of the images of a test.
            k: neighbours; so scaled that each one's whole vote counts 1/2k.
            labelled: images that have neighbours too.
            published: whether the authors' rows are mixed up as theirs are.
        """
        each = most_similar(v, v, k, own=0)
        if labelled is None:
            return cls(_both_ways(as_sparse(each, len(v)), k))
        others = most_similar(labelled.features, v, k, skip=int(published))
        # theirs has labelled images first in the rows, and last among the assignments
        rows = torch.cat([as_sparse(others, len(v)), as_sparse(each, len(v))])
        place = torch.arange(rows.shape[0], device=v.device)
        own, known = (place[: len(v)], place[len(v) :]) if published else (place[-len(v) :], place[: -len(v)])
        classes = F.one_hot(labelled.labels, labelled.n_classes).to(v)
        heard: Tensor = torch.sparse.mm(rows.index_select(0, known).t(), classes)
        return cls(_both_ways(rows.index_select(0, own), k), heard / (2 * k))


def _both_ways(own: Tensor, k: int) -> Tensor:
    """W + Wᵀ (Q, Q), scaled."""
    both: Tensor = ((own + own.t()) / (2 * k)).coalesce()
    return both


class Gaussians(NamedTuple):
    """Means μ (C, D) of unit norm, and the variance σ² (D,) that all classes share."""

    means: Tensor
    variance: Tensor

    @classmethod
    def first(cls, v: Tensor, z: Tensor, confident: int, labelled: Labelled | None) -> Gaussians:
        """Of labelled images, or of those, so many a class, that the start z (Q, C) takes for a class most surely."""
        if labelled is not None:
            means = labelled.sums()
        else:
            surest = z.topk(min(confident, len(z)), dim=0)  # (8, C)
            means = torch.einsum("kc,kcd->cd", surest.values, v[surest.indices])
        return cls(F.normalize(means, dim=-1), torch.full_like(v[0], 1 / v.shape[1]))

    @classmethod
    def of(cls, v: Tensor, z: Tensor, weight: float, labelled: Labelled | None) -> Gaussians:
        """Of images v (Q, D) by their assignments z (Q, C), and of labelled ones that count ``weight`` in all."""
        sums, total, square = z.T @ v / len(v), z.sum(dim=0) / len(v), v.square().mean(dim=0)
        if labelled is not None:
            each, counts = weight / len(labelled.features), torch.bincount(labelled.labels, minlength=len(total))
            sums, total = sums + each * labelled.sums(), total + each * counts
            square = square + each * labelled.features.square().sum(dim=0)
        means = F.normalize(sums, dim=-1)
        spread = square - 2 * (means * sums).sum(dim=0) + total @ means.square()
        return cls(means, (spread / total.sum()).clamp_min(LEAST_VARIANCE))

    def log_likelihood(self, v: Tensor) -> Tensor:
        """Of images v (Q, D) in each class (Q, C), but for -|v|²/2σ² and what else all classes share."""
        return (v / self.variance) @ self.means.T - self.means.square() @ (0.5 / self.variance)
