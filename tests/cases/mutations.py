"""Seeded mutations of what runs leave behind, and the commands that read it: another answer or a traceback is a fault.

``Workshop`` makes two runs of CoOp and one of KgCoOp, a checkpoint of a stopped run and the feature banks of all, and
remembers what each command says of them untouched.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

import vlprompt.runs.parts
import vlprompt.saving.folder
import vlprompt.training.loop
from vlprompt.cli.__main__ import main

COMMON = {"dataset": "digits", "shots": 2, "epochs": 2, "limit": 12, "views": 1, "device": "cpu", "aggregator": "ema"}
STOPPED = {"epochs": 3, "checkpoint_seconds": 0}
ODD = (None, True, "x", -1, 1e308, 10**400, float("nan"), [], {}, ["one"], {"a": {}}, "\ud800", "[/b]\x1b[2J")
Content = bytes | None  # None stands for a folder in the file's place
Change = Callable[[bytes, random.Random], Content]


def words(settings: dict[str, Any]) -> list[str]:
    """Settings as a command line has them."""
    return [f"{key}={value}" for key, value in settings.items()]


def say(argv: list[str]) -> tuple[int, str, str]:
    """Status, output and errors of a command; what it raises passes through."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(argv)
    return status, out.getvalue(), err.getvalue()


# What may become of a file


