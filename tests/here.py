"""Commands of Python done in this process by the very module that they name, which spares them its imports."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any
from unittest.mock import patch

elsewhere = subprocess.run


def python_here(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Stand in for ``subprocess.run``: what ``python -m module …`` is asked for is done here, and all else as usual."""
    if command[0] != sys.executable or "-m" not in command:
        return elsewhere(command, **options)
    module, *arguments = command[command.index("-m") + 1 :]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        patch.object(sys, "argv", [module, *arguments]),
        patch.dict(os.environ, options.get("env") or {}),
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the module is here already, too, under its own name
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(list(command), status, out.getvalue(), err.getvalue())
