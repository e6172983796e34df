"""Views of test images that a generator made beforehand, as ``<name>_<i>`` in a folder. None is made here."""

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
    """A folder of generated images, found by the path of the image that they are views of.

    The views of ``birds/wren.jpg`` are ``birds/wren_0.png``, ``birds/wren_1.png`` and so on, whatever their ending,
    below the folder; of an image that lies elsewhere the longest end of its path that is found counts.

    Args:
        folder: where they lie.
        count: views of each image, those of the lowest numbers.
        transform: from an RGB image to a tensor (3, H, W).

    Raises:
        VlpromptError: there is no such folder, or it has no numbered image.
    """

    def __init__(self, folder: str, count: int, transform: Callable[[Image.Image], torch.Tensor]):
        self.folder, self.count, self.transform = Path(folder).expanduser(), count, transform
        if not self.folder.is_dir():
            raise VlpromptError(f"there is no folder {folder} of generated views")
        found: dict[str, list[tuple[int, str]]] = {}
        for name in list_images(self.folder).images:
            numbered = NUMBERED.fullmatch(os.path.splitext(name)[0])
            if numbered:
                found.setdefault(numbered[1], []).append((int(numbered[2]), name))
        if not found:
            raise VlpromptError(f"{folder} has no generated views: they are images called NAME_0, NAME_1 and so on")
        self.found = {key: [name for _, name in sorted(views)] for key, views in found.items()}

    def key(self, path: str) -> str | None:
        """What the views of an image go by in the folder; None if there are none."""
        parts = PurePath(path).with_suffix("").parts
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((end for end in ends if end in self.found), None)

    def check(self, paths: Iterable[str]) -> None:
        """Raise a ``VlpromptError`` if an image has too few views, or two images have the same."""
        seen: dict[str, str] = {}
        for path in paths:
            self.names(path)
            key = str(self.key(path))
            if key in seen:
                raise VlpromptError(
                    f"{seen[key]} and {path} have the same generated views {key}_0 and so on in {self.folder}: give "
                    "them folders as the images have"
                )
            seen[key] = path

    def names(self, path: str) -> list[str]:
        """The files of an image's views, below the folder."""
        names = self.found.get(self.key(path) or "", [])
        if len(names) < self.count:
            raise VlpromptError(
                f"{self.folder} has {len(names)} generated views of {path}, and {self.count} are asked for: generate "
                "the others, or say n_generated"
            )
        return names[: self.count]

    def read(self, path: str) -> torch.Tensor:
        """The views of an image (count, 3, H, W)."""
        return torch.stack([self.transform(open_rgb(self.folder / name)) for name in self.names(path)])

    def behind(self, views: torch.Tensor, source: object) -> torch.Tensor:
        """Views (V, 3, H, W) of an image with the generated ones behind them (V + count, 3, H, W).

        Raises:
            VlpromptError: it is no path by which they are found.
        """
        if not isinstance(source, (str, os.PathLike)):
            raise VlpromptError("generated views are found by an image's path: give paths in place of images")
        return torch.cat([views, self.read(os.fspath(source))])


class WithGenerated(ImageItems):
    """Items whose images are views (V, 3, H, W), each with its generated views behind them."""

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
        return {**sample, "image": self.generated.behind(sample["image"], self.items[index].path)}