def truncated(data: bytes, rng: random.Random) -> Content:
    """Only its beginning is there."""
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> Content:
    """One bit is another."""
    place, changed = rng.randrange(len(data)), bytearray(data)
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zeroed(data: bytes, rng: random.Random) -> Content:
    """A stretch of it is zeros, as after a crash of the file system."""
    start = rng.randrange(len(data))
    length = rng.randint(1, len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def lengthened(data: bytes, rng: random.Random) -> Content:
    """Something stands behind its end."""
    return data + rng.randbytes(rng.randint(1, 64))


def repeated(data: bytes, rng: random.Random) -> Content:
    """A stretch of it is there twice."""
    start = rng.randrange(len(data))
    return data[:start] + data[rng.randrange(len(data)) :]


def a_folder(data: bytes, rng: random.Random) -> Content:
    """A folder has its name."""
    return None


def emptied(data: bytes, rng: random.Random) -> Content:
    """It has no bytes."""
    return b""


def retyped(data: bytes, rng: random.Random) -> Content:
    """One value of its JSON is of another kind, or one field is missing or more."""
    content = json.loads(data)
    holder, key = rng.choice(list(places(content)))
    action = rng.randrange(4)
    if action == 0 and isinstance(holder, dict):
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[f"{key}_"] = holder[key]
    else:
        holder[key] = rng.choice(ODD)
    return json.dumps(content).encode()


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from places(inner)


ANY: tuple[Change, ...] = (truncated, flipped, flipped, flipped, zeroed, zeroed, lengthened, repeated)
RARE: tuple[Change, ...] = (a_folder, emptied)


@dataclass
class Workshop:
    """Runs in ``root``, and the commands that read them.

    Attributes:
        root: the folder that is changed and put back.
        patch: undoes what is set meanwhile.
        pristine: a copy of it.
        banks: of the features that the run ``one`` used.
        answers: what each command says, by its words.
    """

    root: Path
    patch: pytest.MonkeyPatch
    pristine: Path = field(init=False)
    banks: list[Path] = field(default_factory=list)
    answers: dict[tuple[str, ...], tuple] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pristine = self.root.with_name("pristine")
        self.patch.setenv("VLPROMPT_CACHE", str(self.root / "cache"))
        self.runs = self.root / "runs"
        for module in (vlprompt.runs.parts, vlprompt.saving.folder):  # the backbone is not what is changed
            self.patch.setattr(module, "load_clip", functools.lru_cache(module.load_clip))
        for method, seed, name in (("coop", 1, "one"), ("coop", 2, "two"), ("kgcoop", 1, "other")):
            assert say(["train", *self.settings(method, seed, name), "--quiet"])[0] == 0
            self.banks = self.banks or sorted(self.root.glob("cache/banks/*.safetensors"))  # of the first run
        with self.patch.context() as stop:
            stop.setattr(vlprompt.training.loop.Loop, "_check_last_step", _interrupt)
            for seed, name in ((3, "stopped"), (4, "halted")):
                assert say(["train", *self.settings("coop", seed, name, **STOPPED), "--quiet"])[0] == 130
        Image.new("RGB", (32, 32), (200, 30, 90)).save(self.root / "image.png")
        shutil.copytree(self.root, self.pristine)

    def settings(self, method: str, seed: int, name: str, **more: Any) -> list[str]:
        """The command line of a run, without the command."""
        return words(COMMON | {"method": method, "seed": seed, "name": name, "output": self.runs} | more)

    def commands(self, file: Path) -> list[list[str]]:
        """The commands that read a file, by its place below ``root``."""
        run = self.runs / "one"
        evaluate = ["evaluate", f"run={run}", "--quiet"]
        predict = ["predict", f"learner={run}", "format=csv", "top=3", str(self.root / "image.png")]
        report = ["report", str(self.runs), "format=csv", "pair=coop,kgcoop"]
        resume = ["train", *self.settings("coop", 1, "one"), "resume=true", "--quiet"]
        if file.parts[0] == "cache":
            return [evaluate, ["train", *self.settings("coop", 1, "again"), "--quiet"]]
        if "stopped" in file.parts:
            return [["train", *self.settings("coop", 3, "stopped", **STOPPED), "resume=true", "--quiet"]]
        if "learner" in file.parts:
            export = ["export", f"learner={run}", "to=matrix", f"output={self.root / 'matrix.safetensors'}", "--quiet"]
            return [evaluate, predict, export, ["push", f"learner={run}", "repo=me/it", "dry_run=true"]]
        if file.name == "predictions.safetensors":
            return [report]
        return [report, evaluate, resume]

    def answer(self, argv: list[str]) -> tuple:
        """Status and what matters of what a command says and leaves."""
        status, out, err = say(argv)
        out = re.sub(r"\d+\.\d+ s\b", "", out)
        left = ()
        if status == 0 and argv[0] == "train":
            name = next(word for word in argv if word.startswith("name="))[5:]
            result = json.loads((self.runs / name / "result.json").read_bytes())
            learnt = (self.runs / name / "learner/learner.safetensors").read_bytes()
            left = (json.dumps([result["rows"], result["averages"], result["config"]]), learnt)
        if status == 0 and argv[0] == "export":
            tensors = load_file(self.root / "matrix.safetensors")  # the order of a header's entries is not fixed
            left = ([(key, tensor.tolist()) for key, tensor in sorted(tensors.items())],)
        return status, out if argv[0] != "train" else "", err, left

    def restore(self) -> None:
        """Put back what was there, on the time that it had, since banks are found by it."""
        shutil.rmtree(self.root)
        shutil.copytree(self.pristine, self.root)

    def files(self) -> list[Path]:
        """The files that are changed, below ``root``."""
        own = [*self.pristine.glob("runs/one/**/*"), *self.pristine.glob("runs/stopped/**/*")]
        banks = [path.relative_to(self.root) for path in self.banks]
        return sorted([*banks, *(path.relative_to(self.pristine) for path in own if path.is_file())])

    def swaps(self, file: Path) -> list[Path]:
        """Files that could be taken for this one: another run's, and one of another kind."""
        twin = Path(*({"one": "two", "stopped": "halted"}.get(part, part) for part in file.parts))
        banks = [path for path in self.files() if path.parts[0] == "cache" and path != file]
        kinds = ("runs/one/learner/learner.safetensors", "runs/one/predictions.safetensors", "runs/one/config.yaml")
        others = [Path(kind) for kind in kinds] + (banks if file.parts[0] == "cache" else [twin])
        return [other for other in others if other != file and (self.pristine / other).is_file()]

    def mutations(self, file: Path, count: int, rng: random.Random) -> Iterator[tuple[str, Content]]:
        """Yield ``count`` changed contents of a file, each with its name."""
        data = (self.pristine / file).read_bytes()
        fixed = [(f"swapped for {other}", (self.pristine / other).read_bytes()) for other in self.swaps(file)]
        fixed += [(change.__name__, change(data, rng)) for change in RARE]
        kinds = (*ANY, retyped, retyped, retyped) if file.suffix == ".json" else ANY
        rng.shuffle(fixed)
        yield from fixed[:count]
        for _ in range(count - len(fixed)):
            change = rng.choice(kinds)
            yield change.__name__, change(data, rng)

    def faults(self, file: Path, content: Content, commands: Sequence[list[str]] = ()) -> list[str]:
        """What is wrong with how the commands that read it, or some of them, take a changed file: nothing should be."""
        faults = []
        for argv in commands or self.commands(file):
            right = self.answers.get(tuple(argv))
            if right is None:
                right = self.answers[tuple(argv)] = self.answer(argv)
                assert right[0] == 0, right
                self.restore()
            place = self.root / file
            place.unlink()
            place.mkdir() if content is None else place.write_bytes(content)
            try:
                status, out, err, left = self.answer(argv)
            except Exception as error:
                faults.append(f"{argv[0]}: {type(error).__name__}: {error}")
            else:
                if status == 0 and (out, left) != (right[1], right[3]):
                    faults.append(f"{argv[0]}: another answer: {out[:300]}")
                elif status and not _is_a_sentence(status, out, err):
                    faults.append(f"{argv[0]}: no sentence: {status} {out[:200]} {err[:300]}")
            self.restore()
        return faults


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _is_a_sentence(status: int, out: str, err: str) -> bool:
    """Whether a failure is told in one line, or by ``evaluate``, which names what differs."""
    told = [line for line in err.splitlines() if not line.startswith("warning: ")]
    return (len(told) == 1 and told[0].startswith("error: ")) or (status == 1 and "differs from" in out)
