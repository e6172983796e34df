"""``executor=`` and its keys, for the commands that can work outside this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlprompt.cli._shared import number_setting
from vlprompt.errors import VlpromptError, nearest

if TYPE_CHECKING:
    from vlprompt.runs.sweep import Executor
    from vlprompt.runs.workers import Workers

Keys = Mapping[str, Sequence[str]]  # the settings of each executor
RUNS: Keys = {"local": (), "processes": ("processes", "devices"), "ray": ("address", "cpus", "gpus")}
PARTS: Keys = {"local": (), "ray": ("address", "cpus", "gpus", "actors")}


def check_executor(settings: Mapping[str, Any], executors: Keys) -> None:
    """Raise for an executor that the command does not have, keys of another executor, and invalid values."""
    name = str(settings.get("executor", "local"))
    if name not in executors:
        raise VlpromptError(f"unknown executor '{name}': {nearest(str(name), executors)}")
    for other, keys in executors.items():
        for key in keys:
            if other != name and key in settings:
                raise VlpromptError(f"{key} is a setting of executor={other}, and the executor is {name}")
    for key in ("processes", "actors"):
        number_setting(settings, key, most=1024)
    for key in ("cpus", "gpus"):
        value = settings.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e6:
            raise VlpromptError(f"{key} must be a number of at least 0, not {value!r}")
    devices = settings.get("devices", [])
    if not isinstance(devices, list) or not all(isinstance(device, str) for device in devices):
        raise VlpromptError(f"devices must be a list such as [cuda:0,cuda:1], not {devices!r}")
    if name == "processes" and "processes" not in settings:
        raise VlpromptError("say how many: executor=processes processes=2")


def make_executor(settings: dict[str, Any]) -> Executor:
    """Remove the executor's keys from the settings, and return the function that does runs."""
    from vlprompt.runs.executors import in_processes, on_ray
    from vlprompt.runs.sweep import run_here

    name, options = _take_options(settings, RUNS)
    return run_here if name == "local" else on_ray(**options) if name == "ray" else in_processes(**options)


def make_workers(settings: dict[str, Any]) -> Workers | None:
    """Remove the executor's keys from the settings, and return the workers; None for this process.

    On a cluster the default ``device`` is that of the workers: a GPU if they ask for one.
    """
    from vlprompt.runs.workers import work_on_ray

    name, options = _take_options(settings, PARTS)
    if name == "local":
        return None
    if settings.get("device", "auto") == "auto":
        settings["device"] = "cuda" if options.get("gpus") else "cpu"
    return work_on_ray(**options)


def _take_options(settings: dict[str, Any], executors: Keys) -> tuple[str, dict[str, Any]]:
    """Remove and return the executor's name and its own settings."""
    name = str(settings.pop("executor", "local"))
    return name, {key: settings.pop(key) for key in executors[name] if key in settings}
