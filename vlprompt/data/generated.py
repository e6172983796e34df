"""Views of test images that a generator made beforehand: files ``<name>_<i>`` in a folder. None are made here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
from PIL import Image

from vlprompt.data.images import open_rgb
from vlprompt.data.listing import list_images
from vlprompt.data.loading import ImageItems
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.errors import VlpromptError

NUMBERED = re.compile(r"(.+)_(\d+)")


class GeneratedViews:
    """A folder of generated views, looked up by the path of the original image.

    The views of ``birds/wren.jpg`` are ``birds/wren_0.png``, ``birds/wren_1.png`` and so on in the folder, with any
    image ending. If the original has a longer path, the longest end of it that has views is used.

    Args:
        folder: the folder.
        count: number of views per image; those with the lowest numbers are used.
        transform: from an RGB image to a tensor (3, H, W).

    Raises:
        VlpromptError: there is no such folder, or it has no numbered images.
    """

    def __init__(self, folder: str, count: int, transform: Callable[[Image.Image], torch.Tensor]):
        self.folder, self.count, self.transform = Path(folder).expanduser(), count, transform
        if not self.folder.is_dir():
            raise VlpromptError(f"there is no folder {folder} of generated views")
        by_original: dict[str, list[tuple[int, str]]] = {}
        for name in list_images(self.folder).images:
            numbered = NUMBERED.fullmatch(os.path.splitext(name)[0])
            if numbered:
                by_original.setdefault(numbered[1], []).append((int(numbered[2]), name))
        if not by_original:
            raise VlpromptError(f"{folder} has no generated views: they are images called NAME_0, NAME_1 and so on")
        self.by_original = {key: [name for _, name in sorted(views)] for key, views in by_original.items()}

    def key(self, path: str) -> str | None:
        """The end of an image's path, without ending, under which it has views; None if it has none."""
        parts = PurePath(path).with_suffix("").parts
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((end for end in ends if end in self.by_original), None)

    def check(self, paths: Iterable[str]) -> None:
        """Raise a ``VlpromptError`` if an image has too few views, or two images have the same views."""
        originals: dict[str, str] = {}
        for path in paths:
            self.names(path)
            key = str(self.key(path))
            if key in originals:
                raise VlpromptError(
                    f"{originals[key]} and {path} have the same generated views {key}_0 and so on in {self.folder}: "
                    "put the views into the same sub-folders as the images"
                )
            originals[key] = path

    def names(self, path: str) -> list[str]:
        """The files of an image's views, relative to the folder.

        Raises:
            VlpromptError: there are fewer than ``count``.
        """
        names = self.by_original.get(self.key(path) or "", [])
        if len(names) < self.count:
            raise VlpromptError(
                f"{self.folder} has {len(names)} generated views of {path}, and {self.count} are needed: generate the "
                "others, or set n_generated"
            )
        return names[: self.count]

    def read(self, path: str) -> torch.Tensor:
        """The views of an image (count, 3, H, W)."""
        return torch.stack([self.transform(open_rgb(self.folder / name)) for name in self.names(path)])

    def append_to(self, views: torch.Tensor, source: object) -> torch.Tensor:
        """Append the generated views of an image to other views of it (V, 3, H, W): (V + count, 3, H, W).

        Raises:
            VlpromptError: ``source`` is not a path, or has too few views.
        """
        if not isinstance(source, (str, os.PathLike)):
            raise VlpromptError("generated views are found by an image's path: give paths instead of images")
        return torch.cat([views, self.read(os.fspath(source))])


class WithGenerated(ImageItems):
    """Items whose images are views (V, 3, H, W), followed by the generated views of each image."""

    def __init__(
        self,
        splits: DatasetSplits,
        items: Sequence[Item],
        transform: Callable[[Image.Image], torch.Tensor],
        generated: GeneratedViews,
    ):
        super().__init__(splits, items, transform)
        self.generated = generated

    def load(self, index: int) -> dict[str, Any]:
        """Return a sample with all its views."""
        sample = super().load(index)
        return {**sample, "image": self.generated.append_to(sample["image"], self.items[index].path)}
