"""PyTorch's global modes, which a notebook may have changed for all of its cells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def default_modes() -> Iterator[None]:
    """Record gradients, and create fp32 tensors, whatever modes the caller has set; also a decorator.

    Tensors that are created in inference mode can never take part in training, so nothing that is kept may be.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False):  # which ends no_grad as well
            yield
    finally:
        torch.set_default_dtype(before)
