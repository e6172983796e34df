"""What shells complete: the names that there are, and the keys that commands take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import datasets_registry
from datasets_registry.listed import list_collections, list_datasets
from vlprompt.base.settings_text import read_value
from vlprompt.cli import _candidates
from vlprompt.cli.__main__ import commands, main, module
from vlprompt.cli._candidates import FIXED, PARTS, candidates
from vlprompt.cli.completion import SCRIPTS
from vlprompt.clip.catalog import tags_by_backbone
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.learner import METHODS
from vlprompt.runs.settings import resolve
from vlprompt.training.shipped_recipes import list_recipes

CARDS = Path(datasets_registry.__file__).parent / "cards"


def shipped(registry) -> list[str]:
    return sorted(name for name in registry if registry.get(name).__module__.startswith("vlprompt."))


def test_names_are_those_that_are_registered() -> None:
    def values(key: str, *before: str) -> list[str]:
        return sorted(each.partition("=")[2] for each in candidates(["train", *before, f"{key}="]))

    assert values("method") == shipped(METHODS)
    datasets = set(values("dataset"))
    assert datasets <= {*list_datasets("[!+]*"), *list_collections()}  # to which other tests of this process may add
    assert datasets >= {card.stem for card in CARDS.glob("*.yaml")} - {"glyphs"}  # which go by their sets
    assert datasets >= {"glyphs/symbols", "mini11", "coop11"}
    assert values("protocol") == sorted(PROTOCOLS)
    assert set(values("backbone")) == {"vlprompt-tiny", *tags_by_backbone()}
    assert set(values("pretrained", "backbone=RN50")) == {*tags_by_backbone()["RN50"], "random"}
    assert candidates(["list", "recipes", "maple/"]) == [name for name in list_recipes() if name.startswith("maple/")]
    for key, (file, registry) in PARTS.items():
        found = getattr(import_module(f"vlprompt.{file.replace('/', '.')}"), registry)
        assert set(_candidates._values(key, "", {}, [])) == set(shipped(found)), key
    for key, fixed in FIXED.items():
        assert all(resolve({key: read_value(key, value)}) for value in fixed), key


def test_every_key_of_a_command_is_offered() -> None:
    for name in commands():
        known = getattr(module(name), "KEYS", ())
        lines = [[name, verb, "x"] for verb in known] if isinstance(known, dict) else [[name]]
        for line in lines:
            keys = known[line[1]] if isinstance(known, dict) else known
            also = {"run"} if name == "predict" else set()  # what another key may be called as well
            assert {f"{key}=" for key in keys if key not in also} <= set(candidates([*line, ""])), line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["tr"], ["train"]),
        (["train", "method=kgc"], ["method=kgcoop"]),
        (["train", "--method", "kgc"], ["kgcoop"]),
        (["train", "--method=kgc"], ["--method=kgcoop"]),
        (["train", "--text-ch"], ["--text-chunk"]),
        (["train", "method=maple", "vision_c"], []),
        (["sweep", "methods=[coop,kgc"], ["methods=[coop,kgcoop"]),
        (["sweep", "executor=r"], ["executor=ray"]),
        (["train", "resume=t"], ["resume=true"]),
        (["data", "inf"], ["info"]),
        (["data", "check", "oxf"], ["oxford_pets"]),
        (["data", "check", "pacs", "follow_l"], ["follow_links="]),
        (["export", "to=on"], ["to=onnx"]),
        (["bench", "heads", "wid"], ["width="]),
        (["bench", "wid"], []),
        (["list", "da"], ["datasets"]),
        (["predict", "--output", ""], []),
        (["nothing", "x"], []),
    ],
    ids=" ".join,
)
def test_a_line_is_gone_on_with(line: list[str], expected: list[str]) -> None:
    assert candidates(line) == expected


LIBRARIES = {key: value for key, value in os.environ.items() if key.startswith("LD_")}  # where shells find theirs
ASKED = """
source /dev/stdin <<< "$1"
vlprompt() { "$PYTHON" -m vlprompt.cli "$@"; }
ask() {
    COMP_LINE=$1 COMP_POINT=${#1}
    COMP_WORDS=("${@:2}") COMP_CWORD=$(($# - 2))
    _vlprompt
    (IFS=,; echo "${COMPREPLY[*]}")
}
ask "vlprompt tr" vlprompt tr
ask "vlprompt train method=kgc" vlprompt train method = kgc
ask "vlprompt train dataset=glyphs/gree" vlprompt train dataset = glyphs/gree
ask "vlprompt data check --de" vlprompt data check --de
complete -p vlprompt
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_takes_what_is_offered() -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", ASKED, "bash", SCRIPTS["bash"]],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    told = ["train", "kgcoop", "glyphs/greek", "--deep", "complete -o default -F _vlprompt vlprompt"]
    assert (done.stdout.splitlines(), done.stderr) == (told, "")


FISH = """
function vlprompt; $PYTHON -m vlprompt.cli $argv; end
echo $SCRIPT | string replace --all "command " "" | source
for line in "vlprompt tr" "vlprompt train method=kgc" "vlprompt data check --de" "vlprompt train --optimizer adamw"
    complete -C $line
end
"""
ZSH = """
vlprompt() { $=PYTHON -m vlprompt.cli "$@" }
compadd() { print -r -- "${@[-1]}" }
compdef() { }
eval $SCRIPT
ask() { words=("$@") CURRENT=$# PREFIX=$words[-1]; _vlprompt }
ask vlprompt tr
ask vlprompt train method=kgc
ask vlprompt data check --de
ask vlprompt train --optimizer adamw
"""


@pytest.mark.parametrize(("shell", "flags", "asked"), [("fish", ["-N", "-c"], FISH), ("zsh", ["-f", "-c"], ZSH)])
def test_other_shells_take_it_too(shell: str, flags: list[str], asked: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    environment = {"PYTHON": sys.executable, "SCRIPT": SCRIPTS[shell], "HOME": str(tmp_path)}
    environment |= {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [shutil.which(shell), *flags, asked]
    done = subprocess.run(command, env=environment | LIBRARIES, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["train", "method=kgcoop", "--deep", "adamw"], "")


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_printed_and_parse(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "completion words" in script
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    (tmp_path / "script").write_text(script, encoding="utf-8")
    assert subprocess.run([shell, "-n", tmp_path / "script"], check=False).returncode == 0


def test_another_shell_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fsh"]) == 2
    assert "unknown shell 'fsh': did you mean fish" in capsys.readouterr().err
