"""AugMix: an image mixed with chains of simple operations on it (Hendrycks et al., ICLR 2020, arXiv:1912.02781).

The operations are the paper's nine, none of which is a corruption of ImageNet-C. All random numbers are torch's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vlprompt.errors import VlpromptError

CHAINS, LONGEST_CHAIN = 3, 3
WEAKEST = 0.1  # the smallest level of an operation; the largest is the severity, and 10 is full strength

Operation = Callable[[Image.Image, float], Image.Image]  # from an image and a strength in [0, 1]


def _random_sign(amount: float) -> float:
    return amount if torch.rand(()) < 0.5 else -amount


def _affine(image: Image.Image, matrix: tuple[float, float, float, float, float, float]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


OPERATIONS: dict[str, Operation] = {
    "autocontrast": lambda image, share: ImageOps.autocontrast(image),
    "equalize": lambda image, share: ImageOps.equalize(image),
    "posterize": lambda image, share: ImageOps.posterize(image, max(1, 4 - int(share * 4))),
    "rotate": lambda image, share: image.rotate(_random_sign(int(share * 30)), resample=Image.Resampling.BILINEAR),
    "solarize": lambda image, share: ImageOps.solarize(image, 256 - int(share * 256)),
    "shear_x": lambda image, share: _affine(image, (1, _random_sign(share * 0.3), 0, 0, 1, 0)),
    "shear_y": lambda image, share: _affine(image, (1, 0, 0, _random_sign(share * 0.3), 1, 0)),
    "translate_x": lambda image, share: _affine(image, (1, 0, _random_sign(int(share * image.width / 3)), 0, 1, 0)),
    "translate_y": lambda image, share: _affine(image, (1, 0, 0, 0, 1, _random_sign(int(share * image.height / 3)))),
}


class AugMix(torch.nn.Module):
    """Mixes an image x with three chains of operations on it, of one to three each: m·x + (1 - m)·Σ w_i·chain_i(x).

    w is drawn from Dirichlet(1, 1, 1) and m from Beta(1, 1), as in Algorithm 1.

    Args:
        severity: largest level of an operation, in [0.1, 10]; each operation's level is drawn from [0.1, severity].
    """

    def __init__(self, severity: float = 1.0):
        super().__init__()
        if not WEAKEST <= severity <= 10:
            raise VlpromptError(f"severity must be from {WEAKEST} to 10, not {severity}")
        self.severity = severity

    def forward(self, image: Tensor) -> Tensor:
        """Mix an image of bytes (3, H, W), and return it as floats in [0, 1]."""
        exponential = -torch.rand(CHAINS).log()
        weights, m = exponential / exponential.sum(), torch.rand(())  # from Dirichlet(1, 1, 1) and Beta(1, 1)
        chains = sum(weight * self._chain(image) for weight in weights)
        mixed: Tensor = (m * image + (1 - m) * chains) / 255
        return mixed

    def _chain(self, image: Tensor) -> Tensor:
        """Apply one to three operations, drawn independently."""
        picture = F.to_pil_image(image)
        for _ in range(int(torch.randint(1, LONGEST_CHAIN + 1, ()))):
            operation = list(OPERATIONS.values())[int(torch.randint(len(OPERATIONS), ()))]
            level = WEAKEST + (self.severity - WEAKEST) * float(torch.rand(()))
            picture = operation(picture, level / 10)
        chained: Tensor = F.pil_to_tensor(picture)
        return chained

    def extra_repr(self) -> str:
        """What the result depends on, for ``transform_fingerprint``."""
        return f"severity={self.severity}"
