"""Work in numbered parts, done in this process or by Ray Data on many machines, with bit-identical results."""

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

FORWARDED = (CACHE_VARIABLE, PLUGINS, "HF_HUB_OFFLINE")  # environment variables


@dataclass(frozen=True)
class Done:
    """The outcome of a part.

    Attributes:
        number: the part's number.
        facts: plain values about it.
        content: the bytes that it produced.
        error: a sentence on why it failed; empty if it succeeded.
    """

    number: int
    facts: dict[str, Any] = field(default_factory=dict)
    content: bytes = b""
    error: str = ""


class Worker(Protocol):
    """Created once per worker process, and called with one part (plain values and its ``number``) at a time."""

    def __call__(self, part: dict[str, Any]) -> Done:
        """Do a part; a ``VlpromptError`` becomes its outcome."""


Parts = Sequence[dict[str, Any]]
Workers = Callable[[Callable[[], Worker], Parts], Iterator[Done]]


def work_here(make: Callable[[], Worker], parts: Parts) -> Iterator[Done]:
    """Do the parts one after the other in this process."""
    worker = make()
    return (_done(worker, part) for part in parts)


def work_on_ray(address: str = "auto", cpus: float = 1, gpus: float = 0, actors: int | None = None) -> Workers:
    """Return a function that does the parts on a Ray cluster, in any order; parts of a lost node are repeated.

    Each worker is an actor of ``ray.data.Dataset.map_batches``, which loads what it needs once. Its output returns to
    this process, so the machines need no shared folder.

    Args:
        address: the cluster's address; ``auto`` connects to the running one, ``local`` starts one on this machine.
        cpus, gpus: resources of an actor; it computes with ``cpus`` threads.
        actors: largest number; None means as many as the cluster has resources for.

    Raises:
        VlpromptError: Ray is not installed, or there is no cluster.
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
        items = [{"part": json.dumps(part)} for part in parts]
        results = data.from_items(items, override_num_blocks=len(items)).map_batches(
            _OnRay,
            fn_constructor_args=(make, os.getcwd()),
            batch_size=1,
            batch_format="pyarrow",
            concurrency=(1, min(len(items), actors or _capacity(ray.cluster_resources(), cpus, gpus))),
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
    """A worker as an actor of Ray Data; each batch is one part."""

    def __init__(self, make: Callable[[], Worker], folder: str):
        self.problem = ""
        if os.path.isdir(folder):  # relative paths then mean the same as in the command
            os.chdir(folder)
        try:
            self.worker = make()
        except VlpromptError as error:  # becomes the outcome of its parts; Ray would restart a failing actor forever
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
    """The outcome of a part, which a ``VlpromptError`` is too."""
    try:
        return worker(part)
    except VlpromptError as error:
        return Done(part["number"], error=str(error))


def _capacity(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """The number of workers that a cluster has resources for, at least 1."""
    needed = {"CPU": cpus, "GPU": gpus}
    return max(1, int(min((resources.get(name, 0) / n for name, n in needed.items() if n), default=1)))


def import_ray() -> Any:
    """Import Ray, or raise a ``VlpromptError`` that says how to install it."""
    try:
        import ray
    except ImportError:
        raise VlpromptError('executor=ray needs Ray: pip install "vlprompt[ray]"') from None
    return ray


def connect(address: str) -> Any:
    """Return Ray, connected to the cluster at ``address``; an existing connection is kept."""
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
    """Ray's ``runtime_env`` of a worker: this process's variables, one thread per CPU, and the path of this package."""
    variables = {key: os.environ[key] for key in FORWARDED if key in os.environ}
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]))
    return {"env_vars": variables | {"OMP_NUM_THREADS": str(max(1, int(cpus))), "PYTHONPATH": path}}
