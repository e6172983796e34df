"""Sweeps: a matrix of runs, of which those without a result are done."""

from __future__ import annotations

import itertools
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets_registry.listed import dataset_info, list_collections, list_datasets
from vlprompt.base.files import atomic_write
from vlprompt.base.layout import FAILED, RESULT, TRACEBACK
from vlprompt.base.registry import Registry
from vlprompt.base.settings import AUTO, NO_ROW
from vlprompt.errors import VlpromptError, nearest, warn
from vlprompt.evaluation.averages import headline
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.evaluation.results import Result
from vlprompt.learner.registration import METHODS
from vlprompt.runs.folder import RunInUse, changed_names, read_result_of
from vlprompt.runs.one import execute
from vlprompt.runs.parts import Shared
from vlprompt.runs.settings import Resolved, resolve
from vlprompt.training.recipes import check_cases

# axes of the matrix and the settings that they vary; the first varies slowest, so that neighbours share most data
AXES = {
    "backbones": "backbone",
    "datasets": "dataset",
    "protocols": "protocol",
    "held_outs": "held_out",
    "shots": "shots",
    "seeds": "seed",
    "methods": "method",
}
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Task:
    """One run of a sweep.

    Attributes:
        settings: as for ``resolve``; plain values that can be sent to another process or machine.
        resolved: the complete settings.
    """

    settings: dict[str, Any]
    resolved: Resolved = field(compare=False)

    @property
    def label(self) -> str:
        """The run in a few words."""
        c = self.resolved.config
        shots = {"all": "all images", "none": "no labels", "1": "1 shot"}.get(str(c.shots), f"{c.shots} shots")
        parts = [c.method, c.dataset, c.protocol, *([c.held_out] if c.held_out else []), shots, f"seed {c.seed}"]
        return " · ".join(parts)


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        label: the run in a few words.
        folder: the run's folder.
        status: ``done``, ``kept`` (it had a result), ``failed``, or ``elsewhere`` (another process is doing it).
        message: the headline of a result, or a sentence on why it failed.
        seconds: time that it took in this sweep.
    """

    label: str
    folder: str
    status: str
    message: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Matrix:
    """The runs of a sweep.

    Attributes:
        tasks: each once; neighbours share backbone and data.
        refused: label and error of the combinations that cannot be run.
    """

    tasks: list[Task]
    refused: list[tuple[str, str]]


def expand(settings: Mapping[str, Any]) -> Matrix:
    """Return the runs of a sweep: every combination of its axes, with all other settings the same.

    Args:
        settings: a list or a single value for each of ``AXES`` (a dataset may be the name of a collection), and any
            settings of a run. Seeds are 1, 2 and 3 unless given. ``by`` has settings for some of the runs, as in a
            recipe: ``{"method": {"zs_lp": {"epochs": 30}}}``.

    Raises:
        VlpromptError: a setting is unknown, or invalid for all runs.
    """
    fixed = {key: value for key, value in settings.items() if key not in AXES} | {"quiet": True}
    fixed["resume"] = fixed.get("restart") is not True  # a sweep continues its own runs by default
    by = _checked_cases(fixed.pop("by", {}))
    axes = {key: _values(key, settings[key]) for key in AXES if key in settings}
    if "seed" not in fixed:
        axes.setdefault("seeds", list(SEEDS))
    for plural in axes:
        if AXES[plural] in fixed and AXES[plural] != plural:
            raise VlpromptError(f"say {plural}=[…] or {AXES[plural]}=…, not both")
    if "name" in fixed:
        raise VlpromptError("a sweep names the folders of its runs itself: leave name out")
    order = [key for key in AXES if key in axes]
    tasks: dict[str, Task] = {}
    refused: list[tuple[str, str]] = []
    for values in itertools.product(*(axes[key] for key in order)):
        chosen = {AXES[key]: value for key, value in zip(order, values, strict=True)}
        run_settings = fixed | chosen
        for key, cases in by.items():
            run_settings |= cases.get(run_settings.get(key), {})
        try:
            resolved = resolve(run_settings)
            config = resolved.config
            PROTOCOLS.get(config.protocol).plan(config.dataset, config.targets, config.held_out)
        except VlpromptError as error:
            refused.append((" · ".join(str(value) for value in chosen.values()), str(error)))
        else:
            tasks.setdefault(resolved.id, Task(run_settings, resolved))
    if not tasks and refused:
        raise VlpromptError(refused[0][1])
    return Matrix(list(tasks.values()), refused)


def _checked_cases(by: Any) -> dict[str, dict[Any, dict[str, Any]]]:
    """Check ``by``: its keys must be settings of an axis, and what it sets must not be an axis."""
    check_cases(by, "by")
    for key, cases in by.items():
        if key not in AXES.values():
            raise VlpromptError(f"unknown key '{key}' below by: {nearest(str(key), AXES.values())}")
        varied = {name for settings in cases.values() for name in settings} & {*AXES, *AXES.values(), "by"}
        if varied:
            raise VlpromptError(f"by sets {min(varied)}, which the sweep already varies")
    return dict(by)


def _values(axis: str, setting: Any) -> list[Any]:
    """The values of an axis, each once; collections of datasets are replaced by their members."""
    values = list(setting) if isinstance(setting, (list, tuple)) else [setting]
    if not values:
        raise VlpromptError(f"{axis} is empty: give at least one value")
    odd = next((value for value in values if isinstance(value, (list, tuple, dict))), None)
    if odd is not None:
        raise VlpromptError(f"{axis} must be a list of plain values, not of {odd!r:.60}")
    if axis == "methods" and AUTO in values:
        raise VlpromptError(NO_ROW)
    registries: dict[str, Registry[Any]] = {"methods": METHODS, "protocols": PROTOCOLS}
    known = registries.get(axis)
    if known is not None:
        for value in values:
            known.info(str(value))  # raises for a misspelt name, which is not just a combination to leave out
    if axis == "datasets":
        collections = list_collections()
        values = [name for value in map(str, values) for name in collections.get(value, (value,))]
        parts = {part.strip() for value in values if ":" not in value for part in value.split("+")}
        for name in sorted(parts - set(list_datasets())):
            dataset_info(name)  # raises for unknown names
    return list(dict.fromkeys(values))


def finished(task: Task) -> Result | None:
    """Return the result that a run has already, or None.

    Raises:
        VlpromptError: its file is damaged, or of another run.
    """
    path = task.resolved.folder / RESULT
    return read_result_of(task.resolved, path) if path.exists() else None


def usable_result(task: Task) -> Result | None:
    """Return the result that a run has already; None if there is none, or it is damaged or of another run."""
    try:
        return finished(task)
    except VlpromptError:
        return None


def perform(task: Task, shared: Shared | None = None) -> Outcome:
    """Do a run, unless it has a result or another process is doing it; an error is written to its folder.

    Args:
        task: the run.
        shared: what earlier runs of this process have loaded.
    """
    folder = task.resolved.folder
    started = time.monotonic()
    try:
        result = finished(task)
        if result:
            return _kept(task, result)
        result = execute(task.resolved, shared=shared)
        for name in (FAILED, TRACEBACK):
            (folder / name).unlink(missing_ok=True)
    except RunInUse:
        return Outcome(task.label, str(folder), "elsewhere", "another process is doing it")
    except VlpromptError as error:
        return _failed(task, str(error), "", time.monotonic() - started)
    except Exception as error:
        return _failed(task, f"{type(error).__name__}: {error}", traceback.format_exc(), time.monotonic() - started)
    return Outcome(task.label, str(folder), "done", headline(result), time.monotonic() - started)


def _failed(task: Task, sentence: str, trace: str, seconds: float) -> Outcome:
    """Write the error of a run, and its traceback if it was unexpected, into its folder."""
    folder = task.resolved.folder
    content = json.dumps({"run": task.label, "error": sentence}, indent=1) + "\n"
    try:
        for name, text in ((FAILED, content), (TRACEBACK, trace)):
            if text:
                with atomic_write(folder / name) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        sentence += f" (see {folder / TRACEBACK})" if trace else ""
    except VlpromptError as error:  # the disk is full: the sweep continues
        sentence += f" ({error})"
    return Outcome(task.label, str(folder), "failed", sentence, seconds)


Executor = Callable[[Sequence[Task]], Iterator[Outcome]]


def run_here(tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Do the runs one after the other in this process."""
    shared = Shared()
    for task in tasks:
        yield perform(task, shared)


