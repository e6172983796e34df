"""``vlprompt show``: a run's folder in words: its state, its settings, and cautions about its numbers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datasets_registry.listed import outlives_process
from vlprompt.base.environment import versions
from vlprompt.base.layout import DESCRIBED, FAILED, LEARNER, LOG, PREDICTIONS, RESULT, SEARCH, SETTINGS, TRACEBACK
from vlprompt.base.settings import INCIDENTAL
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.results import Result, read_result
from vlprompt.learner.held_out import say_seen
from vlprompt.runs.folder import RunInUse, refuse_if_in_use
from vlprompt.runs.settings import Resolved, resolve
from vlprompt.saving.description import description_hash
from vlprompt.training.checkpoint import checkpoints

# settings that identify a run and decide which recipe it gets; the others are compared with that recipe's
IDENTITY = ("method", "dataset", "protocol", "shots", "seed", "backbone", "pretrained", "checkpoint", "selection")
FILES = (SETTINGS, LEARNER, RESULT, PREDICTIONS, LOG, SEARCH, FAILED, TRACEBACK)  # in the order in which they are shown
SHOWN = 3  # unreadable files that are named


@dataclass(frozen=True)
class Summary:
    """What a run's folder says about it.

    Attributes:
        folder: the run's folder.
        resolved: its settings.
        result: None if it has not finished.
        state: how far it got, in a few words.
        resume_command: the command that finishes it; empty if it has finished or is running, or no command can find its
            dataset, which was in memory.
    """

    folder: Path
    resolved: Resolved
    result: Result | None
    state: str
    resume_command: str = ""

    @property
    def usual(self) -> Resolved:
        """The settings that such a run has by default, with the recipe that belongs to it."""
        return resolve({key: getattr(self.resolved.config, key) for key in IDENTITY})

    @property
    def changed(self) -> list[tuple[str, Any, Any]]:
        """Key, value and usual value of the settings that differ from the usual ones."""
        usual = asdict(self.usual.config)
        settings = {key: value for key, value in asdict(self.resolved.config).items() if key not in INCIDENTAL}
        return [(key, value, usual[key]) for key, value in settings.items() if value != usual[key]]

    @property
    def files(self) -> list[Path]:
        """The files of a run that exist."""
        possible = [*(self.folder / name for name in FILES), *checkpoints(self.folder)]
        return [path for path in possible if path.exists()]

    @property
    def cautions(self) -> list[str]:
        """Sentences on what limits its numbers, and on what has changed since."""
        return list(_cautions(self.result, self.folder)) if self.result else []


def summarise_run(folder: Path) -> Summary:
    """Read a run's folder, finished or not.

    Raises:
        VlpromptError: it is not the folder of a run, or a file in it is damaged or of another run.
    """
    if not (folder / SETTINGS).is_file():
        raise VlpromptError(f"{folder} is not the folder of a run: it has no {SETTINGS}")
    resolved = resolve({"config": str(folder / SETTINGS)})
    moved = resolved.folder.resolve() != folder.resolve()
    resolved = replace(resolved, config=replace(resolved.config, output=str(folder.parent), name=folder.name))
    if (folder / RESULT).exists():
        result = read_result(folder / RESULT)
        state = f"finished {result.created}, {sum(result.times.values()):.0f} s of work"
        return Summary(folder, resolved, result, state)
    try:
        refuse_if_in_use(folder)
    except RunInUse:
        return Summary(folder, resolved, None, "running: another process is doing it")
    place = [f"output={folder.parent}", f"name={folder.name}"] if moved else []
    command = shlex.join(["python", "-m", "vlprompt.train", f"config={folder / SETTINGS}", *place, "resume=true"])
    found = outlives_process(resolved.config.dataset)
    return Summary(folder, resolved, None, _state_without_result(folder), command if found else "")


def _state_without_result(folder: Path) -> str:
    """Whether a run without a result failed or was interrupted, and after how many epochs."""
    if (folder / FAILED).is_file():
        try:
            return f"failed: {json.loads((folder / FAILED).read_bytes())['error']}"
        except (ValueError, KeyError, TypeError):
            return "failed"
    done = len((folder / LOG).read_bytes().splitlines()) if (folder / LOG).is_file() else 0
    after = f"after {done} epochs" if done != 1 else "after one epoch"
    return f"interrupted {after}, with {'a' if checkpoints(folder) else 'no'} checkpoint to continue from"


def _cautions(result: Result, folder: Path) -> Iterator[str]:
    """See ``Summary.cautions``."""
    if result.limit:
        yield f"at most {result.limit} images of each test were scored: not a number to report"
    seen = say_seen(result.saw or ())
    if seen:
        yield f"hyper-parameters or weights were chosen on more than training images: it {seen}"
    for key, value in result.adapted.items():
        yield f"{key}={value} instead of the recipe's {result.config[key]}, since the backbone has no more layers"
    unreadable = result.data.get("unreadable", [])
    if unreadable:
        more = f" and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
        yield f"left out, since they could not be read: {', '.join(unreadable[:SHOWN])}{more}"
    fewest, most = (result.data.get(f"{which}_a_class") for which in ("fewest", "most"))
    if fewest != most:
        yield f"classes have from {fewest} to {most} training images"
    yield from result.data.get("notes", [])
    if result.files.get(DESCRIBED) not in (None, description_hash(folder / LEARNER)):
        yield f"{folder / LEARNER} is not the learner of the result: it is another run's, or changed"
    current = versions()
    differing = [
        f"{name} {version} (here {current[name]})"
        for name, version in result.versions.items()
        if current.get(name, version) != version
    ]
    if differing:
        yield f"made with other versions, whose numbers may round differently: {', '.join(differing)}"
