"""Processes of their own that spare the imports of one: forks of a server that has imported what a run needs.

They start as a new Python would but for its modules; nothing of the tests' own process is in them, nor of each other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

IMPORTED = ["vlprompt.cli.train", "vlprompt.runs.one", "sklearn.datasets"]


def start(act: Callable[..., int | None], arguments: Sequence[object], out: Path, err: Path) -> BaseProcess:
    """Start a function in a process of its own, which ends with what it returns as its status.

    Args:
        act: a function of a module.
        arguments: of it.
        out, err: files for what it prints.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(IMPORTED)  # heard by the first process alone, which starts the server
    process = server.Process(target=_go, args=(act, arguments, out, err, dict(os.environ)))
    process.start()
    return process


def _go(act: Callable[..., int | None], arguments: Sequence[object], out: Path, err: Path, environment: dict) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)  # the server's is of when it was started
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background has ignored
    with (
        open(out, "a", encoding="utf-8") as printed,
        open(err, "a", encoding="utf-8") as told,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(told),
    ):
        try:
            status = act(*arguments)
        except Exception:
            traceback.print_exc()
            status = 1
    sys.exit(status)


def finish(act: Callable[..., int | None], arguments: Sequence[object], said: Path) -> str:
    """Do a function in a process of its own, and return what it printed into a file."""
    process = start(act, arguments, said, errors := said.with_suffix(".errors"))
    process.join()
    assert process.exitcode == 0, errors.read_text(encoding="utf-8")
    return said.read_text(encoding="utf-8")
