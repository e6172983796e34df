"""The recipes that ship, by name, and the defaults that they stand on."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlprompt.base.settings_text import read_settings

PACKAGE = Path(__file__).resolve().parents[1]
# inside the package when installed from a wheel, beside it in a checkout
CONFIGS = next((p for p in (PACKAGE / "configs", PACKAGE.parent / "configs") if p.is_dir()), PACKAGE / "configs")


def list_recipes() -> list[str]:
    """Names ``method/protocol`` of the shipped recipes."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("*/*.yaml"))


def read_defaults() -> dict[str, Any]:
    """What ``configs/defaults.yaml`` says."""
    path = CONFIGS / "defaults.yaml"
    return deepcopy(_defaults_in(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=4)
def _defaults_in(path: Path, changed: int) -> dict[str, Any]:
    return read_settings(path)
