"""Checks batches, images, features and labels that users give to learners, with errors in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlprompt.base.checks import brief
from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from vlprompt.clip.frozen import FrozenCLIP
    from vlprompt.learner.facts import Facts


def check_images(images: Any, size: int) -> Tensor:
    """Return images if they are (B, 3, S, S), as the backbone takes them.

    Args:
        images: a float tensor on any device.
        size: side S of the backbone's images, in pixels.

    Raises:
        VlpromptError: they are not such a tensor, or contain numbers that are not finite.
    """
    if not isinstance(images, Tensor):
        raise VlpromptError(
            f"images must be a tensor (B, 3, {size}, {size}), not {brief(images)}: torch.stack what clip.preprocess "
            "makes of each, or give images as they are to predict_images"
        )
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
        one = ": write images[None] for a single one" if images.ndim == 3 else ", as clip.preprocess makes them"
        raise VlpromptError(f"images must be (B, 3, {size}, {size}), not {tuple(images.shape)}{one}")
    return _check_numbers(images, "images", "clip.preprocess makes such of bytes")


def check_features(features: Any, width: int) -> Tensor:
    """Return image features (B, D) as fp32.

    Args:
        features: a float tensor on any device.
        width: joint width D of the backbone.

    Raises:
        VlpromptError: they are not such a tensor, or contain numbers that are not finite.
    """
    if not isinstance(features, Tensor):
        raise VlpromptError(f"image features must be a tensor (B, {width}), not {brief(features)}")
    if features.ndim != 2 or features.shape[1] != width:
        raise VlpromptError(f"image features must be (B, {width}), not {tuple(features.shape)}")
    return _check_numbers(features, "image features", "the backbone gives such").float()


def _check_numbers(values: Tensor, what: str, hint: str) -> Tensor:
    """Refuse tensors that are not dense or not float, and, outside of training and tracing, numbers not finite."""
    if not values.is_floating_point() or values.layout != torch.strided:
        raise VlpromptError(f"{what} must be dense float numbers, not {values.dtype} of {values.layout}: {hint}")
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]  # missing in torch's annotations
    traced = torch.compiler.is_compiling() or tracing or type(values) is not Tensor
    if not (torch.is_grad_enabled() or traced) and not bool(torch.isfinite(values).all()):
        raise VlpromptError(f"{what} hold numbers that are not finite")
    return values


def as_batch(batch: Any, facts: Facts, clip: FrozenCLIP, features: bool) -> Mapping[str, Tensor]:
    """Return a batch, or images (B, 3, S, S) as a batch, after checking its images, features and masks.

    Args:
        batch: a batch or images.
        facts: the learner's facts.
        clip: its frozen model.
        features: whether the batch may contain ``image_features`` (B, D) instead of images.

    Raises:
        VlpromptError: it is neither, it lacks something that the learner needs, or a tensor has the wrong shape.
    """
    if not isinstance(batch, Mapping):
        return {"image": check_images(batch, clip.image_size)}
    if features and batch.get("image_features") is not None:
        return {**batch, "image_features": check_features(batch["image_features"], clip.embed_dim)}
    if "image" in facts.inputs and "image" not in batch:
        need = "image or image_features" if features else "image"
        raise VlpromptError(f"a batch needs {need}, and this one has {', '.join(map(str, batch)) or 'nothing'}")
    if "mask" in facts.inputs and "mask" not in batch:
        raise VlpromptError("a batch needs mask (B, 1, H, W), 1 in each image's region, and this one has none")
    if "mask" in facts.inputs:
        _check_masks(batch["mask"], batch["image"])
    return batch


def _check_masks(masks: Any, images: Tensor) -> None:
    """Refuse masks whose shape is not (B, 1, H, W) for images (B, 3, H, W)."""
    expected = (len(images), 1, *images.shape[-2:])
    if not isinstance(masks, Tensor) or tuple(masks.shape) != expected:
        given = tuple(masks.shape) if isinstance(masks, Tensor) else brief(masks)
        raise VlpromptError(f"mask must be a tensor {expected}, 1 in each image's region and 0 outside, not {given}")


def check_batch(batch: Any, n_classes: int, facts: Facts) -> dict[str, Tensor]:
    """Return a training batch with labels (B,) from 0 to C - 1 as int64.

    Args:
        batch: tensors by name.
        n_classes: number of classes C.
        facts: the learner's facts, which say whether labels are needed.

    Raises:
        VlpromptError: it is not a batch, labels are missing, or they are not such numbers.
    """
    if not isinstance(batch, Mapping) or not all(isinstance(value, Tensor) for value in batch.values()):
        raise VlpromptError(f"a batch must be tensors by name, such as image and label, not {brief(batch)}")
    if "label" not in batch:
        if facts.labels == "needed":
            raise VlpromptError(f"a batch to learn from needs label, and this one has {', '.join(batch) or 'nothing'}")
        return dict(batch)
    images = next((batch[key] for key in ("image_features", "image") if key in batch), batch["label"])
    return dict(batch) | {"label": check_labels(batch["label"], len(images), n_classes)}


def check_labels(label: Tensor, n_images: int, n_classes: int) -> Tensor:
    """Return labels (B,) as int64; raises ``VlpromptError`` unless there is one per image, from 0 to C - 1."""
    if label.ndim != 1 or len(label) != n_images or label.is_floating_point() or label.is_complex():
        raise VlpromptError(
            f"labels must be whole numbers ({n_images},), one an image, not {label.dtype} {tuple(label.shape)}"
        )
    # labels on an accelerator were checked before; looking at their values would synchronize with it
    if label.device.type == "cpu" and len(label) and not 0 <= int(label.min()) <= int(label.max()) < n_classes:
        raise VlpromptError(f"labels must be from 0 to {n_classes - 1}, not {int(label.min())} to {int(label.max())}")
    return label.long()
