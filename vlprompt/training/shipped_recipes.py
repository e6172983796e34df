"""The recipes that come with the package, and the defaults for all methods."""

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
    """The settings in ``configs/defaults.yaml``."""
    path = CONFIGS / "defaults.yaml"
    return deepcopy(_defaults_in(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=4)
def _defaults_in(path: Path, changed: int) -> dict[str, Any]:
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    from vlprompt.base.settings_text import read_settings  # here, since listing recipes does not need YAML

    return read_settings(path, shipped=True)


class Provenance(NamedTuple):
    """The origin of a recipe's hyper-parameters.

    Attributes:
        source: released code, paper, third party or ours, with details.
        published: the published figure that belongs to the recipe, with its conditions; empty if there is none.
    """

    source: str
    published: str


def provenance(name: str) -> Provenance:
    """Return the origin of a shipped recipe; without a source of its own, that of the recipe it extends."""
    values = _read(CONFIGS / f"{name}.yaml")
    source = values.get("source") or (provenance(str(values["extends"])).source if "extends" in values else "")
    return Provenance(str(source), str(values.get("published", "")))
