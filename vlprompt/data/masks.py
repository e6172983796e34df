"""Regions of images: a mask for each image, and transforms that crop and mirror both in the same way.

A mask is an image of the same size, in which pixels that are not black belong to the region. It is the item's ``mask``
(a column of a table), or the file ``<name>_mask.png`` beside the image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from vlprompt.data.images import open_rgb, reads_from_disk
from vlprompt.data.loading import ImageItems
from vlprompt.data.splits import DatasetSplits, Item, mask_beside, mask_of
from vlprompt.data.transforms import (
    CROP_SCALES,
    Preprocessing,
    eval_crop,
    eval_transform,
    interpolation_of,
    train_transform,
)
from vlprompt.errors import VlpromptError

CROPS = ("crop", "crop_blank")  # settings of region= that cut it out, see ``vlprompt.data.regions``
DRAWS = 10  # attempts at a random crop that shows some of the region, before the centre crop is used


def to_region(image: Image.Image) -> Image.Image:
    """Return a mask as bytes: 255 in the region, 0 outside, where pixels are black or a palette's first colour."""
    pixels = np.asarray(image)
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        pixels = pixels[..., :-1]  # without alpha
    inside = pixels != 0
    return Image.fromarray(np.uint8(255) * (inside.any(axis=2) if inside.ndim == 3 else inside).astype(np.uint8))


def open_mask(splits: DatasetSplits, item: Item) -> Image.Image:
    """Open the mask of an item's image, as ``to_region`` returns it.

    Raises:
        VlpromptError: it has none, or the mask cannot be read.
    """
    path = mask_of(splits, item)
    if not path:
        raise VlpromptError(
            f"{item.path} of {splits.name} has no region mask: put {mask_beside(os.path.basename(item.path))} beside "
            "it, or give a table a column mask"
        )
    mask_item = replace(item, path=path)
    whole = splits if splits.open_whole is None else replace(splits, open_image=splits.open_whole)
    region: Image.Image = (
        whole.open_image(mask_item, to_region) if reads_from_disk(whole) else to_region(whole.open_image(mask_item))
    )
    return region.crop(box_of(region)) if splits.region in CROPS else region


def box_of(mask: Image.Image) -> tuple[int, int, int, int]:
    """Return the square around a region, within the image: left, upper, right, lower; the whole image if it is empty.

    >>> mask = Image.new("L", (40, 20))
    >>> mask.paste(255, (10, 4, 22, 8))
    >>> box_of(mask)
    (10, 0, 22, 12)
    """
    left, upper, right, lower = mask.getbbox() or (0, 0, *mask.size)
    side = max(right - left, lower - upper)
    width, height = (min(side, length) for length in mask.size)
    x = min(max((left + right - width) // 2, 0), mask.width - width)
    y = min(max((upper + lower - height) // 2, 0), mask.height - height)
    return x, y, x + width, y + height


def check_kind(kind: str | None) -> None:
    """Raise a ``VlpromptError`` for a kind of ``train_transform`` whose operations cannot be applied to a mask."""
    if kind not in (None, "center", *CROP_SCALES):
        raise VlpromptError(
            f"transform={kind} has operations that cannot be applied to a mask: use rrc, rrc_half or center"
        )


def check_pair(image: Image.Image, mask: Image.Image) -> None:
    """Raise a ``VlpromptError`` if a mask (from ``to_region``) has another size than its image, or is empty."""
    if image.size != mask.size:
        raise VlpromptError(
            f"its mask is of {mask.width} x {mask.height} pixels, and the image of {image.width} x {image.height}"
        )
    if mask.getbbox() is None:
        raise VlpromptError("its mask is entirely black, so there is no region")


def open_pair(splits: DatasetSplits, item: Item) -> tuple[Image.Image, Image.Image]:
    """Open an item's image and the mask of its region.

    Raises:
        VlpromptError: one cannot be read, or the mask does not fit the image.
    """
    image, mask = splits.open_image(item), open_mask(splits, item)
    try:
        check_pair(image, mask)
    except VlpromptError as error:
        raise VlpromptError(f"the image {item.path} cannot be used: {error}") from error
    return image, mask


def open_mask_beside(path: str | os.PathLike[str]) -> Image.Image:
    """Open ``<name>_mask.png`` beside an image file, as ``to_region`` returns it.

    Raises:
        VlpromptError: there is none, or it cannot be read.
    """
    mask_path = mask_beside(os.fspath(path))
    if not os.path.exists(mask_path):
        raise VlpromptError(f"{os.fspath(path)} has no region mask: {mask_path} does not exist")
    region: Image.Image = open_rgb(mask_path, to_region)
    return region


class RegionTransform:
    """Transforms an image and its mask in the same way, so that they stay aligned.

    With the same random numbers, the image is the same as without a mask. A random crop that shows nothing of the
    region is drawn again, at most ten times.

    Args:
        clip: the frozen model.
        kind: of ``train_transform``; None is the evaluation crop.
        mirror: whether half of the training images are mirrored.

    Raises:
        VlpromptError: the kind has operations that cannot be applied to a mask.
    """

    def __init__(self, clip: Preprocessing, kind: str | None = None, mirror: bool = True):
        check_kind(kind)
        self.whole = train_transform(clip, kind, mirror) if kind else eval_transform(clip)
        self.middle = v2.Compose(eval_crop(clip))
        self.middle_of_mask = v2.Compose(eval_crop(clip, InterpolationMode.NEAREST))
        scale = CROP_SCALES.get(kind or "")
        how = interpolation_of(clip)
        self.crop = v2.RandomResizedCrop(clip.image_size, scale, interpolation=how, antialias=True) if scale else None
        self.flip = v2.RandomHorizontalFlip() if kind and mirror else None

    def __call__(self, image: Image.Image, mask: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image as bytes (3, S, S), and the mask (1, S, S) in float32: 1 in the region, 0 outside.

        Raises:
            VlpromptError: their sizes differ, or the region is empty.
        """
        check_pair(image, mask)
        pixels, region = self._cropped(image, mask)
        if self.flip:
            pixels, region = self.flip(pixels, region)
        return pixels.as_subclass(torch.Tensor), (region > 0).float().as_subclass(torch.Tensor)

    def _cropped(self, image: Image.Image, mask: Image.Image) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        if self.crop:
            pair = tv_tensors.Image(F.pil_to_tensor(image)), tv_tensors.Mask(F.pil_to_tensor(mask))
            for _ in range(DRAWS):
                pixels, region = self.crop(*pair)
                if region.any():
                    return pixels, region
        pixels, region = map(F.to_image, (self.middle(image), self.middle_of_mask(mask)))
        return pixels, tv_tensors.Mask(region)


class RegionItems(ImageItems):
    """Items with their masks: samples also have ``mask`` (1, H, W) in float32, 1 in the region and 0 outside.

    Args:
        splits: the dataset, which opens images and masks.
        items: usually one of its splits.
        transform: of images and masks.
    """

    def __init__(self, splits: DatasetSplits, items: Sequence[Item], transform: RegionTransform):
        super().__init__(splits, items, transform.whole)
        self.region = transform

    def load(self, index: int) -> dict[str, Any]:
        """Return a sample without the steps of the transform that are applied to whole batches."""
        item = self.items[index]
        pixels, region = self.region(*open_pair(self.splits, item))
        return {"image": pixels, "mask": region, "label": item.label, "index": index}
