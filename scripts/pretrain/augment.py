"""How pretraining's images are moved and coloured at random, each time that they are drawn."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

PHOTOS = ("cifar", "natural", "each")


class Move(NamedTuple):
    """How far a source's images are moved: rotation in degrees, shear, smallest and largest area, and mirroring."""

    degrees: float
    shear: float
    smallest: float
    largest: float
    mirror: bool


MOVES = {
    "emoji": Move(20.0, 0.1, 0.65, 1.25, True),
    "clipart": Move(12.0, 0.1, 0.65, 1.2, True),
    "cifar": Move(8.0, 0.0, 0.65, 1.1, True),
    "natural": Move(8.0, 0.0, 0.5, 1.1, True),
    "each": Move(8.0, 0.0, 0.4, 1.1, True),
    "glyphs": Move(12.0, 0.15, 0.8, 2.0, False),
}


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Return uniform draws of `shape` in [low, high)."""
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def move(images: torch.Tensor, source: str, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return images (B, c, s, s) rotated, cropped, shifted and mirrored at random, as (B, c, size, size)."""
    by = MOVES[source]
    b = len(images)
    angle = uniform((b,), -by.degrees, by.degrees, generator) * (math.pi / 180)
    shear = uniform((b,), -by.shear, by.shear, generator)
    crop = uniform((b, 2), by.smallest, by.largest, generator).sqrt()  # side lengths: the range above is one of areas
    if by.mirror:
        crop[:, 0] *= torch.where(uniform((b,), 0, 1, generator) < 0.5, -1.0, 1.0)
    room = (1 - crop.abs()).abs() * 0.8 + 0.02
    shift = (uniform((b, 2), 0, 1, generator) * 2 - 1) * room
    cos, sin = angle.cos(), angle.sin()
    slanted = shear * crop[:, 1]
    rows = [cos * crop[:, 0], slanted - sin * crop[:, 1], shift[:, 0], sin * crop[:, 0], cos * crop[:, 1], shift[:, 1]]
    theta = torch.stack(rows, 1).view(b, 2, 3)
    grid = F.affine_grid(theta, [b, images.shape[1], size, size], align_corners=False)
    padding = "reflection" if source in PHOTOS else "zeros"
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def paper(b: int, generator: torch.Generator) -> torch.Tensor:
    """Return background colours (b, 3, 1, 1): half white, the others light, dark or anything."""
    colour = uniform((b, 3), 0, 1, generator)
    kind = uniform((b, 1), 0, 1, generator)
    colour = torch.where(kind < 0.75, 0.75 + 0.25 * colour, colour)
    return torch.where(kind < 0.5, torch.ones_like(colour), colour)[:, :, None, None]


def recolour(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Return images (B, 3, H, W) with random brightness, contrast, saturation and a little noise."""
    b = len(images)
    brightness, contrast, saturation = uniform((3, b, 1, 1, 1), 1 - strength, 1 + strength, generator)
    saturation = torch.where(uniform((b, 1, 1, 1), 0, 1, generator) < 0.1, 0.0, saturation)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    middle = images.mean((1, 2, 3), keepdim=True)
    images = (middle + (images - middle) * contrast) * brightness
    noise = uniform((b, 1, 1, 1), 0.0, 0.04, generator)
    return (images + noise * torch.randn(images.shape, generator=generator, device=images.device)).clamp(0, 1)


def blur(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return images (B, 3, H, W), three in ten of them blurred by a three-pixel mean of random weight."""
    b = len(images)
    weight = uniform((b, 1, 1, 1), 0, 1, generator)
    weight = torch.where(uniform((b, 1, 1, 1), 0, 1, generator) < 0.3, weight, 0.0)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return images + weight * (soft - images)


def draw_images(source: str, pixels: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return augmented RGB images (B, 3, size, size) in [0, 1] from uint8 pixels (B, 1 | 3 | 4, s, s)."""
    images = pixels.float() / 255
    b, channels = images.shape[:2]
    if channels == 4:
        rgb, alpha = images[:, :3], images[:, 3:]
        moved = move(torch.cat([rgb * alpha, alpha], 1), source, size, generator)
        images = moved[:, :3] + (1 - moved[:, 3:]) * paper(b, generator)
    elif channels == 1:
        mask = move(images, source, size, generator)
        light, dark = 0.7 + 0.3 * uniform((2, b, 3, 1, 1), 0, 1, generator)
        images = light * (1 - mask) + (1 - dark) * mask
    else:
        images = move(images, source, size, generator)
    return recolour(blur(images, generator), 0.1 if channels == 1 else 0.3, generator)
