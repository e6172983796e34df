"""Editors and type checkers know the settings of each method."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CALLS = {
    'create_learner("coop", clip, names, n_ctx=4, class_token_position="end")': "CoOp",
    'create_learner("coop", clip, names, n_cxt=4)': "SettingsDoNotFit",
    'create_learner("coop", clip, names, n_ctx="4")': "SettingsDoNotFit",
    'create_learner("coop", clip, names, class_token_position="ned")': "SettingsDoNotFit",
    'create_learner("noisy_coop", clip, names, noise=0.1)': "PromptLearner",
    "create_learner(method, clip, names, n_ctx=4)": "PromptLearner",
    'run(method="vpt", dataset="emoji", shots=4, output=Path("runs"), depth=3)': "Result",
    'run(method="vpt", dataset="emoji", shots=4, dept=3)': "SettingsDoNotFit",
    'run(method="vpt", shots=1.5)': "SettingsDoNotFit",
    'run(method="noisy_coop", noise=0.1)': "Result",
    'run(config="mine.yaml", noise=0.1)': "Result",
    "run(n_ctx=4, clip=clip)": "Result",  # of the usual method
    "run(**settings)": "Any",
    "run(n_cxt=4)": "error",
}
STAND_INS = {
    "clip/frozen.py": "class FrozenCLIP: ...",
    "evaluation/results.py": "class Result: ...",
    "learner/contract.py": "class PromptLearner: ...",
    "methods/prompts/coop.py": "from vlprompt.learner.contract import PromptLearner\nclass CoOp(PromptLearner): ...",
}


def test_a_type_checker_tells_right_settings_from_wrong_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mypy = pytest.importorskip("mypy.api")
    files = STAND_INS | {name: (ROOT / "vlprompt" / name).read_text("utf-8") for name in ("__init__.py", "typed.pyi")}
    for name, text in files.items():  # the rest of the package, and torch, would take a minute
        path = tmp_path / "vlprompt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    head = "from pathlib import Path\nfrom typing import Any\nfrom vlprompt import FrozenCLIP, create_learner, run\n"
    head += "def ask(clip: FrozenCLIP, names: list[str], method: str, settings: dict[str, Any]) -> None:\n"
    (tmp_path / "sample.py").write_text(head + "".join(f"    reveal_type({call})\n" for call in CALLS), "utf-8")
    monkeypatch.chdir(tmp_path)
    options = ["--config-file=", "--cache-dir=/dev/null", "--ignore-missing-imports", "--no-site-packages"]
    said, _, _ = mypy.run([*options, "--python-version=3.10", "sample.py"])
    lines = re.findall(r'^sample\.py:(\d+): (?:note: Revealed type is "([\w.]+)"|(error))', said, re.MULTILINE)
    found = {int(line): (error or shown.rpartition(".")[2]) for line, shown, error in reversed(lines)}
    assert dict(zip(CALLS, (found.get(number) for number, _ in enumerate(CALLS, 5)), strict=True)) == CALLS
