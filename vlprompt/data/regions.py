"""``region=``: images that show only a region, cut out or with its surroundings blank, for methods without masks."""

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
BLANK = tuple(round(255 * share) for share in IMAGE_MEAN)  # zero after normalisation for OpenAI's models, as in OVSeg


def showing_regions(splits: DatasetSplits, region: str) -> DatasetSplits:
    """Return a dataset whose images show only their regions.

    Args:
        splits: a dataset whose images have masks, see ``vlprompt.data.masks``.
        region: ``crop`` cuts out the square around the region, ``blank`` paints everything outside it in the mean
            colour, ``crop_blank`` does both. Masks are cropped with their images.

    Raises:
        VlpromptError: ``region`` is unknown, or there are no masks.
    """
    if region not in SHOWN:
        raise VlpromptError(f"unknown region '{region}': {nearest(region, SHOWN)}")
    if not all(has_masks(splits, items) for items in (splits.train, splits.val, splits.test, splits.pool)):
        raise VlpromptError(
            f"region={region} needs images with masks, and those of {splits.name} have none: put NAME_mask.png beside "
            "NAME.jpg, or give a table a column mask"
        )
    return replace(splits, open_image=partial(_open, splits, region), open_whole=splits.open_image, region=region)


def _open(whole: DatasetSplits, region: str, item: Item) -> Image.Image:
    """Open the region of an item's image."""
    open_own: Callable[[Item], Image.Image] = whole.open_image
    image, mask = open_own(item), open_mask(whole, item)
    if image.size != mask.size:
        raise VlpromptError(f"the mask of {item.path} of {whole.name} is not of its image's size")
    if "blank" in region:
        image = Image.composite(image, Image.new("RGB", image.size, BLANK), mask)
    return image.crop(box_of(mask)) if region in CROPS else image
