"""Kill runs with SIGKILL, by ``python kill_points.py FOLDER COUNT [METHODS [outside]]``, and see what resuming gives.

METHODS are names below with commas between them; ``meta_train`` is no run of a method, but is stopped and resumed too.

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
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

import vlprompt.base.files
import vlprompt.training.trainer
from vlprompt import load_clip, load_split, run
from vlprompt.evaluation.results import read_result
from vlprompt.runs.meta_train import META as META_FILE
from vlprompt.runs.meta_train import REGULATOR, MetaConfig, meta_train

DIGITS = load_split("digits")
FEW = replace(DIGITS, name="few-digits", train=DIGITS.train[::12], test=DIGITS.test[::40])  # for a pool
OF_TWO = [replace(item, domain="ab"[i % 2]) for i, item in enumerate(DIGITS.train[::6])]  # each a stage of its own
SETTINGS = {"limit": 12, "views": 1, "seed": 1, "device": "cpu", "checkpoint_seconds": 0, "quiet": True, "name": "it"}
METHODS = {
    "coop": {"dataset": "digits", "shots": 2, "epochs": 6, "aggregator": "ema"},
    # three rounds, each of a stage of its own with some epochs
    "grip": {"dataset": FEW, "protocol": "semi_supervised", "shots": 2, "rounds": 3, "epochs": 3, "n_ctx": 2},
    "tfup_t": {"dataset": FEW, "protocol": "unsupervised", "epochs": 6, "first_epochs": 2, "batch_size": 32},
    # a prompt for each of two domains, then the generator of such prompts
    "spg": {
        **{"dataset": replace(DIGITS, name="digits-of-two", train=OF_TWO), "protocol": "few_shot", "shots": 2},
        **{"epochs": 3, "label_epochs": 2, "n_ctx": 2, "ctx_init": None, "noise_width": 8, "test_draws": 1},
        **{"generator_width": 8, "discriminator_width": 8},
    },
}
META = {"pairs": "digits", "epochs": 4, "tasks": 2, "task_size": 6, "topics": 3, "styles": 2, "settings": {"n_ctx": 2}}


class Points:
    """Counts the points of writes that a process passes, and kills it at one of them."""

    def __init__(self, deadly: int | None):
        self.passed, self.deadly = 0, deadly
        make, replace, log = (
            tempfile.mkstemp,
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

        tempfile.mkstemp, vlprompt.base.files.os.replace = mkstemp, replacing
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
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    learnt = b"".join((folder / name).read_bytes() for name in names if name.endswith("learner.safetensors"))
    if (folder / "it" / META_FILE).exists():
        regulator = load_file(folder / "it" / REGULATOR)  # whose header tells several things, in any order
        bits = [(name, regulator[name].numpy().tobytes()) for name in sorted(regulator)]
        return (learnt, bits), json.loads((folder / "it" / META_FILE).read_text())["loss"], names
    result = read_result(folder / "it/result.json")
    return learnt, result.rows, result.averages, names


def go(folder: Path, method: str, points: Points) -> None:
    """Run, or go on with, the run in a folder whose feature banks are its own."""
    os.environ["VLPROMPT_CACHE"] = str(folder.with_name(f"{folder.name}-cache"))
    if method == "meta_train":
        config = MetaConfig(**META, checkpoint_seconds=0, quiet=True, output=str(folder / "it"), resume=True)
        meta_train(load_clip("vlprompt-tiny", device="cpu"), config)
    else:
        run(method=method, **SETTINGS, **METHODS[method], output=str(folder), resume=True)
    if points.deadly is None:
        (folder.parent / "points").write_text(str(points.passed))


def main(folder: Path, count: int, methods: str = "coop", how: str = "inside") -> None:
    """Print for each method how many points it has, how many kills, and how many of these came after a checkpoint."""
    torch.set_num_threads(1)
    for method in methods.split(","):
        (folder / method).mkdir()
        print(json.dumps(killed_and_resumed(folder / method, count, method, how)), flush=True)


def killed_and_resumed(folder: Path, count: int, method: str, how: str) -> dict[str, int]:
    """Kill runs of a method at so many of its points, and compare what resuming each gives with an unbroken run."""
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
    return {"points": total, "killed": len(chosen), "after_a_checkpoint": late}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
