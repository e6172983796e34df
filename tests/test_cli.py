"""The commands as a user meets them: one run end to end, interruptions, and a sentence for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import vlprompt.data
from vlprompt import testing
from vlprompt.base.sealed import seal
from vlprompt.cli.__main__ import main
from vlprompt.evaluation.results import Result, read_result
from vlprompt.runs import run
from vlprompt.runs.settings import resolve
from vlprompt.version import __version__

QUICK = ["dataset=digits", "shots=2", "epochs=3", "limit=20"]
DIGITS = [QUICK[0], QUICK[3]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on handwritten digits, done through the command."""
    output = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLPROMPT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert main(["train", *QUICK, f"output={output}", "name=mine", "--quiet"]) == 0
    return output / "mine"


def said(capsys: pytest.CaptureFixture[str], argv: list[str], status: int = 0) -> str:
    """Run a command, check its exit status and return what it printed on both streams."""
    assert main(argv) == status
    out, err = capsys.readouterr()
    return out + err


def test_a_run_leaves_its_settings_log_learner_and_result(finished: Path) -> None:
    left = ["config.yaml", "learner", "predictions.safetensors", "result.json", "train.jsonl"]
    assert sorted(p.name for p in finished.iterdir()) == left
    result = read_result(finished / "result.json")
    assert (result.method, result.dataset, result.shots, result.views) == ("coop", "digits", 2, 3)
    assert [(r.target, r.n_classes, r.n_images) for r in result.rows] == [("base", 5, 20), ("new", 5, 20)]
    assert result.recipe["name"] == "coop/base_to_new"
    assert result.n_parameters > 0
    assert result.seeded
    assert result.times.keys() == {"load", "encode", "train", "test"}
    assert len((finished / "train.jsonl").read_text().splitlines()) == 3


def test_evaluate_recreates_the_numbers_from_the_saved_learner(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, ["evaluate", f"run={finished}"])
    assert "base" in text
    assert "+0.00" in text


def test_evaluate_fails_when_the_numbers_differ(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.yaml", "learner"):
        (tmp_path / name).symlink_to(finished / name)
    data = json.loads((finished / "result.json").read_text())
    data["rows"][1]["accuracy"] += 5.0
    (tmp_path / "result.json").write_text(json.dumps(seal(data)))
    assert "differs from" in said(capsys, ["evaluate", f"run={tmp_path}"], status=1)
    said(capsys, ["evaluate", f"run={tmp_path}", "tolerance=5.1"])


def test_resuming_a_finished_run_shows_its_result(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "result.json").stat().st_mtime_ns
    text = said(capsys, ["train", *QUICK, f"output={finished.parent}", "name=mine", "resume=true"])
    assert "finished already, nothing to resume" in text
    assert "harmonic mean" in text
    assert f"vlprompt evaluate run={finished}" in text
    assert max(map(len, text.splitlines())) <= 200
    assert (finished / "result.json").stat().st_mtime_ns == before


def test_a_name_that_another_run_has_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, ["train", *QUICK, f"output={finished.parent}", "name=mine", "lr=0.5"], status=2)
    assert "holds a run with other settings (lr=0.002 there, 0.5 here): choose another name, or delete it" in text


def test_a_recipe_for_a_deeper_backbone_is_cut_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "method=vpt", *DIGITS, "shots=1", "epochs=1", f"output={tmp_path}", "name=vpt"]
    text = said(capsys, argv)
    assert "and not 12 as in the recipe, since vlprompt-tiny has no more layers" in text
    result = read_result(tmp_path / "vpt/result.json")
    assert result.adapted["depth"] < 12 == result.config["depth"]
    assert result.views == "fresh"
    said(capsys, ["evaluate", f"run={tmp_path / 'vpt'}"])
    assert "set the depth to" in said(capsys, [*argv[:-1], "depth=30"], status=2)


def test_python_and_command_do_the_same(finished: Path, tmp_path: Path) -> None:
    result = run(dataset="digits", shots=2, epochs=3, limit=20, output=tmp_path, quiet=True)
    assert isinstance(result, Result)
    assert result.rows == read_result(finished / "result.json").rows
    assert result.id == read_result(finished / "result.json").id


def test_a_model_in_hand_is_run_under_a_name_of_its_own(tmp_path: Path) -> None:
    settings = {"dataset": "digits", "shots": 1, "epochs": 1, "limit": 10, "output": tmp_path, "quiet": True}
    clip = testing.small_clip()
    result = run(clip=clip, **settings)
    assert result.config["backbone"] == f"custom@{clip.identity()['weights'][:8]}"
    assert result.backbone == clip.identity() | {"precision": "fp32"}
    assert result.id != resolve(settings).id
    assert result.id == run(clip=clip, **settings, resume=True).id


def test_starting_again_says_what_it_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", *DIGITS, "shots=2", "epochs=1", f"output={tmp_path}", "name=again"]
    said(capsys, argv)
    (tmp_path / "again/checkpoint.safetensors").write_bytes(b"left by an interrupted run")
    assert "starting again: the checkpoint in" in said(capsys, argv)
    assert "starting again: the result in" in said(capsys, argv)
    left = ["config.yaml", "predictions.safetensors", "result.json", "train.jsonl"]
    assert sorted(p.name for p in (tmp_path / "again").glob("*.*")) == left


