"""What a result records of where it came from: seconds, memory, versions, commit."""

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
UNKNOWN_MEMORY = 8 << 30  # where the system does not say
NO_MEMORY = re.compile(r"can't allocate memory|out of memory|not enough memory|Storage size calculation overflowed")


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Turn what Python and torch raise where memory ends into one sentence that says what was too large."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        raise VlpromptError(
            f"there is not enough memory for {what}: make it smaller (text_chunk, batch_size), or use another device"
        ) from error


class Clock:
    """Adds up seconds by name.

    Args:
        timer: tells the time; that of the processor is ``time.process_time``.

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
    """Return the most memory held so far in MB: of the ``process``, and of the GPU as ``cuda``."""
    process = process_peak()
    peak = {} if process is None else {"process": round(process, 1)}
    if device.type == "cuda":
        import torch  # which is there where a device is, and takes seconds for who asks for something else

        peak["cuda"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return peak


def process_peak() -> float | None:
    """Most memory that this process has held in MB, since ``/proc/self/clear_refs`` on Linux; None on Windows."""
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
    """Bytes of memory that a device has: a GPU's own, else this machine's, or what this process's group may take."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    return host_memory()


@functools.cache
def host_memory() -> int:
    """Bytes of this machine's memory, or what this process's group may take of it."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        found = UNKNOWN_MEMORY
    for limit in MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max", where there is none
            found = min(found, int(Path(limit).read_text()))
    return found


def versions() -> dict[str, str]:
    """Return the versions that bear on numbers."""
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
