"""How many threads should compute: a training step by one, by all, and by all that wait passively, idle and under load.

Every measurement is a process of its own, since threads read how to wait from the environment when they are made.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from vlprompt.base.threads import TURNS, WAITING, usable_cores
from vlprompt.bench.cases import Case
from vlprompt.bench.fresh_process import ProcessFailed, run_module
from vlprompt.bench.measuring import own_weights, work
from vlprompt.clip.catalog import TINY
from vlprompt.clip.loading import load_clip
from vlprompt.errors import VlpromptError

BUSY = "while True: pass"


def ways(threads: int) -> dict[str, dict[str, str]]:
    """The settings that are compared, as environment variables of a process."""
    every = {"OMP_NUM_THREADS": str(threads)}
    return {
        "one thread": {"OMP_NUM_THREADS": "1"},
        f"{threads} threads": every,
        f"{threads} threads, passive": every | {"OMP_WAIT_POLICY": "passive"},
        f"{threads} threads, short waits": every | {"GOMP_SPINCOUNT": TURNS},  # as the commands have it
    }


def bench_threads(
    backbone: str = TINY,
    method: str = "coop",
    *,
    classes: int = 20,
    batch: int = 32,
    steps: int = 200,
    load: int | None = None,
    threads: int | None = None,
    repeats: int = 3,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure training steps by the number of threads, on an otherwise idle machine and beside busy processes.

    Args:
        backbone, method, classes, batch: settings of the step; image features are cached if the method allows it.
        steps: the number of steps per measurement.
        load: the number of processes kept busy meanwhile; None for one per core.
        threads: the number that "all" stands for; None for one per core.
        repeats: alternating measurements of each setting, of which medians are reported.
        say: called with each result as a line.

    Returns:
        ``rows``: for each setting ``idle`` and ``busy``, each with ``seconds`` and ``cpu_s`` of all steps.

    Raises:
        VlpromptError: a number is too small, or a measurement failed.
    """
    cores = usable_cores()
    load, threads = cores if load is None else load, threads or max(cores, 2)
    if min(classes, batch, steps, repeats, threads) < 1 or load < 0:
        raise VlpromptError("classes, batch, steps, repeats and threads must be at least 1, and load at least 0")
    case = Case(method, classes=classes, batch=batch, images="cached")
    arguments = {"case": asdict(case), "backbone": backbone, "steps": steps}
    rows: dict[str, dict[str, Any]] = {name: {} for name in ways(threads)}
    for state, busy in (("idle", 0), ("busy", load)):
        with kept_busy(busy):
            turns = [{name: _measured(arguments, way) for name, way in ways(threads).items()} for _ in range(repeats)]
        for name in rows:
            taken = {key: statistics.median(turn[name][key] for turn in turns) for key in ("seconds", "cpu_s")}
            rows[name][state] = taken
            beside = f", beside {busy} busy processes" if busy else ""
            say(f"{name}{beside}: {steps} steps in {taken['seconds']:.2f} s, {taken['cpu_s']:.2f} s of CPU")
    return {"backbone": backbone, "method": method, "cores": cores, "load": load, "steps": steps, "rows": rows}


@contextmanager
def kept_busy(processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep other processes busy meanwhile, each with one thread."""
    beside = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield beside
    finally:
        for process in beside:
            process.kill()
            process.wait()


def measure(case: Case, backbone: str, steps: int) -> dict[str, float]:
    """Seconds and CPU seconds of ``steps`` training steps in this process."""
    torch.manual_seed(0)
    clip = load_clip(backbone, own_weights(backbone), precision=case.precision, device="cpu")
    measured = work(case, clip)
    measured.run(measured.fresh())
    inputs = [measured.fresh() for _ in range(steps)]
    start, busy = time.perf_counter(), time.process_time()
    for each in inputs:
        measured.run(each)
    return {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - busy}


def _measured(arguments: dict[str, Any], way: dict[str, str]) -> dict[str, float]:
    """``measure`` in a new process with the environment variables of a way."""
    inherited = {name: value for name, value in os.environ.items() if name not in WAITING}
    try:
        return run_module("vlprompt.bench.threads", arguments, inherited | way)
    except ProcessFailed as error:
        raise VlpromptError(f"the measurement failed: {error}") from error


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    print(json.dumps(measure(Case(**arguments["case"]), arguments["backbone"], arguments["steps"])))
