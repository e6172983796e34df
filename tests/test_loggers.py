"""What a run tells TensorBoard and Weights & Biases is what its own files say."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlprompt import VlpromptError, run
from vlprompt.cli.__main__ import main
from vlprompt.evaluation.results import Result
from vlprompt.runs.loggers import LOGGERS, LoggedRun
from vlprompt.runs.settings import resolve

SMALL = {"dataset": "digits", "shots": 2, "epochs": 3, "quiet": True, "device": "cpu", "limit": 20, "views": 1}
SETTINGS = SMALL | {"method": "kgcoop", "protocol": "base_to_new"}


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def folder_of(output: Path) -> Path:
    (config,) = output.rglob("config.yaml")
    return config.parent


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a logger from outside is told; it fails at the epoch that the run's name says."""
    told: list[Any] = []
    monkeypatch.setattr(LOGGERS, "_entries", dict(LOGGERS._entries))

    @LOGGERS.register("recorder")
    class Recorder:
        def __init__(self, run: LoggedRun):
            self.stop_at = int(run.settings["name"] or -1)
            told.append(run)

        def epoch(self, record: Mapping[str, Any]) -> None:
            told.append(record)
            if record["epoch"] == self.stop_at:
                raise KeyboardInterrupt

        def result(self, result: Result) -> None:
            told.append(result)

        def close(self, finished: bool) -> None:
            told.append(finished)

    return told


def test_tensorboard_holds_every_epoch_and_the_tests(tmp_path: Path) -> None:
    result = run(logger="tensorboard", output=tmp_path, **SETTINGS)
    folder = folder_of(tmp_path)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    epochs = epochs_of(folder)
    assert len(epochs) == 3
    for name in ("loss", "ce", "text_anchor", "lr", "seconds"):
        scalars = events.Scalars(f"train/{name}")
        assert [s.step for s in scalars] == [1, 2, 3]
        assert [s.value for s in scalars] == pytest.approx([epoch[name] for epoch in epochs], rel=1e-6)
    for row in result.rows:
        assert events.Scalars(f"test/{row.target}/accuracy")[0].value == pytest.approx(row.accuracy)
    assert events.Scalars("test/harmonic_mean")[0].value == pytest.approx(result.averages["harmonic_mean"])
    (table,) = events.Tensors("result/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert f"| base | 5 | 20 | {result.rows[0].zero_shot:.2f} | {result.rows[0].accuracy:.2f} |" in text
    (settings,) = events.Tensors("settings/text_summary")
    assert "method: kgcoop" in settings.tensor_proto.string_val[0].decode()


def test_a_run_that_is_repeated_leaves_one_set_of_events(tmp_path: Path) -> None:
    for _ in range(2):
        run(logger="tensorboard", output=tmp_path, **SETTINGS)
    assert len(list((folder_of(tmp_path) / "tensorboard").iterdir())) == 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that keeps what W&B is told."""
    fake = types.ModuleType("wandb")
    fake.__spec__ = ModuleSpec("wandb", None)
    fake.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    fake.Settings = fake.Table = lambda **values: values
    fake.history, fake.summary, fake.ended = [], {}, []

    def init(**values: Any) -> types.SimpleNamespace:
        fake.started = values
        return types.SimpleNamespace(
            log=lambda values, step=None: fake.history.append((step, values)),
            summary=fake.summary,
            finish=lambda exit_code: fake.ended.append(exit_code),
        )

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_is_told_every_epoch_and_the_tests(wandb: types.ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "studies")
    result = run(logger="wandb", output=tmp_path, **SETTINGS)
    folder = folder_of(tmp_path)
    assert wandb.started["project"] == "studies"
    assert wandb.started["group"] == "digits/base_to_new"
    assert wandb.started["dir"] == folder
    assert wandb.started["config"] == result.config
    *epochs, (_, table) = wandb.history
    assert [step for step, _ in epochs] == [1, 2, 3]
    assert [told["train/loss"] for _, told in epochs] == [epoch["loss"] for epoch in epochs_of(folder)]
    assert [row[0] for row in table["result"]["data"]] == ["base", "new", "harmonic mean"]
    assert wandb.summary["test/new/accuracy"] == result.rows[1].accuracy
    assert wandb.summary["test/harmonic_mean"] == result.averages["harmonic_mean"]
    assert wandb.ended == [0]


def test_wandb_without_a_login_is_one_sentence(wandb: types.ModuleType, tmp_path: Path) -> None:
    def refuse(**_: Any) -> None:
        raise wandb.errors.Error("No API key configured.\nUse `wandb login`.")

    wandb.init = refuse
    with pytest.raises(VlpromptError, match="logger=wandb: No API key configured") as error:
        run(logger="wandb", output=tmp_path, **SETTINGS)
    assert "\n" not in str(error.value)


def test_loggers_change_neither_the_run_nor_its_name(recorded: list, tmp_path: Path) -> None:
    plain = run(output=tmp_path / "a", **SETTINGS)
    logged = run(output=tmp_path / "b", logger=["recorder", "none"], **SETTINGS)
    assert logged.id == plain.id
    assert [row.accuracy for row in logged.rows] == [row.accuracy for row in plain.rows]
    assert folder_of(tmp_path / "a").name == folder_of(tmp_path / "b").name
    started, *epochs, result, finished = recorded
    assert started.settings["method"] == "kgcoop"
    assert epochs == epochs_of(folder_of(tmp_path / "b"))
    assert result == logged
    assert finished is True
    assert resolve(SETTINGS | {"logger": ["tensorboard", "wandb"]}).id == plain.id


def test_an_interrupted_run_is_closed_and_a_resumed_one_is_told_all_epochs(recorded: list, tmp_path: Path) -> None:
    settings = SETTINGS | {"logger": "recorder", "output": tmp_path, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        run(name="1", **settings)
    assert [told.get("epoch") for told in recorded[1:-1]] == [0, 1]
    assert recorded[-1] is False
    recorded.clear()
    (tmp_path / "1").rename(tmp_path / "-1")
    run(name="-1", resume=True, **settings)
    assert [told["epoch"] for told in recorded[1:-2]] == [0, 1, 2]
    assert recorded[-1] is True


def test_what_learns_nothing_still_logs_its_tests(recorded: list, tmp_path: Path) -> None:
    result = run(logger="recorder", output=tmp_path, **SMALL | {"method": "zero_shot"})
    assert recorded[1:] == [result, True]


def test_an_unknown_logger_is_one_sentence(capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "logger=tensorbord"]) == 2
    assert "unknown logger 'tensorbord': did you mean tensorboard?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_says_what_to_install(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted, *rest: None if wanted == name else find(wanted))
    with pytest.raises(VlpromptError, match=rf'needs {name}: pip install "vlprompt\[{name}\]"'):
        run(logger=["none", name], output=tmp_path, **SETTINGS)
    assert not any(tmp_path.iterdir())
