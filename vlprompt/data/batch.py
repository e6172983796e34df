"""The tensors of a batch."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import TypedDict


class Batch(TypedDict, total=False):
    """Tensors by name; ``Facts.inputs`` and objectives say which of them are needed."""

    image: Tensor  # (B, 3, H, W)
    image_strong: Tensor  # (B, 3, H, W), another augmentation of the same images
    views: Tensor  # (B, V, 3, H, W)
    mask: Tensor  # (B, 1, H, W)
    image_features: Tensor  # (B, D), from the frozen tower
    label: Tensor  # (B,)
    index: Tensor  # (B,), positions in the split
    domain: Tensor  # (B,)
    weight: Tensor  # (B,), in the loss
    pseudo: Tensor  # (B,), whether the label is a pseudo-label
    class_mask: Tensor  # (B, C), the classes among which an image is classified
    unlabeled: Batch  # of images from the pool
