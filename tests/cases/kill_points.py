"""Kill a run with SIGKILL, by ``python kill_points.py FOLDER COUNT [METHOD [outside]]``, and see what resuming gives.

Each write has three points: before it, when all is in the temporary file and none of it in place, and after it. A run
in a process of its own (a fork of this one, which has loaded everything) kills itself there, or with ``outside`` is
killed from here when it has told of the point, wherever it then is. Another goes on from what is left, and both learner
and result must be those of a run that nobody stopped. COUNT 0 takes all points.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import vlprompt.base.files
import vlprompt.training.trainer
from vlprompt import load_split, run
from vlprompt.evaluation.results import read_result

DIGITS = load_split("digits")
FEW = replace(DIGITS, name="few-digits", train=DIGITS.train[::12], test=DIGITS.test[::40])  # for a pool
SETTINGS = {"limit": 12, "views": 1, "seed": 1, "device": "cpu", "checkpoint_seconds": 0, "quiet": True, "name": "it"}
METHODS = {
    "coop": {"dataset": "digits", "shots": 2, "epochs": 6, "aggregator": "ema"},
    # three rounds, each of a stage of its own with some epochs
    "grip": {"dataset": FEW, "protocol": "semi_supervised", "shots": 2, "rounds": 3, "epochs": 3, "n_ctx": 2},
    "tfup_t": {"dataset": FEW, "protocol": "unsupervised", "epochs": 6, "first_epochs": 2, "batch_size": 32},
}


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


class ToldPoints(Points):
    """Tells another process of each point, by a byte in a pipe, and goes on."""

    def __init__(self, pipe: int):
        super().__init__(None)
        self.pipe = pipe

    def reach(self) -> None:
        """Pass a point."""
        super().reach()
        os.write(self.pipe, b".")


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


def killed_inside(place: Path, method: str, point: int) -> int:
    """Let a run kill itself at a point, and return how it ended."""
    return in_fork(lambda: go(place, method, Points(point)))


def killed_outside(place: Path, method: str, point: int) -> int:
    """Kill a run from here once it has passed a point, and return how it ended; one that is faster waits for it."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            go(place, method, ToldPoints(tells))
            signal.pause()
        finally:
            os._exit(1)
    os.close(tells)
    for _ in range(point + 1):
        os.read(told, 1)
    os.kill(child, signal.SIGKILL)
    os.close(told)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(folder: Path) -> tuple:
    """What must not depend on a kill: the learner's bytes, the tests and what is left in the folder."""
    result = read_result(folder / "it/result.json")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return (folder / "it/learner/learner.safetensors").read_bytes(), result.rows, result.averages, names


def go(folder: Path, method: str, points: Points) -> None:
    """Run, or go on with, the run in a folder whose feature banks are its own."""
    os.environ["VLPROMPT_CACHE"] = str(folder.with_name(f"{folder.name}-cache"))
    run(method=method, **SETTINGS, **METHODS[method], output=str(folder), resume=True)
    if points.deadly is None:
        (folder.parent / "points").write_text(str(points.passed))


def main(folder: Path, count: int, method: str = "coop", how: str = "inside") -> None:
    """Print how many points there are, how many kills, and how many of these came after the first checkpoint."""
    torch.set_num_threads(1)
    assert in_fork(lambda: go(folder / "whole", method, Points(None))) == 0
    right, total = outcome(folder / "whole"), int((folder / "points").read_text())
    chosen = range(total) if not count else [(2 * i + 1) * total // (2 * count) for i in range(count)]
    killed = {"inside": killed_inside, "outside": killed_outside}[how]
    late = 0
    for point in chosen:
        place = folder / str(point)
        assert killed(place, method, point) == -signal.SIGKILL
        late += any((place / "it").glob("checkpoint*.safetensors"))
        assert in_fork(lambda place=place: go(place, method, Points(None))) == 0, f"killed at {point} it does not go on"
        found = outcome(place)
        assert found == right, f"killed at point {point} it ends with something else: {found[1:]} and not {right[1:]}"
    print(json.dumps({"points": total, "killed": len(chosen), "after_a_checkpoint": late}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
