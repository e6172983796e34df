"""Versions and devices, for bug reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator

from vlprompt.base.environment import git_commit, host_memory
from vlprompt.base.threads import usable_cores
from vlprompt.version import __version__

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
TOOLS = re.compile(r"extra == .(dev|docs|notebooks)")  # extras that do not affect runs


def show_versions() -> None:
    """Print versions, threads and devices, for bug reports; ``vlprompt versions`` does so from a shell.

    It prints no paths, and works without a network and even if torch cannot be imported.

    >>> show_versions()  # doctest: +SKIP
    vlprompt        0.2.0
    commit          -
    ...
    """
    for name, value in _found():
        print(f"{name:<18} {value}")


def _found() -> Iterator[tuple[str, str]]:
    yield "vlprompt", __version__
    yield "commit", git_commit() or "-"
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", platform.platform()
    yield "processor", f"{platform.machine()}, {_cores()} cores, {host_memory() / 2**30:.1f} GiB of memory"
    for package in _packages():
        version = _version(package)
        if version:
            yield package, version
    yield from _computing()


def _cores() -> str:
    """The number of cores, and how many of them this process may use."""
    every = os.cpu_count() or 1
    mine = usable_cores()
    return str(every) if mine == every else f"{mine} of {every}"


def _packages() -> list[str]:
    """Packages that vlprompt depends on, including extras, from its metadata."""
    try:
        needed = importlib.metadata.requires("vlprompt") or []
    except importlib.metadata.PackageNotFoundError:  # not installed, but on the path
        needed = ["torch", "torchvision", "open_clip_torch", "numpy"]
    names = [re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in needed if not TOOLS.search(each)]
    return [name for name in dict.fromkeys(names) if name != "vlprompt"]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _computing() -> Iterator[tuple[str, str]]:
    """Threads and devices as reported by torch."""
    set_here = [f"{name}={os.environ[name]}" for name in THREADS if name in os.environ]
    try:
        import torch  # here: its installation may be broken, which is what the report is about
    except (ImportError, OSError) as error:
        yield "torch", f"cannot be imported: {error}"
        return
    yield "threads", ", ".join([str(torch.get_num_threads()), *set_here])
    yield "instructions", torch.backends.cpu.get_cpu_capability()
    yield "cuda", str(torch.version.cuda or "-")
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}", f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB"
    if torch.backends.mps.is_available():
        yield "mps", "available"
