"""A stand-in for FrozenCLIP and small image folders, for all tests of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_clip import TinyCLIP


@pytest.fixture
def tiny_clip() -> TinyCLIP:
    return TinyCLIP()


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a folder of class folders of random JPEGs."""

    def make(sizes: dict[str, int], root: str = "images") -> Path:
        generator = np.random.default_rng(0)
        for name, size in sizes.items():
            folder = tmp_path / root / name
            folder.mkdir(parents=True)
            for i in range(size):
                pixels = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:03d}.jpg")
        return tmp_path / root

    return make
