"""TransCLIP's two alternating steps: votes of the most similar images, and Gaussians of diagonal covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.methods.heads.neighbours import as_sparse, most_similar

LEAST_VARIANCE = 1e-8  # for images that are all equal


@dataclass(frozen=True)
class Labelled:
    """Labelled images.

    Attributes:
        features: normalised features (S, D).
        labels: integers (S,).
        n_classes: number of classes C.
    """

    features: Tensor
    labels: Tensor
    n_classes: int

    def sums(self) -> Tensor:
        """Sums (C, D) of the features of each class."""
        zeros = self.features.new_zeros(self.n_classes, self.features.shape[1])
        return zeros.index_add_(0, self.labels, self.features)


class Votes(NamedTuple):
    """The votes Wᵀz + Wz: a symmetric matrix (Q, Q) among test images, and fixed votes of labelled images (Q, C)."""

    own: Tensor
    labelled: Tensor | float = 0.0

    @classmethod
    def of(cls, v: Tensor, k: int, labelled: Labelled | None, published: bool) -> Votes:
        """Votes between each image and its k neighbours, in both directions.

        Args:
            v: normalised features (Q, D) of all images of a test.
            k: number of neighbours; each vote is scaled by 1/2k.
            labelled: labelled images, which have neighbours too.
            published: whether rows are confused as in the authors' code.
        """
        each = most_similar(v, v, k, own=0)
        if labelled is None:
            return cls(_both_ways(as_sparse(each, len(v)), k))
        others = most_similar(labelled.features, v, k, skip=int(published))
        # in their code, labelled images are first in the rows but last among the assignments
        rows = torch.cat([as_sparse(others, len(v)), as_sparse(each, len(v))])
        place = torch.arange(rows.shape[0], device=v.device)
        own, known = (place[: len(v)], place[len(v) :]) if published else (place[-len(v) :], place[: -len(v)])
        classes = F.one_hot(labelled.labels, labelled.n_classes).to(v)
        heard: Tensor = torch.sparse.mm(rows.index_select(0, known).t(), classes)
        return cls(_both_ways(rows.index_select(0, own), k), heard / (2 * k))


def _both_ways(own: Tensor, k: int) -> Tensor:
    """(W + Wᵀ)/2k (Q, Q)."""
    both: Tensor = ((own + own.t()) / (2 * k)).coalesce()
    return both


class Gaussians(NamedTuple):
    """Means μ (C, D) of unit norm, and the variance σ² (D,) that all classes share."""

    means: Tensor
    variance: Tensor

    @classmethod
    def first(cls, v: Tensor, z: Tensor, confident: int, labelled: Labelled | None) -> Gaussians:
        """Initial Gaussians, from labelled images or from the images with the highest z (Q, C) in each class."""
        if labelled is not None:
            means = labelled.sums()
        else:
            surest = z.topk(min(confident, len(z)), dim=0)  # (8, C)
            means = torch.einsum("kc,kcd->cd", surest.values, v[surest.indices])
        return cls(F.normalize(means, dim=-1), torch.full_like(v[0], 1 / v.shape[1]))

    @classmethod
    def of(cls, v: Tensor, z: Tensor, weight: float, labelled: Labelled | None) -> Gaussians:
        """Fit to images v (Q, D) with assignments z (Q, C), and to labelled images with a total ``weight``."""
        sums, total, square = z.T @ v / len(v), z.sum(dim=0) / len(v), v.square().mean(dim=0)
        if labelled is not None:
            each, counts = weight / len(labelled.features), torch.bincount(labelled.labels, minlength=len(total))
            sums, total = sums + each * labelled.sums(), total + each * counts
            square = square + each * labelled.features.square().sum(dim=0)
        means = F.normalize(sums, dim=-1)
        spread = square - 2 * (means * sums).sum(dim=0) + total @ means.square()
        return cls(means, (spread / total.sum()).clamp_min(LEAST_VARIANCE))

    def log_likelihood(self, v: Tensor) -> Tensor:
        """Log-likelihoods (Q, C) of images v (Q, D), without terms that are equal for all classes."""
        return (v / self.variance) @ self.means.T - self.means.square() @ (0.5 / self.variance)
