"""What docs/howto/share_and_export.md shows runs, from top to bottom, in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import run_page


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_page("howto/share_and_export.md")
    assert names["names"] == ["cat", "dog", "owl"]
    assert names["probabilities"].shape == (2, 3)
