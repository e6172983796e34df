"""The folder of a run: which run it is of, that one process is at it, and what is there already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlprompt.base.files import atomic_write, locked, remove_leftovers
from vlprompt.base.layout import LEARNER, RESULT, SETTINGS
from vlprompt.base.reporter import Reporter
from vlprompt.base.settings import differing_setting
from vlprompt.base.settings_text import read_settings
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.results import Result, read_result
from vlprompt.learner.contract import PromptLearner
from vlprompt.runs.settings import Resolved, resolve
from vlprompt.saving.folder import load_learner
from vlprompt.training.checkpoint import checkpoints


class RunInUse(VlpromptError):
    """Another process is at the run."""


def lock_run(folder: Path) -> AbstractContextManager[None]:
    """Hold a run's folder for this process, or raise ``RunInUse`` at once; the system lets go of it if it dies."""
    busy = RunInUse(f"{folder} is in use: another process is at that run; wait for it, or choose another name=")
    return locked(folder.parent / f".{folder.name}.lock", busy)


def refuse_if_in_use(folder: Path) -> None:
    """Raise ``RunInUse`` if another process is at a run, and leave nothing behind."""
    if (folder.parent / f".{folder.name}.lock").exists():
        with lock_run(folder):
            pass


def refuse_undecided(folder: Path, resume: bool, restart: bool) -> None:
    """Raise a ``VlpromptError`` if a folder has an interrupted run, and neither resume nor restart is set."""
    if not (resume or restart or (folder / RESULT).exists()) and checkpoints(folder):
        raise VlpromptError(
            f"{folder} contains an interrupted run: give resume=true to continue it, or restart=true to discard it "
            "and start over"
        )


def find_finished(resolved: Resolved) -> Result | None:
    """Return the result that a resumed run has left already.

    Raises:
        VlpromptError: the folder, chosen by ``name``, or the result in it is of another run.
    """
    if (resolved.folder / SETTINGS).exists():
        there = resolve({"config": resolved.folder / SETTINGS}).config
        key = differing_setting(asdict(there), asdict(resolved.config))
        if key:
            raise VlpromptError(
                f"{resolved.folder} holds a run with other settings ({key}={getattr(there, key, None)} there, "
                f"{getattr(resolved.config, key, None)} here): choose another name, or delete it"
            )
    path = resolved.folder / RESULT
    return read_result_of(resolved, path) if resolved.config.resume and path.exists() else None


def read_result_of(resolved: Resolved, path: Path) -> Result:
    """Read a result that must be of a run with these settings."""
    result = read_result(path)
    mine = asdict(resolved.config)
    key = None if result.id == resolved.id else differing_setting(result.config, mine)
    if key:
        raise VlpromptError(
            f"{path} is the result of another run ({key}={result.config.get(key)} there, {mine.get(key)} here): delete "
            "it, or put it back where it was"
        )
    return result


def load_own_learner(run: Path, clip: FrozenCLIP | None = None, device: str = "auto") -> PromptLearner:
    """Load the learner of the user's own run, which may read what the run's settings name as well.

    That is, its descriptions and generated views.

    Args:
        run: its folder, with ``config.yaml`` and ``learner/``.
        clip, device: as in ``load_learner``.
    """
    learner = load_learner(run / LEARNER, clip=clip, device=device)
    settings = read_settings(run / SETTINGS) if (run / SETTINGS).exists() else {}
    for key in ("descriptions", "generated"):
        named = settings.get(key)
        if isinstance(named, str) and named == getattr(learner.config, key, None):
            learner.teacher.own_files.add(named)
    return learner


def changed_names(results: Iterable[tuple[Path, Result]]) -> list[str]:
    """Return a sentence for each backbone or dataset that was not the same for all results that name it alike.

    Args:
        results: with the folder or file of each.
    """
    first: dict[tuple[object, ...], tuple[Any, Path]] = {}
    found: dict[tuple[object, ...], str] = {}
    for path, result in results:
        for name, value in _named_alike(result):
            before, place = first.setdefault(name, (value, path))
            if value != before:
                sentence = f"{name[0]} '{name[1]}' was another one for {place} than for {path}"
                found.setdefault(name, f"{sentence}: their numbers do not compare; delete the older and run it again")
    return list(found.values())


def _named_alike(result: Result) -> Iterator[tuple[tuple[object, ...], Any]]:
    """What results of the same names must agree on: kind, name and conditions, with what stood for it."""
    config, images = result.config, result.data.get("images", {})
    backbone = [config.get(key) for key in ("backbone", "pretrained", "checkpoint")]
    yield ("backbone", *map(str, backbone)), result.backbone.get("weights")
    if isinstance(images, dict) and "train" in images:
        yield ("dataset", result.dataset, result.data.get("few_shot"), result.selection), images["train"]
    for row in result.rows:
        tested = images.get("tests", {}).get(row.target) if isinstance(images, dict) else None
        if tested:
            yield ("dataset", row.dataset, row.split, result.limit), tested


def claim_folder(resolved: Resolved, reporter: Reporter) -> None:
    """Write the settings into the run's folder, and drop the result that an earlier run of theirs left.

    The caller holds ``lock_run``.

    Raises:
        VlpromptError: an interrupted run has left a checkpoint, and neither ``resume`` nor ``restart`` is set.
    """
    folder, config = resolved.folder, resolved.config
    result, left = folder / RESULT, checkpoints(folder)
    refuse_undecided(folder, config.resume, config.restart)
    remove_leftovers(folder)
    if result.exists():
        reporter.say(f"starting over: the result in {folder} will be replaced")
        result.unlink()
        for checkpoint in left:  # of a run that was killed when its result was there
            checkpoint.unlink()
    elif left and config.resume:
        reporter.say(f"continuing {folder}")
    elif left:
        reporter.say(f"starting over: the checkpoint in {folder} is discarded")
        for checkpoint in left:
            checkpoint.unlink()
    with atomic_write(folder / SETTINGS) as temporary:
        temporary.write_text(resolved.to_yaml(), encoding="utf-8")
