"""A run's folder in words: how far it got, what it was told, and what one should know of its numbers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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

# what says which run it is, and decides which case of a recipe holds; the rest is compared with what follows from these
IDENTITY = ("method", "dataset", "protocol", "shots", "seed", "backbone", "pretrained", "checkpoint", "selection")
FILES = (SETTINGS, LEARNER, RESULT, PREDICTIONS, LOG, SEARCH, FAILED, TRACEBACK)  # in the order in which they are shown
SHOWN = 3  # files that could not be read


@dataclass(frozen=True)
class Summary:
    """What is known of a run from its folder.

    Attributes:
        folder: of the run.
        resolved: its settings.
        result: None if it has not finished.
        state: how far it got, in a few words.
        go_on: the command that finishes it; empty if it has finished or is being done.
    """

    folder: Path
    resolved: Resolved
    result: Result | None
    state: str
    go_on: str = ""

    @property
    def usual(self) -> Resolved:
        """The settings that such a run has where nothing else is said, by the recipe that is then taken."""
        return resolve({key: getattr(self.resolved.config, key) for key in IDENTITY})

    @property
    def changed(self) -> list[tuple[str, Any, Any]]:
        """Key, value and usual value of the settings that are others."""
        usual = asdict(self.usual.config)
        mine = {key: value for key, value in asdict(self.resolved.config).items() if key not in INCIDENTAL}
        return [(key, value, usual[key]) for key, value in mine.items() if value != usual[key]]

    @property
    def files(self) -> list[Path]:
        """What the run has left, of what it leaves."""
        left = [self.folder / name for name in FILES]
        return [path for path in [*left, *checkpoints(self.folder)] if path.exists()]

    @property
    def cautions(self) -> list[str]:
        """Sentences on what its numbers owe to, and on what is no longer as it was."""
        return list(_cautions(self.result, self.folder)) if self.result else []


def summarise_run(folder: Path) -> Summary:
    """Read a run's folder, finished or not.

    Raises:
        VlpromptError: it is no run's, or a file in it is damaged or of another run.
    """
    if not (folder / SETTINGS).is_file():
        raise VlpromptError(f"{folder} is not the folder of a run: it has no {SETTINGS}")
    resolved = resolve({"config": str(folder / SETTINGS)})
    moved = resolved.folder.resolve() != folder.resolve()
    here = replace(resolved, config=replace(resolved.config, output=str(folder.parent), name=folder.name))
    if (folder / RESULT).exists():
        result = read_result(folder / RESULT)
        return Summary(folder, here, result, f"finished {result.created}, {sum(result.times.values()):.0f} s of work")
    try:
        refuse_if_in_use(folder)
    except RunInUse:
        return Summary(folder, here, None, "running: another process is at it")
    place = [f"output={folder.parent}", f"name={folder.name}"] if moved else []
    command = shlex.join(["python", "-m", "vlprompt.train", f"config={folder / SETTINGS}", *place, "resume=true"])
    return Summary(folder, here, None, _how_far(folder), command)


def _how_far(folder: Path) -> str:
    """What became of a run that has no result."""
    if (folder / FAILED).is_file():
        try:
            return f"failed: {json.loads((folder / FAILED).read_bytes())['error']}"
        except (ValueError, KeyError, TypeError):
            return "failed"
    done = len((folder / LOG).read_bytes().splitlines()) if (folder / LOG).is_file() else 0
    told = f"after {done} epochs" if done != 1 else "after one epoch"
    return f"interrupted {told}, and has {'a' if checkpoints(folder) else 'no'} checkpoint to go on from"


def _cautions(result: Result, folder: Path) -> Iterator[str]:
    if result.limit:
        yield f"at most {result.limit} images of each test were scored: no number to report"
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
    here = versions()
    other = [f"{name} {was} (here {here[name]})" for name, was in result.versions.items() if here.get(name, was) != was]
    if other:
        yield f"made with other versions, whose numbers may round differently: {', '.join(other)}"
