"""Work that comes in parts, done in this process or by Ray Data on many machines: the same parts, the same bits."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlprompt.base.files import CACHE_VARIABLE
from vlprompt.base.plugins import VARIABLE as PLUGINS
from vlprompt.errors import VlpromptError, first_line

HANDED_ON = (CACHE_VARIABLE, PLUGINS, "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class Done:
    """What became of a part of the work.

    Attributes:
        number: of the part.
        facts: plain values that it tells.
        content: the bytes that it made.
        error: the sentence that says why it failed; empty where it did not.
    """

    number: int
    facts: dict[str, Any] = field(default_factory=dict)
    content: bytes = b""
    error: str = ""


class Worker(Protocol):
    """Made once in each process that works, and called with one part (plain values and its ``number``) at a time."""

    def __call__(self, part: dict[str, Any]) -> Done:
        """Do a part; a ``VlpromptError`` becomes its outcome."""


Parts = Sequence[dict[str, Any]]
Workers = Callable[[Callable[[], Worker], Parts], Iterator[Done]]


def work_here(make: Callable[[], Worker], parts: Parts) -> Iterator[Done]:
    """Do the parts one after the other in this process."""
    worker = make()
    return (_done(worker, part) for part in parts)


def work_on_ray(address: str = "auto", cpus: float = 1, gpus: float = 0, actors: int | None = None) -> Workers:
    """Return what does the parts on a Ray cluster, in any order: those of a lost node are done again on others.

    Each worker is an actor of ``ray.data.Dataset.map_batches``, which makes what it needs once. What it makes comes
    back to this process, so the machines need not share a folder for it.

    Args:
        address: of the cluster; ``auto`` takes the one that runs here, ``local`` starts one on this machine.
        cpus, gpus: that an actor takes; it computes with so many threads.
        actors: at most; None takes as many as the cluster has room for.
    """
    import_ray()
    try:
        import pandas  # noqa: F401  which Ray Data imports
        import pyarrow  # noqa: F401
    except ImportError:
        raise VlpromptError('Ray Data needs pyarrow and pandas: pip install "vlprompt[ray]"') from None

    def run(make: Callable[[], Worker], parts: Parts) -> Iterator[Done]:
        ray = connect(address)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        data = ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        told = [{"part": json.dumps(part)} for part in parts]
        results = data.from_items(told, override_num_blocks=len(told)).map_batches(
            _OnRay,
            fn_constructor_args=(make, os.getcwd()),
            batch_size=1,
            batch_format="pyarrow",
            concurrency=(1, min(len(told), actors or _room(ray.cluster_resources(), cpus, gpus))),
            num_cpus=cpus,
            num_gpus=gpus,
            runtime_env=environment(cpus),
        )
        try:
            for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in table.to_pylist():
                    yield Done(row["number"], json.loads(row["facts"]), row["content"], row["error"])
        except ray.exceptions.RayError as error:
            raise VlpromptError(f"Ray gave up: {first_line(error)}; run the same command to continue") from error

    return run


class _OnRay:
    """A worker as an actor of Ray Data: one part a batch."""

    def __init__(self, make: Callable[[], Worker], folder: str):
        self.problem = ""
        if os.path.isdir(folder):  # where relative paths mean what they mean to the command
            os.chdir(folder)
        try:
            self.worker = make()
        except VlpromptError as error:  # told as the outcome of its parts: Ray would start it again and again
            self.problem = str(error)

    def __call__(self, table: Any) -> Any:
        import pyarrow

        [text] = table.column("part").to_pylist()
        part = json.loads(text)
        done = Done(part["number"], error=self.problem) if self.problem else _done(self.worker, part)
        columns = {
            "number": pyarrow.array([done.number], pyarrow.int64()),
            "facts": pyarrow.array([json.dumps(done.facts)], pyarrow.string()),
            "content": pyarrow.array([done.content], pyarrow.large_binary()),
            "error": pyarrow.array([done.error], pyarrow.string()),
        }
        return pyarrow.table(columns)


def _done(worker: Worker, part: dict[str, Any]) -> Done:
    try:
        return worker(part)
    except VlpromptError as error:
        return Done(part["number"], error=str(error))


def _room(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """How many workers a cluster has room for."""
    wanted = {"CPU": cpus, "GPU": gpus}
    rooms = [resources.get(name, 0) / each for name, each in wanted.items() if each]
    return max(1, int(min(rooms, default=1)))


def import_ray() -> Any:
    """Return Ray's module, or say how to get it."""
    try:
        import ray
    except ImportError:
        raise VlpromptError('executor=ray needs Ray: pip install "vlprompt[ray]"') from None
    return ray


def connect(address: str) -> Any:
    """Return Ray, connected to the cluster at ``address``; a connection that there is already is kept."""
    ray = import_ray()
    if not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise VlpromptError(
                f"no Ray cluster at address={address}: start one with `ray start --head`, or give address=local"
            ) from error
    return ray


def environment(cpus: float) -> dict[str, Any]:
    """What Ray is told of a worker's process: our variables, as many threads as CPUs, and where this package lies."""
    variables = {key: os.environ[key] for key in HANDED_ON if key in os.environ}
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]))
    return {"env_vars": variables | {"OMP_NUM_THREADS": str(max(1, int(cpus))), "PYTHONPATH": path}}
