"""How many threads compute: as many as one says, or a single one where a model is too small to be shared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Numbers of a model below which threads wait for one another longer than they compute, the more so on a busy machine:
# vlprompt-tiny has 5.5 million, ViT-B/16 150 million. `vlprompt bench threads` measures it.
SMALL = 20_000_000
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def threads_for(model: nn.Module, asked: int | None = None) -> int:
    """Return how many threads a model is to be run by.

    Args:
        model: on any device; one that is not on the CPU leaves the number as it is.
        asked: by the user; None leaves it to what is set in the environment, and then to the model's size.
    """
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
    """Compute with so many threads, and then with as many as before."""
    before = torch.get_num_threads()
    if threads != before:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads != before:
            torch.set_num_threads(before)
