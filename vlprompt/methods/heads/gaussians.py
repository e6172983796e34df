"""Gaussians with a covariance shared by all classes, fitted to labels or probabilities, or synthesised from neighbours.

Computed in float64, since the covariance is inverted, and so on the CPU for features on Apple's GPUs; results are
fp32. Samples are read one view at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.base.devices import exact_device
from vlprompt.errors import VlpromptError


@dataclass(frozen=True)
class Gaussians:
    """Gaussians with a shared covariance, and their discriminant f·w_c + b_c for equal priors.

    Attributes:
        means: μ_c (C, D), not normalised, in float64.
        precision: P (D, D), in float64.
    """

    means: Tensor
    precision: Tensor

    @property
    def w(self) -> Tensor:
        """P μ_c (C, D)."""
        return (self.means @ self.precision).float()

    @property
    def b(self) -> Tensor:
        """log(1/C) - ½ μ_cᵀ P μ_c (C,)."""
        return (-math.log(len(self.means)) - 0.5 * (self.means @ self.precision * self.means).sum(dim=1)).float()


def fit_gaussians(
    features: Tensor, labels: Tensor, n_classes: int, shrinkage: bool = True, counts: Tensor | None = None
) -> Gaussians:
    """Fit a Gaussian to each class, §3 of the paper; classes may have any numbers of samples.

    Args:
        features: V views of N images (V, N, D), each of which is normalised and used as a sample. With a single sample
            per class there is no spread: P is then 0, and only the zero-shot classifier remains.
        labels: (N,), at least one of each class.
        n_classes: number of classes C.
        shrinkage: whether to use the precision of Kubokawa and Srivastava (``shrunk``) of the covariance of all samples
            around their class means; otherwise the inverse of the mean of the classes' own covariances.
        counts: how many times each image counts (N,); None counts each once.

    Raises:
        VlpromptError: a class has no sample, or the matrix cannot be inverted.
    """
    device = exact_device(features.device)
    features, labels = features.to(device), labels.to(device)
    each = torch.ones_like(labels) if counts is None else counts.to(device)  # (N,)
    each = each.double().unsqueeze(1)
    total = len(features) * each.new_zeros(n_classes).index_add(0, labels, each.squeeze(1))  # (C,)
    if not total.all():
        raise VlpromptError(f"gda needs an image of each class, and label {int((total == 0).nonzero()[0])} has none")
    width = features.shape[2]
    means = total.new_zeros(n_classes, width)
    for x in _views(features):
        means.index_add_(0, labels, each * x)
    means /= total.unsqueeze(1)
    # each sample's share of the covariance: 1 in a scatter matrix, or 1/(n_c - 1) of its class's
    shares = torch.ones_like(total) if shrinkage else 1 / (n_classes * (total - 1).clamp_min(1))
    scatter = total.new_zeros(width, width)
    for x in _views(features):
        centred = x - means[labels]  # (N, D)
        scatter += centred.T @ (each * shares[labels].unsqueeze(1) * centred)
    return Gaussians(means, shrunk(scatter, float(total.sum())) if shrinkage else _inverse(scatter))


def fit_soft_gaussians(x: Tensor, weights: Tensor) -> Gaussians:
    """Fit Gaussians to samples that belong to classes with weights: the M-step, with a shrunk precision.

    The covariance is the mean of the classes' own, Σ = 1/C Σ_c Σ_i γ_ic (x_i - μ_c)(x_i - μ_c)ᵀ / Σ_i γ_ic.

    Args:
        x: normalised features (N, D).
        weights: γ (N, C), the weight of each sample in each class.
    """
    x, gamma = (each.to(exact_device(each.device)).double() for each in (x, weights))
    gamma = gamma / gamma.sum(dim=0).clamp_min(torch.finfo(gamma.dtype).tiny)  # sums to 1 over samples
    means = gamma.T @ x
    covariance = (x.T @ (gamma.sum(dim=1, keepdim=True) * x) - means.T @ means) / gamma.shape[1]
    return Gaussians(means, shrunk((len(x) - 1) * covariance, len(x)))


def shrunk(scatter: Tensor, n: float) -> Tensor:
    """The precision of Kubokawa and Srivastava (D, D): D·pinv((n-1)·Σ + tr(Σ)·I), of the scatter matrix (n-1)·Σ."""
    eye = torch.eye(len(scatter), dtype=scatter.dtype, device=scatter.device)
    return len(scatter) * _inverse(scatter + scatter.trace() / max(1, n - 1) * eye)


def nearest_samples(samples: Tensor, text: Tensor, neighbours: int) -> Tensor:
    """Rows (C, k) of the samples (M, D) nearest to each class's text feature (C, D) by inner product, best first."""
    k = min(neighbours, len(samples))
    some = text.split(max(1, 2**24 // len(samples)))
    return torch.cat([(part @ samples.T).topk(k, dim=1).indices for part in some])


def synthesise(samples: Tensor, text: Tensor, neighbours: int, text_copies: int, width: int | None = None) -> Gaussians:
    """Gaussians for classes without images, from the training samples nearest to their text features, §3.3.

    A class's mean is over its neighbours and copies of its text feature, and its spread is around the text feature. Its
    precision is shrunk: the matrix has rank k plus a multiple of the identity, so only a (k, k) matrix must be
    inverted. P is the mean of these precisions.

    Args:
        samples: normalised training features of other classes (M, D).
        text: normalised text features of the new classes (C, D).
        neighbours: k.
        text_copies: how many times the text feature counts in the mean.
        width: number used for D in the precision; by default D.
    """
    samples, text = (each.to(exact_device(each.device)) for each in (samples, text))
    index, d = nearest_samples(samples, text, neighbours), samples.shape[1]
    k, text = index.shape[1], text.double()
    means, precision = [], text.new_zeros(d, d)
    eye, small = (torch.eye(size, dtype=text.dtype, device=text.device) for size in (d, k))
    for rows, t in zip(index, text, strict=True):
        near = samples[rows].double()  # (k, D)
        means.append((near.sum(dim=0) + text_copies * t) / (k + text_copies))
        u = near - t
        ridge = u.square().sum() / max(1, k - 1)  # tr(Σ)
        if ridge == 0:
            raise VlpromptError("gda finds no spread of training features around a new class's text feature")
        # Woodbury: (λI + uᵀu)⁻¹ = (I - uᵀ(λI + uuᵀ)⁻¹u) / λ
        precision += (eye - u.T @ torch.linalg.solve(ridge * small + u @ u.T, u)) / ridge
    return Gaussians(torch.stack(means), (width or d) * precision / len(text))


def _views(features: Tensor) -> Iterator[Tensor]:
    """Each view's normalised features (N, D), in float64."""
    return (F.normalize(view.double(), dim=-1) for view in features)


def _inverse(matrix: Tensor) -> Tensor:
    try:
        inverse: Tensor = torch.linalg.pinv(matrix, hermitian=True)
    except RuntimeError as error:  # torch's LinAlgError among them
        raise VlpromptError(f"gda cannot invert the covariance of these features (pinv): {error}") from error
    return inverse
