"""Kill a run at its writes, by ``python kill_points.py FOLDER COUNT``, and tell what the resumed run gives.

Each write has three points: before it, when all is in the temporary file and none of it in place, and after it. A run
in a process of its own (a fork of this one, which has loaded everything) kills itself there with SIGKILL, another goes
on from what is left, and both learner and result must be those of a run that nobody stopped. COUNT 0 takes them all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import vlprompt.base.files
import vlprompt.training.trainer
from vlprompt import run
from vlprompt.evaluation.results import read_result

SETTINGS = {"method": "coop", "dataset": "digits", "shots": 2, "epochs": 6, "limit": 12, "views": 1, "seed": 1}
SETTINGS |= {"device": "cpu", "checkpoint_seconds": 0, "aggregator": "ema", "quiet": True, "name": "it"}


class Points:
    """Counts the points of writes that a process passes, and kills it at one of them."""

    def __init__(self, deadly: int | None):
        self.passed, self.deadly = 0, deadly
        make, replace, log = (
            vlprompt.base.files.tempfile.mkstemp,
            vlprompt.base.files.os.replace,
            vlprompt.training.trainer.Log.write,
        )

        def mkstemp(*args: object, **options: object) -> tuple[int, str]:
            self.reach()
            return make(*args, **options)

        def replacing(source: object, target: object) -> None:
            self.reach()
            replace(source, target)
            self.reach()

        def write(self_: vlprompt.training.Log, record: dict) -> None:
            self.reach()
            if self.passed == self.deadly:  # the next point is in the middle of the line
                with open(self_.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(record)[:20])
            self.reach()
            log(self_, record)

        vlprompt.base.files.tempfile.mkstemp, vlprompt.base.files.os.replace = mkstemp, replacing
        vlprompt.training.trainer.Log.write = write

    def reach(self) -> None:
        """Pass a point, or end there."""
        if self.passed == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1


def in_fork(act: Callable[[], object]) -> int:
    """Do something in a fork of this process, and return how it ended: 0, or less for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(folder: Path) -> tuple:
    """What must not depend on a kill: the learner's bytes, the tests and what is left in the folder."""
    result = read_result(folder / "it/result.json")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return (folder / "it/learner/learner.safetensors").read_bytes(), result.rows, result.averages, names


def go(folder: Path, deadly: int | None = None, count: bool = False) -> None:
    """Run, or go on with, the run in a folder whose feature banks are its own."""
    os.environ["VLPROMPT_CACHE"] = str(folder.with_name(f"{folder.name}-cache"))
    points = Points(deadly)
    run(**SETTINGS, output=str(folder), resume=True)
    if count:
        (folder.parent / "points").write_text(str(points.passed))


def main(folder: Path, count: int) -> None:
    """Print one line a point, and last how many there are and how many of the kills came after the first checkpoint."""
    torch.set_num_threads(1)
    assert in_fork(lambda: go(folder / "whole", count=True)) == 0
    right, total = outcome(folder / "whole"), int((folder / "points").read_text())
    chosen = range(total) if not count else [(2 * i + 1) * total // (2 * count) for i in range(count)]
    late = 0
    for point in chosen:
        place = folder / str(point)
        assert in_fork(lambda place=place, point=point: go(place, point)) == -signal.SIGKILL
        late += (place / "it/checkpoint.safetensors").exists()
        assert in_fork(lambda place=place: go(place)) == 0, f"the run killed at point {point} does not go on"
        found = outcome(place)
        assert found == right, f"killed at point {point} it ends with something else: {found[1:]} and not {right[1:]}"
    print(json.dumps({"points": total, "killed": len(chosen), "after_a_checkpoint": late}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
