"""Measures and describes the environment of a run: time, memory, versions, commit."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlprompt.errors import VlpromptError
from vlprompt.version import __version__

if TYPE_CHECKING:
    import torch

MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container
UNKNOWN_MEMORY = 8 << 30  # bytes, assumed if the system does not say
NO_MEMORY = re.compile(r"can't allocate memory|out of memory|not enough memory|Storage size calculation overflowed")


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Turn out-of-memory errors of Python and torch into one sentence that names what was too large."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        raise VlpromptError(
            f"there is not enough memory for {what}: make it smaller (text_chunk, batch_size), or use another device"
        ) from error


class Clock:
    """Adds up the seconds spent in named blocks.

    Args:
        timer: returns seconds; ``time.process_time`` measures processor time.

    >>> clock = Clock()
    >>> with clock("load"): pass
    >>> list(clock.seconds)
    ['load']
    """

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        self.timer = timer
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = self.timer()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + self.timer() - start, 3)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory so far in MB: of the ``process``, and of the GPU as ``cuda``."""
    process = process_peak()
    peak = {} if process is None else {"process": round(process, 1)}
    if device.type == "cuda":
        import torch  # here, since other users of this module should not wait for it

        peak["cuda"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return peak


def process_peak() -> float | None:
    """Peak memory of this process in MB, on Linux since ``/proc/self/clear_refs`` was written; None on Windows."""
    with contextlib.suppress(OSError, StopIteration):
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def total_memory(device: torch.device) -> int:
    """Total memory of a device in bytes: the GPU's, or otherwise ``host_memory``."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    return host_memory()


@functools.cache
def host_memory() -> int:
    """This machine's memory in bytes, or the limit of this process's container."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        found = UNKNOWN_MEMORY
    for limit in MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" if there is no limit
            found = min(found, int(Path(limit).read_text()))
    return found


def versions() -> dict[str, str]:
    """Return the versions of packages that can affect results, by name."""
    import importlib.metadata
    import platform

    packages = {"torch": "torch", "torchvision": "torchvision", "open_clip": "open_clip_torch", "pillow": "pillow"}
    found = {name: importlib.metadata.version(package) for name, package in packages.items()}
    return {"python": platform.python_version(), "vlprompt": __version__, **found}


def git_commit() -> str | None:
    """Return the commit of vlprompt's own checkout, or None if it is installed otherwise."""
    import subprocess

    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
