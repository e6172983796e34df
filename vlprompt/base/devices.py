"""Where a frozen model is, and in which precision."""

from __future__ import annotations

from typing import Literal

import torch

from vlprompt.errors import VlpromptError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn a device setting into a torch device; ``auto`` takes CUDA, then MPS, then the CPU."""
    if str(device) == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise VlpromptError(f"device '{device}' is not available here; use auto, cpu, cuda or mps") from error
    return resolved


def check_precision(precision: str, device: torch.device) -> None:
    """Raise one clear sentence for a precision that is unknown or that the device cannot run."""
    if not isinstance(precision, str) or precision not in DTYPES:
        raise VlpromptError(f"unknown precision '{precision}': use {', '.join(DTYPES)}")
    if precision == "fp16" and device.type != "cuda":
        raise VlpromptError(f"precision=fp16 needs a CUDA device, and this is {device.type}; use bf16 or fp32")
