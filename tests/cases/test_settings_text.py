"""Settings that stand for something else, have no size, or are not what they seem: one sentence each, before work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from datasets_registry.card import CARDS, read_card
from vlprompt import VlpromptError
from vlprompt.base.settings_text import read_settings, read_value
from vlprompt.cli.__main__ import main
from vlprompt.cli._shared import parse
from vlprompt.cli.sweep import read_spec
from vlprompt.data.templates import resolve_templates
from vlprompt.learner import make_config
from vlprompt.report.published import FIGURES
from vlprompt.runs.settings import resolve
from vlprompt.training.shipped_recipes import CONFIGS

SECRET = "the-home-of-a-user"


def refusal(action: Any, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(VlpromptError) as error:
        action(*arguments, **settings)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 900
    return str(error.value)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path


LOOKED_UP = ["${oc.env:SECRET}", "${lr}", "a ${oc.env:SECRET} of a", "\\${lr}", "${"]


@pytest.mark.parametrize("text", LOOKED_UP)
@pytest.mark.parametrize("key", ["lr", "name", "ctx_init", "templates", "objective", "method", "dataset", "unknown"])
def test_nothing_is_looked_up_in_settings(
    key: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # case: `lr=${oc.env:HOME}`, `name: ${oc.env:HOME}`, `${lr}`, `???` in overrides and files
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.chdir(tmp_path)
    expected = f"{key} has ${{"
    assert expected in refusal(resolve, {key: text})
    assert expected in refusal(resolve, {key: [text, {"a": text}]})
    file = written(tmp_path / "mine.yaml", f"{key}: ['{text}']\n")
    assert expected in refusal(resolve, {"config": file})
    assert expected in refusal(read_spec, file)
    assert expected in refusal(read_card, file)
    for argv in (["train", f"{key}={text}"], ["sweep", f"{key}={text}"], ["sweep", "spec=mine.yaml"]):
        assert main(argv) == 2
        said = capsys.readouterr()
        assert expected in said.err
        assert SECRET not in said.out + said.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine.yaml"]


@pytest.mark.parametrize("command", ["evaluate", "predict", "export", "push", "import-checkpoint", "report", "bench"])
def test_every_command_refuses_what_stands_for_something_else(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    # case: `lr=${oc.env:HOME}`, `name: ${oc.env:HOME}`, `${lr}`, `???` in overrides and files
    for value, sentence in (("${oc.env:HOME}", "learner has ${oc.env:HOME}"), ("???", "learner is ???")):
        assert main([command, *(["x.png"] if command == "predict" else []), f"learner={value}"]) == 2
        assert sentence in capsys.readouterr().err


def test_settings_of_a_learner_made_in_python_are_not_looked_up_either() -> None:
    # case: `lr=${oc.env:HOME}`, `name: ${oc.env:HOME}`, `${lr}`, `???` in overrides and files
    assert "ctx_init has ${oc.env:HOME}" in refusal(make_config, "coop", {"ctx_init": "${oc.env:HOME}"})
    assert "objective has ${x}" in refusal(make_config, "coop", {"objective": ["ce", "${x}"]})
    assert "ctx_init is ???" in refusal(make_config, "coop", {"ctx_init": "???"})


def test_a_dollar_sign_and_what_a_file_of_templates_holds_are_words(tmp_path: Path) -> None:
    # case: `lr=${oc.env:HOME}`, `name: ${oc.env:HOME}`, `${lr}`, `???` in overrides and files
    assert resolve({"ctx_init": "worth $5 {x}"}).config.ctx_init == "worth $5 {x}"
    file = written(tmp_path / "mine.txt", "a {} for ${oc.env:HOME}\n")
    assert resolve_templates(str(file), None) == ("a {} for ${oc.env:HOME}",)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"seed": int("9" * 4000)}, "seed is a number of more than 30 digits"),
        ({"seed": "9" * 5000}, "seed must be a whole number, not '99999"),
        ({"seed": 2**32}, "seed must be at most 4,294,967,295"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"seed": 1e3}, "seed must be a whole number, not 1000.0"),
        ({"epochs": 10**30}, "epochs is a number of more than 30 digits"),
        ({"epochs": 10**9}, "epochs must be at most 1,000,000"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 10**9}, "batch_size must be at most 1,000,000"),
        ({"limit": -1}, "limit must be at least 1, not -1"),
        ({"workers": 10**6}, "workers must be at most 1,024"),
        ({"shots": 1e9}, "shots must be a whole number"),
        ({"ctx_init": "a" * 4_000_000}, "ctx_init has 4,000,000 characters"),
        ({"ctx_init": "a\0b"}, "ctx_init has the character '\\x00'"),
        ({"dataset": "folder:/a\0b"}, "dataset has the character '\\x00'"),
        ({"dataset": "\x1b[31m"}, "dataset has the character '\\x1b'"),
        ({"dataset": " "}, "dataset is empty"),
        ({"data_root": ""}, "data_root is empty"),
        ({"config": ""}, "config is empty"),
        ({"name": "../elsewhere"}, "name must be a folder in runs"),
        ({"name": "/etc"}, "name must be a folder in runs"),
        ({"name": "a" * 300}, "name must be a folder in runs, of at most 200 characters"),
        ({"templates": {"a {}": 1}}, "templates must be a text or a list of texts"),
        ({"targets": [1, 2]}, "targets must be a text or a list of texts"),
        ({"config": "/"}, "/ cannot be read as YAML: Is a directory"),
        ({"config": "nowhere.yaml"}, "no such file: nowhere.yaml"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) and "seed" not in value else "",
)
def test_odd_values_are_told_before_any_work(settings: dict, sentence: str) -> None:
    # case: seed of 5,000 digits, `by: 3` in a recipe, label `²`, encrypted zip, `Content-Length: abc`, …
    assert sentence in refusal(resolve, settings)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("by: 3", "by must have the form {shots: {1: {epochs: 50}}}, not 3"),
        ("by: {shots: 3}", "by must have the form"),
        ("by: {shots: {16: 3}}", "by must have the form"),
        ("by: {shots: {16: {by: 3}}}", "by must have the form"),
        ("by: [shots]", "by must have the form"),
        ("by: {nope: {1: {epochs: 2}}}", "unknown key 'nope' below by"),
        ("by: {shots: {16: {epochz: 2}}}", "unknown key 'epochz'"),
        ("", "must hold settings, one 'key: value' a line, and is empty"),
        ("only words", "must hold settings"),
        ("- lr", "must hold settings"),
        ("lr: 1\nlr: 2", "it has the key 'lr' twice"),
        ("lr: {a: 1, a: 2}", "it has the key 'a' twice"),
        ("\tlr: 1", "found character '\\t'"),
        ("a: &a [x, x]\nb: [*a, *a]", "it has an anchor or alias"),
        ("lr: !!python/object/apply:os.mkdir [x]", "has the tag tag:yaml.org,2002:python/object/apply:os.mkdir"),
        ("lr: 1\n---\nlr: 2", "found another document"),
        ("lr: 1\0", "unacceptable character"),
        ('name: "\\0"', "name has the character '\\x00'"),
        ('name: "\\ud800"', "name has the character '\\ud800'"),
        (b"\xff\xfelr", "it is not UTF-8"),
        ("[" * 50_000, "more than 20 deep"),
        ("seed: " + "9" * 5000, "it has a number of 5,000 digits"),
        ("? [lr]\n: 1", "a key of it is a list or a group"),
        ("ctx_init: " + "a " * 2**20, "has more than 1 MB"),
        ("ctx_init: " + "a" * 20_000, "ctx_init has 20,000 characters"),
        ("dataset: {a: b}", "dataset must be a text, not {'a': 'b'}"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_odd_files_are_told_before_any_work(content: str | bytes, sentence: str, tmp_path: Path) -> None:
    # case: seed of 5,000 digits, `by: 3` in a recipe, label `²`, encrypted zip, `Content-Length: abc`, …
    assert sentence in refusal(resolve, {"config": written(tmp_path / "mine.yaml", content)})


def test_a_recipe_without_a_case_for_a_list_goes_on_and_a_byte_order_mark_is_no_letter(tmp_path: Path) -> None:
    assert resolve({"config": written(tmp_path / "a.yaml", "by: {objective: {ce: {epochs: 2}}}")}).config.epochs == 50
    assert resolve({"config": written(tmp_path / "b.yaml", "\ufefflr: 0.5")}).config.lr == 0.5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dataset="], "dataset= has no value"),
        (["lr=1", "lr=2"], "lr is given twice"),
        (["=3"], "'=3' has no valid key before its ="),
        (["a.b=3"], "'a.b=3' has no valid key"),
        (["lr[0]=3"], "'lr[0]=3' has no valid key"),
        (["dataset=\udcff"], "dataset is not UTF-8"),
        (["lr=[1"], "lr='[1' cannot be read (expected"),
        (["lr=*a"], "anchor or alias"),
        (["seed=" + "9" * 5000], "a number of 5,000 digits"),
    ],
    ids=str,
)
def test_odd_arguments_are_told(arguments: list[str], sentence: str) -> None:
    # case: seed of 5,000 digits, `by: 3` in a recipe, label `²`, encrypted zip, `Content-Length: abc`, …
    assert sentence in refusal(parse, arguments)


def test_what_is_no_decimal_number_stays_the_text_that_was_written() -> None:
    texts = [
        "0x1F",
        "12:30",
        "007",
        "1_000",
        "2024-01-01",
        "photo #1",
        "#1",
        "café",
        "e3",
        "wds:a/{000..009}.tar",
        "~/x",
    ]
    assert [read_value("key", text) for text in texts] == texts
    numbers = {"4": 4, "-3": -3, "1e-3": 1e-3, "2.5": 2.5, ".5": 0.5, "2E5": 2e5, "yes": True, "null": None}
    assert {text: read_value("key", text) for text in numbers} == numbers
    assert read_value("key", "[0x1F, 'yes', 12:30, 3]") == ["0x1F", "yes", "12:30", 3]


def test_what_ships_is_read_alike_by_the_faster_parser() -> None:
    shipped = [*CONFIGS.rglob("*.yaml"), *CARDS.glob("*.yaml"), *FIGURES.glob("*.yaml")]
    assert len(shipped) > 100
    for path in shipped:
        assert repr(read_settings(path, shipped=True)) == repr(read_settings(path)), path


SAYS = {"shots": 4, "ctx_init": "a photo of a", "text_chunk": 8}


@pytest.mark.parametrize(
    ("line", "read"),
    [
        (["shots=4", "ctx_init=a photo of a", "text_chunk=8"], SAYS),
        (["--shots", "4", "--ctx-init", "a photo of a", "--text_chunk", "8"], SAYS),
        (["--shots=4", "--ctx-init=a photo of a", "--text-chunk=8", "--quiet"], SAYS),
        (["--lr", "-1", "--seed", "-.5"], {"lr": -1, "seed": -0.5}),
        (["--resume", "lr=1"], {"resume": True, "lr": 1}),
        (["--resume", "--lr", "1"], {"resume": True, "lr": 1}),
        (["--resume", "false", "--download"], {"resume": False, "download": True}),
        (["--name=-x", "--optimizer", "adamw(eps=1e-4)", "--ctx-init=a=b"], None),
        (["--methods", "[coop,maple]"], {"methods": ["coop", "maple"]}),
        (["plugin=noisy", "--plugin=other", "lr=1"], "plugin is given twice"),
        (["--plugin", "noisy", "lr=1"], {"lr": 1}),
        (["--lr", "1", "lr=2"], "lr is given twice"),
        (["--a.b", "3"], "'a.b=3' has no valid key"),
        (["--lr", ""], "lr= has no value"),
        (["--", "lr=1"], "'lr=1' is not key=value"),
        (["--versio"], "unknown flag '--versio': did you mean --version?"),
    ],
    ids=str,
)
def test_a_setting_is_written_as_one_likes(line: list[str], read: Any) -> None:
    if isinstance(read, str):
        assert read in refusal(parse, line)
    else:
        arguments = parse(line)
        assert arguments.settings == (read or {"name": "-x", "optimizer": "adamw(eps=1e-4)", "ctx_init": "a=b"})
        assert parse(arguments.again()) == arguments


def test_words_stand_beside_settings_of_any_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x=1.png").touch()
    deep = parse(["check", "--deep", "pacs", "--lines", "3"], words=2, switches=["deep"])
    assert (deep.words, deep.settings) == (("check", "pacs"), {"deep": True, "lines": 3})
    images = parse(["--top", "3", "x=1.png", "a.png", "--", "-b.png"], words=9, is_word=os.path.exists)
    assert (images.words, images.settings) == (("x=1.png", "a.png", "-b.png"), {"top": 3})


def test_all_that_a_run_writes_is_read_again(tmp_path: Path) -> None:
    settings = {"ctx_init": "worth $5: #1 of a", "templates": ["0x1F {}", "yes {}: no"], "name": "007", "lr": 1e-7}
    mine = resolve(settings)
    again = resolve({"config": written(tmp_path / "config.yaml", mine.to_yaml())})
    assert again.id == mine.id
    assert read_settings(tmp_path / "config.yaml")["name"] == "007"
