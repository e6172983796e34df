"""CLIP's image transforms (torchvision v2): from an RGB ``PIL.Image`` to a normalised float32 ``(3, H, W)`` tensor."""

from __future__ import annotations

import hashlib
import threading
from typing import Any, Protocol

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from vlprompt.clip.openclip import CenterCropOrPad, ResizeKeepRatio
from vlprompt.data.augmix import AugMix
from vlprompt.data.modes import orientation, to_rgb
from vlprompt.errors import VlpromptError, nearest

CROP_SCALE = (0.08, 1.0)  # the published recipes' INPUT.RRCROP_SCALE
HALF_SCALE = (0.5, 1.0)  # of GDA and Tip-Adapter
CROP_SCALES = {"rrc": CROP_SCALE, "rrc_half": HALF_SCALE}
TRAIN_KINDS = ("rrc", "rrc_half", "center", "randaugment", "augmix")
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the crop is then still this many times larger than the result.
REDUCE_FROM = 1.5
LONGEST = 32  # largest ratio of an image's sides that is resized; of longer images, the ends are cut off first


class Preprocessing(Protocol):
    """What transforms need of a frozen model: the size and normalisation of its images."""

    @property
    def image_size(self) -> int: ...  # noqa: D102

    @property
    def image_mean(self) -> tuple[float, ...]: ...  # noqa: D102

    @property
    def image_std(self) -> tuple[float, ...]: ...  # noqa: D102

    @property
    def interpolation(self) -> str: ...  # noqa: D102

    @property
    def resize_mode(self) -> str: ...  # noqa: D102


class DecodedCrop(v2.RandomResizedCrop):  # type: ignore[misc]  # torchvision brings no types
    """The published random crop, faster: on bytes, and from a JPEG that is decoded no larger than the crop needs.

    It draws the crops of ``v2.RandomResizedCrop``, and resizes them with torch's antialiased kernel on bytes, which
    equals Pillow's to about one level of 255 and takes a fifth of the time. A large JPEG that is not decoded yet, as in
    ``vlprompt.data.loading``, is decoded at a reduced size; its crop may be shifted by a third of a pixel of the
    result.

    Args:
        size: the size of the result in pixels.
        scale: smallest and largest share of the area.
        interpolation: bilinear or bicubic.
        reduce_from: least size of the reduced crop, relative to the result; infinity never reduces.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = CROP_SCALE,
        interpolation: InterpolationMode = InterpolationMode.BICUBIC,
        reduce_from: float = REDUCE_FROM,
    ):
        super().__init__(size, scale=scale, interpolation=interpolation)
        self.reduce_from = reduce_from

    def forward(self, image: Image.Image) -> torch.Tensor:
        """Return the crop as (3, size, size) bytes."""
        if not _is_reducible(image):
            image = to_rgb(image)
        crop = self.get_params(image, self.scale, self.ratio)  # top, left, height, width
        width = image.width
        if _is_reducible(image):
            shorter = min(crop[2:])
            factor = next((f for f in (8, 4, 2) if shorter >= f * self.reduce_from * self.size[0]), 1)
            if factor > 1:
                image.draft("RGB", (image.width // factor, image.height // factor))
            image = to_rgb(image)
        shrink = width / image.width
        top, left, height, width = (round(side / shrink) for side in crop)
        right, bottom = min(left + width, image.width), min(top + height, image.height)
        pixels = F.pil_to_tensor(image.crop((left, top, right, bottom)))
        resized: torch.Tensor = F.resize(pixels, self.size, self.interpolation, antialias=True)
        return resized

    def extra_repr(self) -> str:
        """What the result depends on, for ``transform_fingerprint``."""
        return f"{super().extra_repr()}, reduce_from={self.reduce_from}"


class Middle(torch.nn.Module):
    """Cuts off the ends of very long or tall images: resizing a line of pixels whole would take gigabytes."""

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the middle of an image whose sides have a ratio above ``LONGEST``; others unchanged."""
        width, height = (min(side, LONGEST * min(image.size)) for side in image.size)
        if (width, height) == image.size:
            return image
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


def _is_reducible(image: Image.Image) -> bool:
    """Whether an image is an upright JPEG that is not decoded yet."""
    return (
        getattr(image, "format", None) == "JPEG"
        and bool(getattr(image, "tile", None))
        and image.mode in ("RGB", "L")
        and orientation(image) == 1
    )


