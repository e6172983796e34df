"""Small images inside a page, within a number of bytes for all of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import cache

from PIL import Image

from vlprompt.errors import VlpromptError

BUDGET = 3_000_000  # characters of a page's images, so that it can be sent by mail
SIZE, QUALITY = 224, 80  # pixels of the longer side, JPEG's quality


class Thumbnails:
    """Images as addresses that hold them.

    Args:
        open_image: opens the image at a place.
        left: shared with the others of a page, the characters that are left for all of them.
    """

    def __init__(self, open_image: Callable[[int], Image.Image] | None, left: list[int]):
        self._open, self._left = open_image, left
        self.of = cache(self._of)  # an image may stand in several places

    def _of(self, place: int) -> str:
        """A ``data:`` address; empty if there is no image, it cannot be read any more, or the budget is spent."""
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
