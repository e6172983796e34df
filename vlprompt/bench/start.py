"""How long commands take that compute nothing, such as ``--help``."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from vlprompt.errors import VlpromptError

PYTHON, TORCH = "python -c pass", "import torch"
COMMANDS: dict[str, tuple[str, ...]] = {
    PYTHON: ("-c", "pass"),
    TORCH: ("-c", "import torch"),
    "import vlprompt": ("-c", "import vlprompt"),
    "vlprompt --help": ("-m", "vlprompt", "--help"),
    "vlprompt --version": ("-m", "vlprompt", "--version"),
    **{
        f"vlprompt list {kind}": ("-m", "vlprompt", "list", kind)
        for kind in ("methods", "datasets", "protocols", "backbones", "recipes")
    },
    "vlprompt completion, a method": ("-m", "vlprompt", "completion", "words", "train", "method="),
    "vlprompt completion, a key": ("-m", "vlprompt", "completion", "words", "train", "method=maple", ""),
    "vlprompt evaluate --help": ("-m", "vlprompt", "evaluate", "--help"),
    "vlprompt evaluate, an unknown key": ("-m", "vlprompt", "evaluate", "lerner=here"),
    "vlprompt.train, an unknown key": ("-m", "vlprompt.train", "method=coop", "n_cxt=4"),
    "vlprompt.train, a refused value": ("-m", "vlprompt.train", "method=coop", "epochs=0"),
}


def bench_start(repeats: int = 5, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Time commands that compute nothing, alternating with Python itself and ``import torch``.

    Args:
        repeats: measurements of each command, of which medians are reported.
        say: called with each result as a line.

    Returns:
        ``rows``: for each command ``seconds``, the processor time ``cpu_s``, and the latter as a ratio to Python's own
        and to that of ``import torch``: ``of_python`` and ``of_torch``.

    Raises:
        VlpromptError: ``repeats`` is less than 1.
    """
    if repeats < 1:
        raise VlpromptError(f"repeats must be at least 1, not {repeats}")
    turns = [{name: timed(arguments) for name, arguments in COMMANDS.items()} for _ in range(repeats)]
    taken = {name: [statistics.median(turn[name][i] for turn in turns) for i in range(2)] for name in COMMANDS}
    rows = []
    for name, (seconds, cpu) in taken.items():
        ratios = {"of_python": cpu / taken[PYTHON][1], "of_torch": cpu / taken[TORCH][1]}
        rows.append({"command": name, "seconds": seconds, "cpu_s": cpu, **ratios})
        say(
            f"{name}: {cpu:.2f} s of CPU in {seconds:.2f} s, {ratios['of_python']:.1f} times Python's own and "
            f"{ratios['of_torch']:.2f} of import torch"
        )
    return {"rows": rows, "repeats": repeats}


def timed(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds that a Python process takes, and its processor time, which is unknown on Windows."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    after = os.times()
    seconds = time.perf_counter() - start
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu or seconds
