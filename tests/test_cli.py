"""The commands as a user meets them: one run end to end, interruptions, and a sentence for every mistake."""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import new_processes
import pytest

import vlprompt.data
import vlprompt.training.loop
from datasets_registry.listed import in_memory
from vlprompt import VlpromptError, load_split, testing
from vlprompt.base.sealed import seal
from vlprompt.base.settings import differing_setting
from vlprompt.cli.__main__ import main
from vlprompt.evaluation.results import Result, read_result
from vlprompt.evaluation.statistics import interval_over_images
from vlprompt.runs import run
from vlprompt.runs.meta_train import MetaConfig, meta_train
from vlprompt.runs.settings import resolve
from vlprompt.runs.sweep import expand
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


def test_show_says_what_was_run_and_how_to_go_on(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, ["show", "--run", str(finished)])
    row = read_result(finished / "result.json").rows[0]
    low, high = interval_over_images(round(row.accuracy * row.n_images / 100), row.n_images)
    for line in (
        f"95% intervals over test images: base {low:.1f} to {high:.1f}, new ",
        "recipe    coop/base_to_new (released code, KaiyangZhou/CoOp",
        "settings  epochs=3 (200), limit=20 (null)",
        "note      at most 20 images of each test were scored",
        f"file      {finished}/learner",
        f"look      vlprompt inspect run={finished}",
        f"protocol=base_to_new shots=2 limit=20 output={finished.parent} && vlprompt report {finished.parent}",
    ):
        assert line in text
    assert "is not the folder of a run: it has no config.yaml" in said(capsys, ["show", f"run={tmp_path}"], status=2)


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
    assert "already finished, nothing to resume" in text
    assert "harmonic mean" in text
    assert f"vlprompt inspect run={finished}" in text
    assert max(map(len, text.replace(str(finished.parent), "runs").splitlines())) <= 200
    assert (finished / "result.json").stat().st_mtime_ns == before


def test_a_run_on_a_dataset_in_memory_offers_no_command_that_cannot_find_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_split("digits")
    settings = {"protocol": "few_shot", "shots": 1, "limit": 5, "output": str(tmp_path), "quiet": True}
    run(method="zero_shot", dataset=replace(digits, name="of-one-process"), **settings)
    [folder] = [path.parent for path in tmp_path.rglob("result.json")]
    for elsewhere in (False, True):
        if elsewhere:
            monkeypatch.delitem(in_memory, "of-one-process")
        shown = said(capsys, ["show", f"run={folder}"])
        assert "vlprompt predict" in shown
        assert "vlprompt sweep" not in shown
        assert "vlprompt inspect" not in shown
        for command in ("evaluate", "inspect"):
            output = [f"output={tmp_path / 'page'}"] if command == "inspect" else []
            text = said(capsys, [command, f"run={folder}", *output], 2 * elsewhere)
            assert ("a dataset in the memory of a Python process: register" in text) == elsewhere


def test_a_name_that_another_run_has_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, ["train", *QUICK, f"output={finished.parent}", "name=mine", "lr=0.5"], status=2)
    assert "holds a run with other settings (lr=0.002 there, 0.5 here): choose another name, or delete it" in text
    assert differing_setting({"lr": 1, "method": "coop"}, {"lr": 2, "method": "maple"}) == "method"


def test_a_recipe_for_a_deeper_backbone_is_cut_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "method=vpt", *DIGITS, "shots=1", "epochs=1", f"output={tmp_path}", "name=vpt"]
    text = said(capsys, argv)
    assert "instead of the recipe's 12, since vlprompt-tiny has no more layers" in text
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
    (tmp_path / "again/checkpoint.safetensors").write_bytes(b"left by a run that was killed when its result was there")
    assert "starting over: the result in" in said(capsys, argv)
    left = ["config.yaml", "predictions.safetensors", "result.json", "train.jsonl"]
    assert sorted(p.name for p in (tmp_path / "again").glob("*.*")) == left


