"""Number of CPU threads: as set by the user, or a single one for models too small to benefit from more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# number of parameters below which threads spend more time waiting for each other than computing, especially on busy
# machines: vlprompt-tiny has 14 million, ViT-B/16 150 million; `vlprompt bench threads` measures it
SMALL = 20_000_000
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # what GNU's OpenMP, which torch computes with, reads as it is loaded
TURNS = "20000"  # of a waiting loop, a fraction of a millisecond; without busy processes as fast as endless ones


def wait_briefly() -> None:
    """Let waiting threads give up their core soon, unless the user has set how they wait.

    This has an effect only before torch is imported.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = TURNS


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(model: nn.Module, asked: int | None = None) -> int:
    """Return how many threads a model is to be run by.

    Args:
        model: on any device; one that is not on the CPU leaves the number as it is.
        asked: by the user; None leaves it to what is set in the environment, and then to the model's size.
    """
    import torch

    here = torch.get_num_threads()
    if asked is not None:
        return asked
    if any(os.environ.get(name) for name in VARIABLES):
        return here
    parameters = list(model.parameters())
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    return 1 if on_cpu and sum(map(torch.numel, parameters)) < SMALL else here


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Compute with this number of threads within a ``with`` block."""
    import torch

    before = torch.get_num_threads()
    if threads != before:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads != before:
            torch.set_num_threads(before)
