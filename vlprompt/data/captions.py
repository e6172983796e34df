"""Image–text pairs: a folder whose images have ``<name>.txt`` beside them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from vlprompt.base.files import read_text
from vlprompt.data.images import open_inside
from vlprompt.data.listing import list_images
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.errors import VlpromptError


def read_captions(folder: str) -> DatasetSplits:
    """Return the images of a folder as training images whose class names are their captions.

    The caption of ``x/1.jpg`` is the first line of ``x/1.txt``. Images without a caption are left out.

    Raises:
        VlpromptError: there is no such folder, or no image in it has a caption.
    """
    top = Path(folder).expanduser()
    if not top.is_dir():
        raise VlpromptError(f"there is no folder {folder} of images with captions")
    found: dict[str, str] = {}
    for name in list_images(top).images:
        text = (top / name).with_suffix(".txt")
        if text.is_file() and (lines := read_text(text).split("\n")) and lines[0].strip():
            found[name] = lines[0].strip()
    if not found:
        raise VlpromptError(f"no image in {folder} has a caption: write that of 1.jpg into 1.txt")
    captions = list(dict.fromkeys(found.values()))
    labels = {caption: label for label, caption in enumerate(captions)}
    train = [Item(name, labels[caption], caption) for name, caption in found.items()]
    opener = partial(open_inside, top)
    return DatasetSplits(f"captions:{folder}", tuple(captions), train, (), (), opener, image_dir=top, source="own file")