def test_what_an_interrupted_run_left_is_neither_gone_on_with_nor_dropped_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", *DIGITS, "shots=1", "epochs=2", "checkpoint_seconds=0", f"output={tmp_path}", "name=it"]
    checkpoint = tmp_path / "it/checkpoint.safetensors"

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stop:
        stop.setattr(vlprompt.training.loop.Loop, "_check_last_step", interrupt)
        assert "resume=true" in said(capsys, argv, status=130)
    before = checkpoint.read_bytes()
    shown = said(capsys, ["show", str(tmp_path / "it")])
    assert "interrupted after one epoch, with a checkpoint to continue from" in shown
    assert f"python -m vlprompt.train config={tmp_path}/it/config.yaml resume=true" in shown
    left = f"{tmp_path / 'it'} contains an interrupted run: give resume=true to continue it, or restart=true to"
    assert left in said(capsys, argv, status=2)
    with pytest.raises(VlpromptError, match="resume=true to continue"):
        run(dataset="digits", limit=20, shots=1, epochs=2, checkpoint_seconds=0, output=tmp_path, name="it")
    assert "give one of them" in said(capsys, [*argv, "resume=true", "--restart"], status=2)
    assert checkpoint.read_bytes() == before
    assert "starting over: the checkpoint in" in said(capsys, [*argv, "--restart"])
    assert not checkpoint.exists()
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/checkpoint.safetensors").write_bytes(before)
    with pytest.raises(VlpromptError, match="restart=true to discard it"):  # told before there is a model
        meta_train(None, MetaConfig(output=str(tmp_path / "meta")))
    runs = {"methods": ["coop"], "datasets": ["digits"], "seeds": [1]}
    goes_on = [task.resolved.config.resume for more in ({}, {"restart": True}) for task in expand(runs | more).tasks]
    assert goes_on == [True, False], "a sweep goes on with its own runs unless it is told otherwise"


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
        (["train", "--n-cxt=4"], "error: unknown key 'n_cxt' for method=coop: did you mean n_ctx?"),
        (["train", "--n-cxt", "4"], "error: unknown key 'n_cxt' for method=coop: did you mean n_ctx?"),
        (["train", "-q"], "error: unknown flag '-q': settings are written key=value or --key value; flags are --help"),
        (["train", "--qiuet"], "error: unknown flag '--qiuet': did you mean --quiet?"),
        (["train", "--lr", "--resume"], "error: lr must be a number, not True"),
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


def test_what_there_is_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "eurosat/2750").mkdir(parents=True)
    assert "kgcoop" in said(capsys, ["list", "methods"])
    text = said(capsys, ["list", "datasets", "--data-root", str(tmp_path)])
    lines = {line.split()[0]: line for line in text.splitlines()[1:]}
    for name, about in {
        "digits": ["10", "1,797", "embedded"],
        "eurosat": ["10", "27,000", "found in eurosat"],
        "glyphs/greek": ["24", "2,496", "embedded"],
        "dtd": ["47", "5,640", "to download (625 MB)"],
        "stanford_cars": ["196", "to get by hand"],
    }.items():
        assert all(word in lines[name] for word in about), lines[name]
    assert "base_to_new" in said(capsys, ["list", "protocols"])
    assert "openai" in said(capsys, ["list", "backbones", "ViT-B-16"])
    assert "no substitute for CLIP" in said(capsys, ["list", "backbones", "vlprompt-tiny"])
    recipe = " ".join(said(capsys, ["list", "recipes", "clip_lora/base_to_new"]).split())
    assert "MaxZanella/CLIP-LoRA" in recipe, "the source of the recipe that it extends"
    assert "85.32 / 70.63" in recipe


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, ["train", "--help", "method=maple"])
    for key in ("method", "shots", "weight_decay", "depth"):
        assert f"│ {key} " in text
    for command in ("train", "evaluate", "list"):
        assert command in said(capsys, ["--help"])
        assert "vlprompt" in said(capsys, [command, "--help"])
    assert __version__ in said(capsys, ["--version"])
    assert __version__ in said(capsys, ["train", "--version"])


@pytest.mark.parametrize("module", ["vlprompt", "vlprompt.cli"])
def test_python_runs_it_as_a_module(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vlprompt", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_an_interrupt_before_the_first_epoch_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vlprompt.data.FeatureBank, "open_or_build", interrupted)
    assert main(["train", *QUICK, f"output={tmp_path}", "ctx_init=a photo of a"]) == 130
    again = "python -m vlprompt.train dataset=digits shots=2 epochs=3 limit=20"
    err = capsys.readouterr().err
    assert f"interrupted; to continue: {again} output={tmp_path} 'ctx_init=a photo of a' resume=true" in err


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_run_that_is_killed_and_interrupted_resumes_to_the_same_weights(tmp_path: Path) -> None:
    settings = ["dataset=digits", "shots=4", "epochs=200", "limit=10", "checkpoint_seconds=0"]
    patience = 600  # seconds, of a machine that is busy with other tests
    again = ["train", *settings, f"output={tmp_path}", "name=parts", "resume=true"]

    def epochs_done() -> int:
        log = tmp_path / "parts/train.jsonl"
        return len(log.read_text().splitlines()) if log.exists() else 0

    assert main(["train", *settings, f"output={tmp_path}", "name=whole", "--quiet"]) == 0
    for stop in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        goal = epochs_done() + 5  # reached by what this process trains, however late the last was stopped
        told = tmp_path / f"{stop.name}.txt"
        process = new_processes.start(main, [again], Path(os.devnull), told)
        deadline = time.monotonic() + patience
        while epochs_done() < goal and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.is_alive(), told.read_text()
        os.kill(process.pid, stop)
        process.join(patience)
        if stop == signal.SIGKILL:
            assert process.exitcode == -signal.SIGKILL
        else:
            err = told.read_text()
            assert process.exitcode == 130
            assert "interrupted; to continue: python -m vlprompt.train" in err
            assert "Traceback" not in err
        assert not (tmp_path / "parts/result.json").exists()
    assert main([*again, "--quiet"]) == 0
    weights = [(tmp_path / name / "learner/learner.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    rows = [read_result(tmp_path / name / "result.json").rows for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    assert not (tmp_path / "parts/checkpoint.safetensors").exists()