def test_zero_shot_is_tested_without_training(tmp_path: Path) -> None:
    result = run(method="zero_shot", dataset="digits", shots=1, limit=20, output=tmp_path, name="z", quiet=True)
    assert (result.views, result.n_parameters, result.seeded) == (None, 0, False)
    assert [r.accuracy for r in result.rows] == [r.zero_shot for r in result.rows]
    assert not (tmp_path / "z/train.jsonl").exists()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["train", "n_cxt=4"], "error: unknown key 'n_cxt' for method=coop: did you mean n_ctx?"),
        (["train", "method=mapel"], "error: unknown method 'mapel': did you mean maple"),
        (["train", "dataset=digit"], "error: unknown dataset 'digit': did you mean digits"),
        (["train", "dataset=digits", "backbone=ViT-B16"], "error: unknown backbone 'ViT-B16': did you mean ViT-B-16"),
        (
            ["train", "dataset=digits", "backbone=ViT-B-16", "pretrained=opnai"],
            "error: unknown pretrained tag 'opnai' for ViT-B-16: did you mean openai",
        ),
        (["train", "dataset=digits", "shots=1000"], "use shots="),
        (["train", "dataset=eurosat"], "error: dataset 'eurosat' needs data_root"),
        (["train", "dataset=digits", "class_specific=true"], "error: protocol=base_to_new tests classes that were not"),
        (["train", "lr=1e-3", "oops"], "error: 'oops' is not key=value"),
        (["train", "--n-ctx=4"], "error: unknown flag '--n-ctx=4': settings are written n_ctx=VALUE"),
        (["train", "lr=[1"], "error: lr='[1' cannot be read (expected"),
        (["trian"], "error: unknown command 'trian': did you mean train"),
        ([], "vlprompt COMMAND key=value"),
        (["evaluate"], "error: say which run"),
        (["evaluate", "run=nowhere"], "error: no result at nowhere/result.json"),
        (["evaluate", "run=x", "tolerance=-1"], "error: tolerance must be a number"),
        (["evaluate", "rnu=x"], "error: unknown key 'rnu': did you mean run?"),
        (["list"], "error: say what to list"),
        (["list", "method"], "error: there is no list of 'method': did you mean methods?"),
        (["list", "methods", "zzz*"], "error: none of the methods matches 'zzz*'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    argv: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert not out
    assert argv == [] or err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "a refused run leaves nothing behind"


def test_what_there_is_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "kgcoop" in said(capsys, ["list", "methods"])
    assert "digits" in said(capsys, ["list", "datasets", "dig*"])
    assert "base_to_new" in said(capsys, ["list", "protocols"])
    assert "openai" in said(capsys, ["list", "backbones", "ViT-B-16"])
    assert "no substitute for CLIP" in said(capsys, ["list", "backbones", "vlprompt-tiny"])
    assert "maple/base_to_new" in said(capsys, ["list", "recipes", "maple/*"])


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, ["train", "--help", "method=maple"])
    for key in ("method", "shots", "weight_decay", "depth"):
        assert f"│ {key} " in text
    for command in ("train", "evaluate", "list"):
        assert command in said(capsys, ["--help"])
        assert "vlprompt" in said(capsys, [command, "--help"])
    assert __version__ in said(capsys, ["--version"])
    assert __version__ in said(capsys, ["train", "--version"])


def test_an_interrupt_before_the_first_epoch_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vlprompt.data.FeatureBank, "open_or_build", interrupted)
    assert main(["train", *QUICK, f"output={tmp_path}", "ctx_init=a photo of a"]) == 130
    again = "python -m vlprompt.train dataset=digits shots=2 epochs=3 limit=20"
    err = capsys.readouterr().err
    assert f"interrupted; to go on: {again} output={tmp_path} 'ctx_init=a photo of a' resume=true" in err


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_run_that_is_killed_and_interrupted_resumes_to_the_same_weights(tmp_path: Path) -> None:
    settings = ["dataset=digits", "shots=4", "epochs=300", "limit=10", "checkpoint_seconds=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    patience = 600  # seconds, of a machine that is busy with other tests

    def start(name: str, *more: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "vlprompt.train", *settings, f"output={tmp_path}", f"name={name}", *more]
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a job in the background has ignored
        pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
        return subprocess.Popen(argv, env=environment, preexec_fn=heard, **pipes)

    def epochs_done() -> int:
        log = tmp_path / "parts/train.jsonl"
        return len(log.read_text().splitlines()) if log.exists() else 0

    assert main(["train", *settings, f"output={tmp_path}", "name=whole", "--quiet"]) == 0
    for stop in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        goal = epochs_done() + 20  # reached by what this process trains, however late the last was stopped
        process = start("parts", "resume=true")
        deadline = time.monotonic() + patience
        while epochs_done() < goal and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(stop)
        _, err = process.communicate(timeout=patience)
        if stop == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 130
            assert "interrupted; to go on: python -m vlprompt.train" in err
            assert "Traceback" not in err
        assert not (tmp_path / "parts/result.json").exists()
    assert main(["train", *settings, f"output={tmp_path}", "name=parts", "resume=true", "--quiet"]) == 0
    weights = [(tmp_path / name / "learner/learner.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    rows = [read_result(tmp_path / name / "result.json").rows for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    assert not (tmp_path / "parts/checkpoint.safetensors").exists()
