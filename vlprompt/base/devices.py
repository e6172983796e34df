"""Device and precision of a frozen model."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch

from vlprompt.errors import VlpromptError, warn

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EXACT = ("cpu", "cuda", "xpu")  # devices with float64 and sparse matrices; Apple's (mps) have neither
SLOW_BF16 = 0.8  # speed relative to fp32 below which a warning is given


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn a device setting into a torch device; ``auto`` is CUDA, then MPS, then the CPU.

    Raises:
        VlpromptError: the device is not available.
    """
    if str(device) == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise VlpromptError(f"device '{device}' is not available here; use auto, cpu, cuda or mps") from error
    return resolved


def exact_device(device: torch.device) -> torch.device:
    """Where to compute in float64 or with sparse matrices what lies on a device: the CPU, if it has not both."""
    return device if device.type in EXACT else torch.device("cpu")


def check_precision(precision: str, device: torch.device) -> None:
    """Raise a ``VlpromptError`` for a precision that is unknown or that the device cannot run."""
    if not isinstance(precision, str) or precision not in DTYPES:
        raise VlpromptError(f"unknown precision '{precision}': use {', '.join(DTYPES)}")
    if precision == "fp16" and device.type != "cuda":
        raise VlpromptError(f"precision=fp16 needs a CUDA device, and this is {device.type}; use bf16 or fp32")


def tell_slow_bf16(device: torch.device) -> None:
    """Warn if the processor multiplies in bf16 more slowly than in fp32, for lack of instructions for it."""
    ratio = bf16_rate() if device.type == "cpu" else 1.0
    if ratio < SLOW_BF16:
        warn(
            f"precision=bf16 saves memory but no time here: this processor multiplies matrices in bf16 at {ratio:.1f} "
            "times its speed in fp32"
        )


@cache
def bf16_rate() -> float:
    """Speed of this machine's matrix products in bf16 relative to fp32, from the best of a few measurements."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(2, 768, 768).to(dtype).unbind()
        times = []
        for _ in range(4):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]
