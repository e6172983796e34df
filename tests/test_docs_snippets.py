"""What the pages show is true: their python and bash blocks run, from top to bottom, in an empty folder.

A python block whose first line is ``# my_package/noisy.py`` is a file of that name. A block that cannot run here has
``<!-- not run: REASON -->`` on the line above; its runs and sweeps are planned all the same, so that no unknown key or
name stands in it. A page that begins with ``<!-- needs: PACKAGE -->`` runs where that extra is installed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest

from vlprompt.base.plugins import VARIABLE as PLUGINS
from vlprompt.base.settings import AUTO
from vlprompt.cli.__main__ import commands, main
from vlprompt.cli._shared import parse
from vlprompt.learner import METHODS
from vlprompt.runs.auto import resolve_auto
from vlprompt.runs.settings import resolve

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [DOCS / "index.md", DOCS / "concepts.md", *sorted((DOCS / "howto").glob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- not run:(?P<reason>.*?)-->\n)?```(?P<kind>python|bash)\n(?P<code>.*?)^```$", re.M | re.S)
NEEDS = re.compile(r"<!-- needs: (\w+) -->\n")
TRAIN = "python -m vlprompt.train"
SHELL_SIGNS = set("|<>;&$`#")
FILE = re.compile(r"# (\S+\.py)\n")
SHIPPED = {name: METHODS.info(name) for name in METHODS.names()}


@dataclass(frozen=True)
class Block:
    """A piece of a page.

    Attributes:
        kind: ``python`` or ``bash``.
        line: of its first line of code in the page.
        reason: why it is not run; None if it is.
    """

    kind: str
    code: str
    line: int
    reason: str | None

    @property
    def lines(self) -> list[str]:
        """Command lines, each with its continuations."""
        joined = self.code.replace("\\\n", " ")
        return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(found["kind"], found["code"], line, found["reason"])


def arguments(line: str) -> list[str] | None:
    """The arguments after ``vlprompt`` of a command that needs no shell, or None."""
    words = shlex.split(line.replace(TRAIN, "vlprompt train", 1), comments=True)
    plain = words[:1] == ["vlprompt"] and not SHELL_SIGNS & set(line.partition(" #")[0])
    return words[1:] if plain else None


@contextmanager
def new_process() -> Iterator[None]:
    """Let a command see what a process of its own would: shipped methods only, and no module of the page's."""
    with patch.dict(METHODS._entries, SHIPPED, clear=True), patch.dict(os.environ):
        os.environ.pop(PLUGINS, None)
        before = take_own_modules()
        try:
            yield
        finally:
            take_own_modules()
            sys.modules.update(before)


def take_own_modules() -> dict[str, ModuleType]:
    """Take the modules of the present folder out of those that are imported."""

    here = str(Path.cwd())

    def is_own(module: ModuleType) -> bool:
        known = vars(module)  # torch.classes makes up any attribute it is asked for
        places = [known.get("__file__"), *known.get("__path__", ())]
        return any(str(place).startswith(here) for place in places if place)  # of thousands, so no paths are made

    own = [name for name, module in list(sys.modules.items()) if is_own(module)]
    return {name: sys.modules.pop(name) for name in own}


def run_python(block: Block, page: Path, names: dict) -> None:
    """Write a block that is a file, run any other."""
    file = FILE.match(block.code)
    if file:
        Path(file[1]).parent.mkdir(parents=True, exist_ok=True)
        Path(file[1]).write_text(block.code, encoding="utf-8")
    else:
        code = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's line
        exec(compile(code, str(page), "exec"), names)


def run_bash(block: Block, page: str) -> None:
    """Run vlprompt's commands in this process, which spares their imports, and all else in a shell."""
    given = [arguments(line) for line in block.lines]
    apart = all(argv or line.startswith("python ") for argv, line in zip(given, block.lines, strict=True))
    for line, argv in zip(block.lines, given, strict=True) if apart else [(block.code, None)]:
        if argv:
            with new_process():
                assert main(argv) == 0, f"{page}:{block.line}: {line}"
        else:
            environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], env=environment, check=False)
            assert done.returncode == 0, f"{page}:{block.line}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = NEEDS.match(page.read_text(encoding="utf-8"))
    if needs:
        pytest.importorskip(needs[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    names: dict = {"__name__": "__main__"}
    with new_process():
        for block in blocks(page):
            if block.reason is not None:
                continue
            if block.kind == "bash":
                run_bash(block, page.name)
            else:
                run_python(block, page, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_not_run_has_a_reason_and_names_what_exists(page: Path) -> None:
    for block in blocks(page):
        if block.reason is None:
            continue
        assert block.reason.strip(), f"{page.name}:{block.line}: say why it is not run"
        if block.kind == "python":
            compile(block.code, str(page), "exec")
            continue
        for line in block.lines:
            argv = arguments(line)
            if argv is None:
                continue
            assert argv[0] in commands(), f"{page.name}:{block.line}: {line}"
            if argv[0] == "train":
                settings = parse(argv[1:]).settings
                (resolve_auto if settings.get("method") == AUTO else resolve)(settings)
            if argv[0] == "sweep" and not any(word.startswith("executor=ray") for word in argv):
                assert main([*argv, "plan=true"]) == 0, f"{page.name}:{block.line}: {line}"


def test_every_marker_stands_right_above_a_block() -> None:
    for page in PAGES:
        marked = sum(block.reason is not None for block in blocks(page))
        assert page.read_text(encoding="utf-8").count("<!-- not run:") == marked, page.name
