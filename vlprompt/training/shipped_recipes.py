"""The recipes that ship, by name, and the defaults that they stand on."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

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
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    from vlprompt.base.settings_text import read_settings  # here, since who asks where recipes are needs no YAML

    return read_settings(path, shipped=True)


class Provenance(NamedTuple):
    """Whose hyper-parameters a recipe has.

    Attributes:
        source: released code, paper, third party or ours, with the place.
        published: the figure that the recipe belongs to, with its conditions; empty if there is none.
    """

    source: str
    published: str


def provenance(name: str) -> Provenance:
    """Return where a shipped recipe says that it is from; a source that it does not name is of what it extends."""
    values = _read(CONFIGS / f"{name}.yaml")
    source = values.get("source") or (provenance(str(values["extends"])).source if "extends" in values else "")
    return Provenance(str(source), str(values.get("published", "")))
