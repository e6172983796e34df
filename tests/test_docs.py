"""The docs are true: generated pages are up to date, and what they show runs."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
from here import python_here
from test_docs_snippets import new_process

from vlprompt.cli.__main__ import main
from vlprompt.learner import METHODS
from vlprompt.testing import CHECKS

ROOT = Path(__file__).resolve().parents[1]


def test_generated_pages_and_the_stub_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    make_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_docs)
    for path, text in make_docs.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"run python scripts/make_docs.py: {path.name} is out of date"


def example() -> str:
    """The method that the page shows."""
    page = (ROOT / "docs/howto/own_method.md").read_text(encoding="utf-8")
    return re.search(r"```python\n# my_package/noisy.py\n(.*?)```", page, re.S)[1]


@pytest.fixture
def documented_method(monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the page's own example, as a package outside the tree would."""
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    module = types.ModuleType("noisy")
    monkeypatch.setitem(sys.modules, "noisy", module)  # dataclasses look their module up
    exec(compile(example(), "noisy.py", "exec"), module.__dict__)
    return "noisy_coop"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_documented_method_keeps_every_promise(documented_method: str, check, tmp_path: Path) -> None:
    check(documented_method, tmp_path, noise=0.0)


def test_the_documented_method_is_found_by_commands_and_their_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as of a command in that folder
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "noisy.py").write_text(example(), encoding="utf-8")
    run = ["dataset=digits", "shots=1", "epochs=1", "views=1", "limit=10", "noise=0.05", "--quiet"]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    train = ["vlprompt.train", "plugin=my_package.noisy", "method=noisy_coop"]
    sweep = ["vlprompt.cli", "sweep", "plugin=my_package/noisy.py", "methods=[noisy_coop]"]
    sweep += ["executor=processes", "processes=1"]  # a process that is new indeed
    for arguments in ([*train, "seed=1"], [*sweep, "seeds=[2]"]):  # another run, which is not there already
        with new_process():
            done = python_here([sys.executable, "-m", *arguments, *run], env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert "noisy_coop" in done.stdout


def test_a_plugin_that_cannot_be_imported_is_told_in_one_sentence(tmp_path: Path, capsys) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    assert main(["list", "methods", f"plugin={tmp_path / 'broken.py'}"]) == 2
    assert "cannot be imported: ZeroDivisionError: division by zero" in capsys.readouterr().err
