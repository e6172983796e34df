"""Executors of a sweep: several processes of this machine, or a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from vlprompt.errors import VlpromptError
from vlprompt.runs.parts import Shared
from vlprompt.runs.settings import resolve
from vlprompt.runs.sweep import Executor, Outcome, Task, perform
from vlprompt.runs.workers import connect, environment, import_ray

RETRIES = 3  # of runs whose worker died
_shared: Shared | None = None  # in a worker process
_device: str | None = None


def in_processes(processes: int, devices: Sequence[str] = ()) -> Executor:
    """Return an executor that runs in ``processes`` processes of this machine, which divide the CPU's threads.

    Args:
        processes: number of worker processes, at least 1.
        devices: assigned to the workers in turn, such as ``["cuda:0", "cuda:1"]``; empty keeps each run's ``device``.

    Raises:
        VlpromptError: ``processes`` is less than 1.
    """
    if processes < 1:
        raise VlpromptError(f"processes must be at least 1, not {processes}")

    def run(tasks: Sequence[Task]) -> Iterator[Outcome]:
        waiting, retries = {task.resolved.id: task for task in tasks}, RETRIES
        while waiting:
            before = len(waiting)
            try:
                yield from _pool(waiting, min(processes, len(waiting)), devices)
            except BrokenProcessPool:  # a worker was killed: runs without an outcome are repeated
                retries = RETRIES if len(waiting) < before else retries - 1
                if retries < 0:
                    for task in waiting.values():
                        yield Outcome(task.label, str(task.resolved.folder), "failed", "its worker process died")
                    return

    return run


def _pool(waiting: dict[str, Task], processes: int, devices: Sequence[str]) -> Iterator[Outcome]:
    """Run the waiting tasks, and remove each from ``waiting`` when it has an outcome."""
    context = multiprocessing.get_context("spawn")
    slots = context.SimpleQueue()
    for i in range(processes):
        slots.put(devices[i % len(devices)] if devices else None)
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(threads, slots)) as pool:
        futures = {pool.submit(_perform_in_worker, task.settings): key for key, task in waiting.items()}
        try:
            for future in as_completed(futures):
                outcome = future.result()
                del waiting[futures[future]]
                yield outcome
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(threads: int, slots: Any) -> None:
    global _shared, _device
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _shared, _device = Shared(), slots.get()


def _end_with_parent() -> None:
    """Exit at once if the sweep is killed; otherwise a worker would continue, and lock its run for the next sweep."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # since this is a worker
    parent.join()
    os._exit(1)


def _perform_in_worker(settings: dict[str, Any]) -> Outcome:
    """Do a run in a worker process."""
    settings = settings | ({"device": _device} if _device else {})
    return perform(Task(settings, resolve(settings)), _shared)


def on_ray(address: str = "auto", cpus: float = 1, gpus: float = 0) -> Executor:
    """Return an executor on a Ray cluster, which schedules the runs and repeats those of a lost worker.

    The folder of the runs and the data must have the same path on all nodes.

    Args:
        address: the cluster's address; ``auto`` connects to the running one, ``local`` starts one on this machine.
        cpus, gpus: resources of a run; ``gpus=0.25`` puts four runs on a GPU.

    Raises:
        VlpromptError: Ray is not installed, or there is no cluster.
    """
    import_ray()

    def run(tasks: Sequence[Task]) -> Iterator[Outcome]:
        ray = connect(address)
        remote = ray.remote(_perform_on_ray).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, runtime_env=environment(cpus)
        )
        futures = {remote.remote(_absolute(task)): task for task in tasks}
        while futures:
            [ready], _ = ray.wait(list(futures), num_returns=1)
            task = futures.pop(ready)
            try:
                yield Outcome(**ray.get(ready))
            except ray.exceptions.RayError as error:
                sentence = f"Ray lost it: {str(error).splitlines()[0]}"
                yield Outcome(task.label, str(task.resolved.folder), "failed", sentence)

    return run


def _perform_on_ray(settings: dict[str, Any]) -> dict[str, Any]:
    """Do a run in a Ray worker, which keeps what it loaded for its later runs."""
    global _shared
    _shared = _shared or Shared()
    return vars(perform(Task(settings, resolve(settings)), _shared))


def _absolute(task: Task) -> dict[str, Any]:
    """The settings with absolute paths, since a worker has another working directory."""
    config = task.resolved.config
    paths = {key: getattr(config, key) for key in ("output", "data_root") if getattr(config, key)}
    return task.settings | {key: str(Path(path).expanduser().resolve()) for key, path in paths.items()}
