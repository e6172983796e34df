"""The folder of a run: its lock, the settings and results that it already contains, its learner."""

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
    """Another process is doing the run."""


def lock_run(folder: Path) -> AbstractContextManager[None]:
    """Lock a run's folder for this process, or raise ``RunInUse`` at once; the lock ends with the process."""
    busy = RunInUse(f"{folder} is in use: another process is doing that run; wait for it, or choose another name=")
    return locked(folder.parent / f".{folder.name}.lock", busy)


def refuse_if_in_use(folder: Path) -> None:
    """Raise ``RunInUse`` if another process is doing a run, without creating a lock file."""
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
    """Return the result of a run that is to be resumed, if it has finished already.

    Raises:
        VlpromptError: the folder, which may be chosen by ``name``, or its result belongs to another run.
    """
    if (resolved.folder / SETTINGS).exists():
        stored = resolve({"config": resolved.folder / SETTINGS}).config
        key = differing_setting(asdict(stored), asdict(resolved.config))
        if key:
            raise VlpromptError(
                f"{resolved.folder} holds a run with other settings ({key}={getattr(stored, key, None)} there, "
                f"{getattr(resolved.config, key, None)} here): choose another name, or delete it"
            )
    path = resolved.folder / RESULT
    return read_result_of(resolved, path) if resolved.config.resume and path.exists() else None


def read_result_of(resolved: Resolved, path: Path) -> Result:
    """Read a result, which must be of a run with these settings.

    Raises:
        VlpromptError: it is damaged, or of another run.
    """
    result = read_result(path)
    settings = asdict(resolved.config)
    key = None if result.id == resolved.id else differing_setting(result.config, settings)
    if key:
        raise VlpromptError(
            f"{path} is the result of another run ({key}={result.config.get(key)} there, {settings.get(key)} here): "
            "delete it, or put it back where it was"
        )
    return result


def load_own_learner(run: Path, clip: FrozenCLIP | None = None, device: str = "auto") -> PromptLearner:
    """Load the learner of the user's own run, which may also read the files that the run's settings name.

    Those are its descriptions and generated views; a saved learner from others may not read them.

    Args:
        run: its folder, with ``config.yaml`` and ``learner/``.
        clip, device: as in ``load_learner``.
    """
    learner = load_learner(run / LEARNER, clip=clip, device=device)
    settings = read_settings(run / SETTINGS) if (run / SETTINGS).exists() else {}
    for key in ("descriptions", "generated"):
        path = settings.get(key)
        if isinstance(path, str) and path == getattr(learner.config, key, None):
            learner.teacher.own_files.add(path)
    return learner


def changed_names(results: Iterable[tuple[Path, Result]]) -> list[str]:
    """Return a sentence for each backbone or dataset whose name meant different weights or images in two results.

    Args:
        results: each with its folder or file.
    """
    first: dict[tuple[object, ...], tuple[Any, Path]] = {}
    sentences: dict[tuple[object, ...], str] = {}
    for path, result in results:
        for name, content in _named_contents(result):
            first_content, first_path = first.setdefault(name, (content, path))
            if content != first_content:
                sentence = f"{name[0]} '{name[1]}' was another one for {first_path} than for {path}"
                sentences.setdefault(
                    name, f"{sentence}: their numbers do not compare; delete the older and run it again"
                )
    return list(sentences.values())


def _named_contents(result: Result) -> Iterator[tuple[tuple[object, ...], Any]]:
    """Each backbone and dataset of a result: its kind, name and conditions, and a hash of its contents."""
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
    """Write the settings into the run's folder, and remove the result of an earlier run with the same settings.

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
        for checkpoint in left:  # of a run that was killed after it had written its result
            checkpoint.unlink()
    elif left and config.resume:
        reporter.say(f"continuing {folder}")
    elif left:
        reporter.say(f"starting over: the checkpoint in {folder} is discarded")
        for checkpoint in left:
            checkpoint.unlink()
    with atomic_write(folder / SETTINGS) as temporary:
        temporary.write_text(resolved.to_yaml(), encoding="utf-8")
