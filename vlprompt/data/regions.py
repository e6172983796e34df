"""Regions of images in place of the images: cut out, or with nothing around them, for methods that take no masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from PIL import Image

from vlprompt.clip.openclip import IMAGE_MEAN
from vlprompt.data.masks import CROPS, box_of, open_mask
from vlprompt.data.splits import DatasetSplits, Item, has_masks
from vlprompt.errors import VlpromptError, nearest

SHOWN = (*CROPS, "blank")
NOTHING = tuple(round(255 * share) for share in IMAGE_MEAN)  # the colour that is zero to OpenAI's models, as OVSeg's


def showing_regions(splits: DatasetSplits, region: str) -> DatasetSplits:
    """A dataset whose images are regions of those that it has.

    Args:
        splits: whose images have masks, see ``vlprompt.data.masks``.
        region: ``crop`` cuts out the square around the region, ``blank`` paints everything outside it in the mean
            colour, ``crop_blank`` does both. Masks are cut with their images.

    Raises:
        VlpromptError: it is none of these, or there are no masks.
    """
    if region not in SHOWN:
        raise VlpromptError(f"unknown region '{region}': {nearest(region, SHOWN)}")
    if not all(has_masks(splits, items) for items in (splits.train, splits.val, splits.test, splits.pool)):
        raise VlpromptError(
            f"region={region} needs images with masks, and those of {splits.name} have none: put NAME_mask.png beside "
            "NAME.jpg, or give a table a column mask"
        )
    opened = partial(_open, splits, region)
    return replace(splits, open_image=opened, open_whole=splits.open_image, region=region)


def _open(whole: DatasetSplits, region: str, item: Item) -> Image.Image:
    """Open an item's image as what is shown of it."""
    open_own: Callable[[Item], Image.Image] = whole.open_image
    image, mask = open_own(item), open_mask(whole, item)
    if image.size != mask.size:
        raise VlpromptError(f"the mask of {item.path} of {whole.name} is not of its image's size")
    if "blank" in region:
        image = Image.composite(image, Image.new("RGB", image.size, NOTHING), mask)
    return image.crop(box_of(mask)) if region in CROPS else image