def train_transform(clip: Preprocessing, kind: str = "rrc", mirror: bool = True) -> v2.Compose:
    """Return the augmentation of training images.

    Args:
        clip: the frozen model, for its image size, interpolation, mean and standard deviation.
        kind: ``rrc``, a random crop of 8% to 100% of the area resized to the model's size, as published
            (see ``DecodedCrop``); ``rrc_half``, one of 50% to 100%; ``center``, the evaluation crop;
            ``randaugment``, two random operations on the whole image squashed to the model's size, never mirrored
            (CoPrompt); or ``augmix``, the crop of ``rrc`` mixed with chains of weak operations on it (see
            ``vlprompt.data.augmix``).
        mirror: mirror half of the images; ``DatasetSplits.mirror`` says whether that keeps their class.

    Raises:
        VlpromptError: the kind is unknown.
    """
    if kind not in TRAIN_KINDS:
        raise VlpromptError(f"unknown train transform '{kind}': {nearest(kind, TRAIN_KINDS)}")
    if kind == "randaugment":
        size = (clip.image_size, clip.image_size)
        squash = v2.Resize(size, interpolation=interpolation_of(clip), antialias=True)
        return v2.Compose([squash, v2.RandAugment(num_ops=2, magnitude=10), *_to_tensor(clip)])
    scale = CROP_SCALES.get("rrc" if kind == "augmix" else kind)
    crop = [DecodedCrop(clip.image_size, scale, interpolation_of(clip))] if scale else eval_crop(clip)
    flip = [v2.RandomHorizontalFlip()] if mirror else []
    mixed = [AugMix()] if kind == "augmix" else []
    return v2.Compose([*crop, *flip, *mixed, *_to_tensor(clip)])


class Views(torch.nn.Module):
    """Applies a random transform to an image several times, and stacks the results: (V, 3, H, W)."""

    def __init__(self, transform: v2.Compose, count: int):
        super().__init__()
        self.transform, self.count = transform, count

    def forward(self, image: Image.Image) -> torch.Tensor:
        """Return the views."""
        return torch.stack([self.transform(image) for _ in range(self.count)])


ONE_AT_A_TIME = threading.Lock()  # threads that decode images share the generator that transforms draw from


class TestViews(torch.nn.Module):
    """Views of a test image: the evaluation crop and random crops, half of them mirrored: (V, 3, H, W).

    The random crops are seeded by the image's pixels, so they do not depend on its position in a dataset.

    Args:
        clip: the frozen model.
        count: V.
        augmix: mix each random crop with chains of weak operations on it, as TPT does on fine-grained datasets and TDA
            on ImageNet's shifted versions.
    """

    __test__ = False  # it is not a test, as pytest would infer from the name

    def __init__(self, clip: Preprocessing, count: int, augmix: bool = False):
        super().__init__()
        self.plain, self.draw = eval_transform(clip), train_transform(clip, "augmix" if augmix else "rrc")
        self.count = count

    def forward(self, image: Image.Image) -> torch.Tensor:
        """Return the views, the evaluation crop first."""
        image = to_rgb(image)
        digest = hashlib.blake2b(image.tobytes(), digest_size=7).digest()
        with ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int.from_bytes(digest, "big"))
            return torch.stack([self.plain(image), *(self.draw(image) for _ in range(self.count - 1))])


def split_transform(transform: Any) -> tuple[Any, Any, Any]:
    """Split a composed transform into steps for opened files, for single images, and for whole batches.

    The first is a leading ``DecodedCrop``, the last a trailing ``ToDtype`` and ``Normalize``, and the second what is
    between. A part without steps is None.
    """
    if not isinstance(transform, v2.Compose):
        return None, transform, None
    steps = list(transform.transforms)
    decode = steps.pop(0) if isinstance(steps[0], DecodedCrop) else None
    after = None
    if [type(step) for step in steps[-2:]] == [v2.ToDtype, v2.Normalize]:
        after = v2.Compose([steps[-2], v2.Normalize(steps[-1].mean, steps[-1].std, inplace=True)])
        steps = steps[:-2]
    return decode, v2.Compose(steps) if steps else None, after


def eval_transform(clip: Preprocessing) -> v2.Compose:
    """Return the transform of evaluation, equivalent to OpenCLIP's, for every ``resize_mode``.

    It resizes with torch's antialiased kernel on bytes, which equals Pillow's to about one level of 255 and takes a
    fifth of the time. It resizes rows and then columns, as Pillow did before version 13, which reverses the order if a
    tall image is squashed; that changes edges of drawings by up to four levels.
    """
    return v2.Compose([*eval_crop(clip), *_to_tensor(clip)])


def transform_fingerprint(transform: Any) -> str:
    """Return a hash of a transform's ``repr``, to tell cached features apart."""
    return hashlib.sha256(repr(transform).encode()).hexdigest()[:16]


def interpolation_of(clip: Preprocessing) -> InterpolationMode:
    """The interpolation with which a model's images are resized."""
    return InterpolationMode.BILINEAR if clip.interpolation == "bilinear" else InterpolationMode.BICUBIC


def eval_crop(clip: Preprocessing, interpolation: InterpolationMode | None = None) -> list[Any]:
    """The steps of evaluation up to bytes of the model's size; ``interpolation`` replaces the model's."""
    size, interpolation = clip.image_size, interpolation or interpolation_of(clip)
    if clip.resize_mode == "longest":
        return [ResizeKeepRatio(size, interpolation=interpolation, longest=1), CenterCropOrPad(size)]
    if clip.resize_mode == "squash":
        return [v2.PILToTensor(), v2.Resize((size, size), interpolation)]
    return [Middle(), v2.PILToTensor(), v2.Resize(size, interpolation), v2.CenterCrop(size)]


def _to_tensor(clip: Preprocessing) -> list[v2.Transform]:
    """From a PIL image, or a tensor of bytes, to normalised floats."""
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(clip.image_mean, clip.image_std)]
