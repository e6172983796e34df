"""Small images embedded in a page, within a limit on their total size."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import cache

from PIL import Image

from vlprompt.errors import VlpromptError

BUDGET = 3_000_000  # characters for all images of a page, so that it can be sent by mail
SIZE, QUALITY = 224, 80  # pixels of the longer side, JPEG quality


class Thumbnails:
    """Images as ``data:`` addresses, which contain the image itself.

    Args:
        open_image: opens the image at an index; None if there are no images.
        left: a list of one number, the characters that are left of the page's budget; shared by all of its thumbnails.
    """

    def __init__(self, open_image: Callable[[int], Image.Image] | None, left: list[int]):
        self._open, self._left = open_image, left
        self.of = cache(self._of)  # an image may be shown several times

    def _of(self, place: int) -> str:
        """An image's ``data:`` address; empty if there is none, it can no longer be read, or the budget is spent."""
        if self._open is None or self._left[0] <= 0:
            return ""
        try:
            image = self._open(place)
        except VlpromptError:
            return ""
        image.thumbnail((SIZE, SIZE))
        written = io.BytesIO()
        image.convert("RGB").save(written, "JPEG", quality=QUALITY)
        address = f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
        self._left[0] -= len(address)
        return address
