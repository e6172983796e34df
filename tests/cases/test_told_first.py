"""What makes a run impossible is told before a backbone is loaded, and before an image is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Hub, serve, visit
from PIL import Image

import vlprompt.runs.parts
from vlprompt import VlpromptError, create_learner, load_learner
from vlprompt.cli.__main__ import main
from vlprompt.runs import run
from vlprompt.runs.sweep import expand
from vlprompt.testing import small_clip


def refusal(action: Any, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(VlpromptError) as error:
        action(*arguments, **settings)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    return str(error.value)


@pytest.fixture
def no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(vlprompt.runs.parts, "load_clip", refuse)


def photos(folder: Path, classes: int) -> str:
    numbers = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"thing {'abcdef'[label]}").mkdir(parents=True)
        for i in range(6):
            pixels = numbers.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"thing {'abcdef'[label]}/{i}.png")
    return f"folder:{folder}"


@pytest.mark.parametrize(
    ("classes", "protocol", "half", "only"),
    [
        (2, "base_to_new", "base", "thing a"),
        (3, "base_to_new", "new", "thing c"),
        (2, "generalized", "base", "thing a"),
    ],
)
def test_too_few_classes_for_halves_are_told_first(
    classes: int, protocol: str, half: str, only: str, tmp_path: Path, no_backbone: None
) -> None:
    # case: two classes under `base_to_new`
    dataset = photos(tmp_path / "photos", classes)
    for shots in (1, 16):
        said = refusal(run, dataset=dataset, protocol=protocol, shots=shots, output=tmp_path / "runs", quiet=True)
        assert f"its {half} half has only '{only}', with no other class to tell it from: use protocol=few_shot" in said
    assert not (tmp_path / "runs").exists()


def test_two_classes_are_enough_for_few_shot(tmp_path: Path) -> None:
    # case: two classes under `base_to_new`
    dataset = photos(tmp_path / "photos", 2)
    settings = {"epochs": 1, "views": 1, "n_ctx": 2, "ctx_init": None, "quiet": True, "output": tmp_path / "runs"}
    assert run(dataset=dataset, protocol="few_shot", shots=1, **settings).rows[0].n_classes == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"selection": "fewshot_val", "method": "promptsrc"}, "aggregator=gpa(mean=15, std=1) makes one set"),
        ({"format_spread": "nowhere.txt"}, "'nowhere.txt' is not a template"),
        ({"objective": ["ce", "nope"]}, "unknown objective 'nope'"),
        ({"gradient_rule": "nope"}, "unknown gradient rule 'nope'"),
        ({"aggregator": "nope"}, "unknown aggregator 'nope'"),
        ({"output": "file"}, "cannot be created: "),
        ({"output": "file/below"}, "is not a folder"),
    ],
    ids=str,
)
def test_what_is_known_from_settings_and_data_is_told_first(
    settings: dict, sentence: str, tmp_path: Path, no_backbone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert sentence in refusal(run, **({"dataset": "digits", "quiet": True} | settings))


def test_a_selection_without_validation_images_is_told_first(tmp_path: Path, no_backbone: None) -> None:
    for part in ("train", "test"):
        photos(tmp_path / "photos" / part, 4)
    said = refusal(run, dataset=f"folder:{tmp_path / 'photos'}", shots=1, selection="fewshot_val", quiet=True)
    assert "selection=fewshot_val needs validation images" in said


def test_learnt_parts_beyond_memory_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # case: seed of 5,000 digits, …
    assert main(["train", "method=vpt", "dataset=digits", "n_ctx=4000000000000", f"output={tmp_path}"]) == 2
    assert (
        "4000000000000 visual tokens per layer were asked for, and at most 10000 are allowed" in capsys.readouterr().err
    )
    assert main(["train", "method=proda", "dataset=digits", "n_prompts=4000000000000", f"output={tmp_path}"]) == 2
    assert "there is not enough memory for the learnt parts of proda with these settings" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["a " * 4_999, "a" * 9_999, "photo " * 300], ids=["letters", "a word", "words"])
def test_a_context_longer_than_the_model_reads_is_told(words: str) -> None:
    # case: seed of 5,000 digits, …, `ctx_init` of 4 MB
    assert "the text tower of custom reads 77 tokens" in refusal(
        create_learner, "coop", small_clip(), ["cat", "dog"], ctx_init=words
    )


@pytest.mark.parametrize("seeds", [[[1]], {"a": 1}])
def test_axes_of_a_sweep_hold_plain_values(seeds: Any) -> None:
    assert "seeds must be a list of plain values" in refusal(expand, {"methods": ["coop"], "seeds": seeds})


ODD = [
    (["evaluate", "learner=x", "dataset=digits", "limit=abc"], "limit must be a whole number"),
    (
        ["evaluate", "learner=x", "dataset=digits", "save_predictions=x.zip"],
        "predictions are written as .csv or .parquet",
    ),
    (["evaluate", "learner=x", "dataset=digits", "output=."], "output=. is a folder"),
    (["evaluate", "learner=x", "dataset=digits", "follow_links=3"], "follow_links must be true or false"),
    (["evaluate", "learner=x", "dataset=digits", "on_unreadable=x"], "unknown on_unreadable 'x'"),
    (["evaluate", "learner=.", "dataset=digits", "pretrained=x"], "pretrained needs a backbone"),
    (["predict", "learner=x", "x.png", "threads=100000"], "threads must be a whole number of at most 1,024"),
    (["push", "learner=x", "repo=me/it", "private=3"], "private must be true or false"),
    (["data", "check", "digits", "lines=x"], "lines must be a whole number"),
    (["data", "check", "digits", "deep=x"], "deep must be true or false"),
    (["sweep", "methods=[coop]", "plan=maybe"], "plan must be true or false"),
    (["sweep", "methods=[coop]", "executor=[a]"], "unknown executor '['a']'"),
    (["sweep", "methods=[coop]", "executor=processes", "processes=x"], "processes must be a whole number"),
    (["sweep", "methods=[coop]", "executor=processes", "processes=2", "devices=cuda:0"], "devices must be a list"),
    (["sweep", "methods=[coop]", "executor=ray", "cpus=x"], "cpus must be a number"),
    (["bench", "repeats=x"], "repeats must be a whole number"),
    (["bench", "output=."], "output=. is a folder"),
    (
        ["import-checkpoint", "x", "method=coop", "backbone=ViT-B-32", "checkpoint=3", "classes=[a,b]", "output=o"],
        "at 3",
    ),
]
COMMANDS = [
    "train",
    "evaluate",
    "predict",
    "export",
    "push",
    "import-checkpoint",
    "report",
    "sweep",
    "data",
    "list",
    "bench",
]


@pytest.mark.parametrize(
    ("argv", "sentence"), ODD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_settings_of_commands_are_checked_for_their_kind(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_misspelt_empty_and_repeated_keys(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for odd in (["unknwon=3"], ["dataset="], ["lr=1", "lr=2"], ["--nope"], ["dataset=\udcff"], ["a.b=3"]):
        assert main([command, *odd]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1


@pytest.mark.parametrize("length", ["abc", "-1", "99999999999"])
def test_answers_of_a_hub_that_make_no_sense_are_one_sentence(
    length: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # case: seed of 5,000 digits, …, `Content-Length: abc`, …
    with serve() as hub:
        visit(hub, tmp_path / "hub", monkeypatch)
        hub.repos["me/it"] = {"private": False, "files": {"config.json": b"{}", "learner.safetensors": b"x"}}
        monkeypatch.setattr(Hub, "content_length", length, raising=False)
        assert "hf://me/it" in refusal(load_learner, "hf://me/it")