def sweep(
    settings: Mapping[str, Any],
    executor: Executor = run_here,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Do all runs of a matrix that have no result yet, and return the outcome of each, kept ones first.

    It may be stopped at any moment and called again: finished runs are kept, an interrupted one continues from its
    checkpoint (``restart=True`` starts it over), and failed ones are repeated. It warns if results, including those of
    earlier calls, come from different weights or images under the same name.

    Args:
        settings: as for ``expand``.
        executor: ``run_here``, or one of ``vlprompt.runs.executors``.
        on_outcome: called with each outcome as it comes.

    Raises:
        VlpromptError: a setting is unknown, or invalid for all runs.

    >>> sweep({"methods": ["coop", "maple"], "datasets": ["emoji"], "seeds": [1, 2, 3]})  # doctest: +SKIP
    """
    tasks = expand(settings).tasks
    known = [outcome for task in tasks if (outcome := known_outcome(task))]
    folders = {outcome.folder for outcome in known}
    waiting = [task for task in tasks if str(task.resolved.folder) not in folders]
    outcomes = []
    for outcome in itertools.chain(known, executor(waiting) if waiting else ()):
        outcomes.append(outcome)
        if on_outcome:
            on_outcome(outcome)
    for sentence in changed_names((task.resolved.folder, result) for task in tasks if (result := usable_result(task))):
        warn(sentence)
    return outcomes


def known_outcome(task: Task) -> Outcome | None:
    """The outcome of a run that has a result, which may be damaged; None if it must be done."""
    try:
        result = finished(task)
    except VlpromptError as error:
        return Outcome(task.label, str(task.resolved.folder), "failed", str(error))
    return _kept(task, result) if result else None


def _kept(task: Task, result: Result) -> Outcome:
    return Outcome(task.label, str(task.resolved.folder), "kept", headline(result))
