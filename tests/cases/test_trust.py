"""What a run leaves behind can be trusted: what was changed, put elsewhere or half written is told, in one sentence."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

import vlprompt.runs.parts
import vlprompt.training.trainer
from vlprompt import PromptClassifier, VlpromptError, create_learner, load_learner, run
from vlprompt.base.files import atomic_write, writing
from vlprompt.base.layout import CHECKPOINT
from vlprompt.base.sealed import seal, write_tensors
from vlprompt.cli.__main__ import main
from vlprompt.evaluation import evaluate_learner
from vlprompt.evaluation.prediction import image_logits, predict_images
from vlprompt.evaluation.results import Predictions, find_results, read_predictions, read_result, write_predictions
from vlprompt.learner import PromptLearner
from vlprompt.report import make_report
from vlprompt.runs.folder import lock_run
from vlprompt.runs.sweep import perform, sweep
from vlprompt.saving.export import export_learner
from vlprompt.testing import make, small_clip
from vlprompt.training import Log, TrainOptions, train

sys.path.insert(0, str(Path(__file__).parent))
from mutations import ODD, places

OLD = Path(__file__).parent / "files/run-0.1.0"
SMALL = {"method": "coop", "dataset": "digits", "shots": 1, "epochs": 2, "views": 1, "limit": 10, "device": "cpu"}


def small(folder: Path, **changes: object) -> dict:
    return SMALL | {"output": str(folder), "quiet": True, "seed": 1} | changes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, ``one`` and ``two``, of seeds 1 and 2."""
    folder = tmp_path_factory.mktemp("made")
    for seed, name in ((1, "one"), (2, "two")):
        run(**small(folder, seed=seed, name=name))
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs"))


