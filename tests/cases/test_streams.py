"""Pipes and devices where a file is meant: reading may never end, and writing would take their place."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

import vlprompt.cli.evaluate
import vlprompt.cli.export
import vlprompt.cli.predict
from vlprompt import VlpromptError
from vlprompt.base.files import atomic_write, read_text
from vlprompt.cli.__main__ import main

if not hasattr(os, "mkfifo"):
    pytest.skip("this system has no named pipes", allow_module_level=True)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.txt")
    return tmp_path / "pipe.txt"


@pytest.fixture
def no_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the learner was loaded")

    for command in (vlprompt.cli.predict, vlprompt.cli.evaluate, vlprompt.cli.export):
        monkeypatch.setattr(command, "load_named_learner", refuse)


@pytest.mark.usefixtures("no_learner")
@pytest.mark.parametrize(
    "words",
    [
        "train dataset=digits config={}",
        "data check csv:{}",
        "data check json:{}",
        "predict learner=x {image} classes={}",
        "evaluate learner=x dataset=digits class_names={}",
        "export learner=x to=matrix classes={}",
    ],
)
def test_a_pipe_is_told_before_it_is_read(words: str, pipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # case: a FIFO for an image, for a list of names, a table and a recipe
    image = pipe.with_name("0.png")
    image.touch()
    assert main([word.format(pipe, image=image) for word in words.split()]) in (1, 2)
    told = capsys.readouterr()
    assert re.search("is (a pipe, a device or a socket, not a|no) file", told.out + told.err)
    assert "Traceback" not in told.err


@pytest.mark.usefixtures("no_learner")
@pytest.mark.parametrize("words", ["predict {image}", "evaluate dataset=digits", "export to=matrix"])
def test_names_that_cannot_be_read_are_told_before_the_learner_is_loaded(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # case: names_with_empty_line.txt
    names, image = tmp_path / "names.txt", tmp_path / "0.png"
    names.write_text("cat\n\ndog\n")
    image.touch()
    key = "class_names" if words.startswith("evaluate") else "classes"
    assert main([*words.format(image=image).split(), "learner=x", f"{key}={names}"]) == 2
    assert f"line 2 of {names} is empty" in capsys.readouterr().err


def test_what_a_shell_hands_over_is_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"cat\ndog\n")
    os.close(writing)
    assert read_text(f"/dev/fd/{reading}") == "cat\ndog\n"
    os.close(reading)


def test_no_file_takes_the_place_of_a_pipe_or_a_device(pipe: Path) -> None:
    # case: disk full in any writer: what was there stays
    for path in (pipe, "/dev/stdout"):
        with pytest.raises(VlpromptError, match="not a file"), atomic_write(path) as temporary:
            temporary.write_text("x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [each.name for each in pipe.parent.iterdir()] == [pipe.name]
