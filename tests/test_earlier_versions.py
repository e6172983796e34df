"""What version 0.1.0 wrote is still read: learners, results, runs to go on with, sweeps, banks."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from vlprompt import load_clip, load_learner
from vlprompt.cli.__main__ import main
from vlprompt.data import load_split
from vlprompt.data.bank import _read
from vlprompt.evaluation import limited
from vlprompt.evaluation.results import read_predictions, read_result
from vlprompt.moved import MOVED
from vlprompt.runs.sweep import expand, sweep

# made by 0.1.0's code on the embedded weights of today: a sweep of one run, a run of promptsrc, a bank, logits of four
# images, the checkpoint after one epoch
OLD = Path(__file__).parent / "data/v0_1_0"
NAME = "few_shot-2shot-seed1-2fd54fa1"
SETTINGS = {
    **{"methods": ["coop"], "datasets": ["digits"], "protocols": ["few_shot"], "shots": [2], "seeds": [1]},
    **{"epochs": 2, "views": 2, "limit": 40, "n_ctx": 4, "device": "cpu"},
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def images(limit: int | None, places: range) -> torch.Tensor:
    clip, splits = load_clip("vlprompt-tiny", device="cpu"), load_split("digits")
    items = limited(splits.test, limit)
    return torch.stack([clip.preprocess(splits.open_image(items[i])) for i in places])


@pytest.mark.parametrize(("method", "folder"), [("coop", f"sweep/digits/coop/{NAME}"), ("promptsrc", "promptsrc")])
def test_a_learner_gives_the_logits_that_it_gave(method: str, folder: str) -> None:
    learner = load_learner(OLD / folder / "learner", device="cpu")
    with torch.no_grad():
        logits = learner(images(None, range(0, 40, 10)))
    told = torch.tensor(json.loads((OLD / "logits.json").read_text())[method])
    torch.testing.assert_close(logits, told, rtol=1e-4, atol=1e-4)


def test_a_run_is_read_scored_again_and_reported(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = read_result(old / "promptsrc/result.json")
    assert (result.schema, result.method, result.rows[0].accuracy) == (2, "promptsrc", 10.0)
    assert len(read_predictions(old / "promptsrc")["all"].label) == 40
    assert main(["evaluate", f"run={old}/promptsrc", "tolerance=3", "--quiet"]) == 0
    assert main(["report", str(old)]) == 0
    out = capsys.readouterr().out
    assert "promptsrc" in out
    assert "coop" in out


def test_a_finished_sweep_keeps_its_results(old: Path) -> None:
    told = sweep(SETTINGS | {"output": str(old / "sweep")})
    assert [(each.status, Path(each.folder).name) for each in told] == [("kept", NAME)]
    # a setting that 0.1.0 did not have, at another value, makes another run
    [task] = expand(SETTINGS | {"schedule": "constant"}).tasks
    assert task.resolved.folder.name != NAME


def test_a_stopped_run_goes_on_from_its_checkpoint(old: Path) -> None:
    finished = old / "sweep/digits/coop" / NAME
    stopped = old / "stopped/digits/coop" / NAME
    stopped.mkdir(parents=True)
    shutil.copy(old / "checkpoint.safetensors", stopped)
    with pytest.warns(UserWarning, match=r"by vlprompt 0\.1\.0"):
        [told] = sweep(SETTINGS | {"output": str(old / "stopped")})
    assert told.status == "done"
    mine, its = (load_file(folder / "learner/learner.safetensors") for folder in (stopped, finished))
    torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


def test_a_bank_holds_what_is_encoded_today() -> None:
    path = OLD / "bank.safetensors"
    with safe_open(path, "pt") as file:
        key = file.metadata()["key"]
    clip = load_clip("vlprompt-tiny", device="cpu")
    kept, now = _read(path, key, (1, 40))[0, :4], clip.encode_image(images(40, range(4)))
    torch.testing.assert_close(kept, now, rtol=0, atol=5e-3)  # a bank's pixels are not rounded between the steps


def test_import_paths_of_the_earlier_version_give_the_modules_of_today() -> None:
    for earlier in MOVED:
        module = importlib.import_module(f"vlprompt.{earlier}")
        assert module is sys.modules[module.__name__], earlier
        assert module.__spec__.name == module.__name__
    for room, name in (
        ("evaluation", "limited"),
        ("runs", "execute"),
        ("saving", "tensor_shapes"),
        ("training", "Log"),
        ("clip", "ClassTokens"),
        ("objectives", "TextAnchor"),
    ):
        assert hasattr(importlib.import_module(f"vlprompt.{room}"), name)