def flip(path: Path, place: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one sentence with which a command ends."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    return told


# Hashes


def test_a_flipped_bit_of_a_learner_is_told_wherever_it_is_loaded(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # case: one bit of `learner.safetensors` or `predictions.safetensors` flipped; weights x 1e30
    learner = runs / "one/learner"
    flip(learner / "learner.safetensors")
    for argv in (
        ["predict", f"learner={runs}/one", f"{runs}/x.png"],
        ["evaluate", f"run={runs}/one"],
        ["evaluate", f"learner={learner}", "dataset=digits"],
        ["export", f"learner={runs}/one", "to=matrix", f"output={runs}/m.safetensors"],
        ["push", f"learner={learner}", "repo=me/it", "dry_run=true"],
    ):
        assert "learner.safetensors is damaged" in refused(capsys, *argv)
    with pytest.raises(VlpromptError, match="is damaged"):
        make("coop", n_ctx=4, init_from=str(learner / "learner.safetensors"))


def test_predictions_that_were_flipped_or_are_anothers_are_told(runs: Path) -> None:
    # case: one bit of `learner.safetensors` or `predictions.safetensors` flipped; weights x 1e30
    assert set(read_predictions(runs / "one")) == {"base", "new"}
    shutil.copy(runs / "two/predictions.safetensors", runs / "one")
    with pytest.raises(VlpromptError, match="is not what the file beside it describes"):
        read_predictions(runs / "one")
    flip(runs / "two/predictions.safetensors")
    with pytest.raises(VlpromptError, match="is damaged"):
        read_predictions(runs / "two")


def test_what_one_learner_has_learnt_is_not_anothers(runs: Path) -> None:
    shutil.copy(runs / "two/learner/learner.safetensors", runs / "one/learner")
    with pytest.raises(VlpromptError, match=r"learner.safetensors is not what the file beside it describes"):
        load_learner(runs / "one/learner")


def test_a_changed_class_name_of_a_learner_is_told(runs: Path) -> None:
    file = runs / "one/learner/config.json"
    file.write_text(file.read_text().replace('"zero"', '"zeta"'))
    with pytest.raises(VlpromptError, match=r"config\.json was changed since vlprompt wrote it"):
        load_learner(runs / "one/learner")
    file.write_text(json.dumps(json.loads((runs / "two/learner/config.json").read_text()), indent=7))
    assert load_learner(runs / "two/learner").class_names[0] == "zero"


def test_weights_that_are_far_too_large_are_an_error_and_no_probabilities(tmp_path: Path) -> None:
    # case: one bit of `learner.safetensors` or `predictions.safetensors` flipped; weights x 1e30
    learner = make("coop", n_ctx=2)
    with torch.no_grad():
        learner.prompt.ctx.mul_(1e30)
    learner = load_learner(learner.save_pretrained(tmp_path), clip=learner.clip)  # a hash of its own does not help
    image = Image.new("RGB", (32, 32), (9, 99, 9))
    images = [(Image.new("RGB", (8, 8), (i, i, i)), i % 3) for i in range(12)]
    estimator = PromptClassifier(backbone=learner.clip)
    estimator.learner_, estimator.classes_ = learner, torch.arange(3).numpy()
    for act in (
        lambda: list(predict_images(learner, [image])),
        lambda: image_logits(learner, [image]),
        lambda: estimator.predict_proba([image]),
        lambda: evaluate_learner(learner, Pairs(images)),
    ):
        with pytest.raises(VlpromptError, match=r"coop on \S+ gives NaN or infinity: .* in prompt.ctx"):
            act()


class Pairs(torch.utils.data.Dataset):
    """Pairs as a torch dataset."""

    def __init__(self, pairs: list):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple:
        return self.pairs[index]


@pytest.mark.parametrize("name", ["config.yaml", "learner", "predictions.safetensors"])
def test_what_vlprompt_0_1_0_left_is_still_read(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    old = Path(shutil.copytree(OLD, tmp_path / "s1"))
    result = read_result(old / "result.json")
    assert (result.schema, result.files, result.averages["harmonic_mean"]) == (2, {}, pytest.approx(20.0, abs=0.01))
    if name == "learner":
        assert load_learner(old / name).class_names == ("zero", "one", "two", "three", "four")
    elif name == "config.yaml":
        assert main(["evaluate", f"run={old}", "tolerance=20", "--quiet"]) == 0
    else:
        assert len(read_predictions(old)["base"].label) == result.rows[0].n_images
        classes = (torch.zeros(20, dtype=torch.int32) for _ in range(3))  # as if all had been right
        write_predictions(old, {"base": Predictions(*classes, torch.ones(20))})
        with pytest.raises(VlpromptError, match=r"is of another run than result\.json beside it: base does not fit"):
            read_predictions(old)


# Which run it is


def test_a_result_in_another_runs_folder_is_refused_by_all_who_read_it(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # case: seed 1's `result.json` in seed 2's folder
    shutil.copy(runs / "one/result.json", runs / "two")
    told = "is of another run than config.yaml beside it (seed=1 in the result, 2 in the settings)"
    settings = [f"{key}={value}" for key, value in small(runs, seed=2, name="two").items() if key != "quiet"]
    for argv in (["report", runs], ["evaluate", f"run={runs}/two"], ["train", *settings, "resume=true"]):
        assert told in refused(capsys, *argv)
    (runs / "two/config.yaml").unlink()
    assert "is the result of another run (seed=1 there, 2 here)" in refused(capsys, "train", *settings, "resume=true")


def test_a_sweep_keeps_no_strangers_result_and_does_the_other_runs(tmp_path: Path) -> None:
    # case: seed 1's `result.json` in seed 2's folder
    settings = {key: value for key, value in small(tmp_path).items() if key not in ("seed", "quiet")}
    first, second = (Path(each.folder) for each in sweep(settings | {"seeds": [1, 2]}))
    shutil.copy(first / "result.json", second)
    told = sweep(settings | {"seeds": [1, 2, 3]})
    assert [each.status for each in told] == ["kept", "failed", "done"]
    assert "is of another run" in told[1].message


def test_a_locked_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # case: two `train` on one folder
    settings = [f"{key}={value}" for key, value in small(tmp_path, name="it").items() if key != "quiet"]
    with lock_run(tmp_path / "it"):
        assert "is in use: another process is doing that run" in refused(capsys, "train", *settings)
        assert not (tmp_path / "it").exists()
    assert main(["train", *settings, "--quiet"]) == 0


# Going on


@contextmanager
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stop runs after their first epoch, with a checkpoint."""

    def after_first(self: Log, record: dict) -> None:
        if record["epoch"]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vlprompt.training.trainer.Log, "write", after_first)
        with pytest.raises(KeyboardInterrupt):
            yield


def paint(folder: Path, shift: int) -> None:
    """Two classes of images whose files have the same size and date whatever their colours."""
    for i in range(20):
        path = folder / f"{'cat' if i % 2 else 'dog'}/{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * i, shift, 0)).save(path)
        os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("method", ["coop", "vpt"])
def test_images_that_changed_meanwhile_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    # case: `local-dir:` weights or `folder:` pixels changed between kill and resume
    settings = small(tmp_path, dataset=f"folder:{tmp_path}/photos", protocol="few_shot", method=method, name=method)
    settings |= {"checkpoint_seconds": 0}
    paint(tmp_path / "photos", 0)
    with stopped(monkeypatch):
        run(**settings)
    paint(tmp_path / "photos", 200)
    with pytest.raises(VlpromptError, match=r"checkpoint.* belongs to training on other images"):
        run(**settings, resume=True)
    paint(tmp_path / "photos", 0)
    assert run(**settings, resume=True).seed == 1


def test_a_backbone_that_changed_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # case: `local-dir:` weights or `folder:` pixels changed between kill and resume
    settings = small(tmp_path, name="it", checkpoint_seconds=0)
    with stopped(monkeypatch):
        run(**settings)
    original = vlprompt.runs.parts.load_clip

    def changed(*args: object, **options: object) -> object:
        clip = original(*args, **options)
        clip.preprocess_cfg["mean"] = (0.4, 0.4, 0.4)
        return clip

    monkeypatch.setattr(vlprompt.runs.parts, "load_clip", changed)
    with pytest.raises(VlpromptError, match="belongs to training on another backbone"):
        run(**settings, resume=True)


def test_results_of_changed_images_are_not_compared_in_silence(tmp_path: Path) -> None:
    # case: `local-dir:` weights or `folder:` pixels changed between kill and resume
    settings = {"dataset": f"folder:{tmp_path}/photos", "protocol": "few_shot", "seeds": [1], "output": str(tmp_path)}
    settings |= {"methods": ["zero_shot"], "shots": 1, "epochs": 1, "device": "cpu"}
    paint(tmp_path / "photos", 0)
    sweep(settings)
    paint(tmp_path / "photos", 200)
    with pytest.warns(UserWarning, match=r"dataset 'folder:.*photos' was another one for .* than for"):
        assert sorted(each.status for each in sweep(settings | {"methods": ["zero_shot", "coop"]}))


def test_a_resumed_run_takes_the_threads_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # case: resume with another number of threads
    settings = small(tmp_path, name="it", checkpoint_seconds=0, epochs=3)
    with stopped(monkeypatch):
        run(**settings, threads=1)
    used = []
    original = PromptLearner.loss
    monkeypatch.setattr(PromptLearner, "loss", lambda *a: used.append(torch.get_num_threads()) or original(*a))
    before = torch.get_num_threads()
    run(**settings | {"quiet": False, "threads": 2}, resume=True)
    assert torch.get_num_threads() == before
    assert set(used) == {1}
    assert "continuing with 1 threads as before, not 2" in capsys.readouterr().out


def test_weights_that_the_last_step_left_useless_are_told_by_training() -> None:
    # case: `lr=1e8` diverging in the last step
    learner = create_learner("coop", small_clip(), ["cat", "sea"], n_ctx=2)
    batch = {"image_features": torch.randn(4, 64), "label": torch.tensor([0, 1, 0, 1])}
    options = TrainOptions(epochs=1, lr=1e30, warmup_epochs=0)
    with pytest.raises(VlpromptError, match=r"after the last step the loss part '\w+' is nan .*try a smaller lr"):
        train(learner, lambda epoch: [batch], options)


# Fields


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("rows",), ["one"], "rows: field '0' is not right"),
        (("limit",), "x", "field 'limit' is not right"),
        (("rows", 0, "per_class", "correct"), 1e308, "rows[0], per_class: field 'correct' is not right"),
        (("rows", 0, "per_class", "correct"), [9] * 5, "has more in 'correct' than images"),
        (("rows", 0, "per_class", "class"), ["one"], "the lists of field 'per_class' differ in length"),
        (("rows", 1, "accuracy"), float("nan"), "rows[1]: field 'accuracy' is not right"),
        (("rows", 1, "accuracy"), 101.5, "rows[1]: field 'accuracy' is not right"),
        (("rows", 1, "n_images"), True, "rows[1]: field 'n_images' is not right"),
        (("shots",), None, "field 'shots' is not right"),
        (("averages",), {"harmonic_mean": "high"}, "averages: field 'harmonic_mean' is not right"),
        (("config",), [], "field 'config' is not right"),
    ],
)
@pytest.mark.parametrize("sealed", [True, False], ids=["hash made anew", "of 0.1.0"])
def test_a_field_of_another_kind_is_named_with_its_file(
    tmp_path: Path, place: tuple, value: object, told: str, sealed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    # case: `result.json` with `rows: [one]`, `limit: "x"`, `per_class.correct: 1e308`
    old = Path(shutil.copytree(OLD, tmp_path / "s1"))
    data = json.loads((old / "result.json").read_text())
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    (old / "result.json").write_text(json.dumps(seal(data | {"schema": 3}) if sealed else data))
    for argv in (["report", tmp_path], ["evaluate", f"run={old}"]):
        sentence = refused(capsys, *argv)
        assert told in sentence
        assert f"{old}/result.json" in sentence


def test_no_value_of_a_result_makes_a_traceback(tmp_path: Path) -> None:
    # case: `result.json` with `rows: [one]`, `limit: "x"`, `per_class.correct: 1e308`
    text, rng = (OLD / "result.json").read_text(), random.Random(3)
    shutil.copy(OLD / "predictions.safetensors", tmp_path)
    for _ in range(150):
        data = json.loads(text)
        holder, key = rng.choice(list(places(data)))
        holder[key] = rng.choice(ODD)
        (tmp_path / "result.json").write_text(json.dumps(data))
        with contextlib.suppress(VlpromptError):
            make_report([tmp_path]).text("markdown")


# Writing


@contextmanager
def no_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk that takes no more bytes, for native writers too; the system calls it a file too large."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "file.safetensors": lambda path, runs: write_tensors(path, {"a": torch.ones(100)}),
    "predictions.safetensors": lambda path, runs: write_predictions(path.parent, read_predictions(runs / "one")),
    "result.json": lambda path, runs: read_result(runs / "one/result.json").write(path),
    "train.jsonl": lambda path, runs: Log(path, []).write({"loss": 1.0, "more": "x" * 100}),
    "learner.safetensors": lambda path, runs: make("coop", n_ctx=2).save_pretrained(path.parent),
    "report.md": lambda path, runs: make_report([runs]).write(path),
    "report.html": lambda path, runs: make_report([runs]).write(path),
    "head.safetensors": lambda path, runs: export_learner(make("coop", n_ctx=2), "matrix", path),
    "head.pt2": lambda path, runs: export_learner(make("coop", n_ctx=2), "torch", path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(
    made: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # case: disk full in any writer
    path = tmp_path / "there" / name
    path.parent.mkdir()
    path.write_bytes(b"before")
    with no_room(monkeypatch), pytest.raises(VlpromptError, match=rf"cannot write \S*{name}: .*(large|full)"):
        WRITERS[name](path, made)
    assert name == "train.jsonl" or path.read_bytes() == b"before"
    assert [each.name for each in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_every_reason_not_to_write_is_told(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # case: disk full in any writer
    def fail(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code), str(tmp_path / "file"))

    monkeypatch.setattr(vlprompt.base.files.os, "replace", fail)
    told = f"cannot write {tmp_path}/file: {os.strerror(code).lower()}"
    with pytest.raises(VlpromptError, match=told), atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_of_writing_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path / "report.md"):
        (tmp_path / "elsewhere/photo.jpg").read_bytes()
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "file"):
        _ = 1 / 0


def test_a_failure_that_cannot_be_written_down_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # case: disk full in any writer
    [task] = vlprompt.runs.sweep.expand(small(tmp_path)).tasks
    with no_room(monkeypatch):
        outcome = perform(task)
    assert outcome.status == "failed"
    assert "cannot write" in outcome.message


def test_what_a_killed_process_left_of_a_file_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / "it/learner/.config.json.abcd1234.tmp"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    run(**small(tmp_path, name="it"))
    assert not left.exists()
    assert math.isfinite(find_results([tmp_path])[0][1].averages["harmonic_mean"])
    assert not (tmp_path / "it" / CHECKPOINT).exists()
