"""Runs what a page of the docs shows, from top to bottom, in the present folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from vlprompt.cli.__main__ import main

DOCS = Path(__file__).resolve().parents[1] / "docs"


def run_page(name: str) -> dict[str, Any]:
    """Run a page's python and bash blocks in turn, and return the names that its Python leaves.

    A bash block holds ``vlprompt`` commands, one a line; each must end with status 0.
    """
    path, names = DOCS / name, {}
    blocks = re.findall(r"```(python|bash)\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 2, f"{path} shows nothing to run"
    for kind, code in blocks:
        if kind == "python":
            exec(compile(code, str(path), "exec"), names)
        else:
            for line in code.strip().splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
    return names
