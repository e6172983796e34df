"""The backbones that exist, read from OpenCLIP's source files, since importing OpenCLIP takes seconds."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TINY = "vlprompt-tiny"
PURPOSE = (
    "embedded; to learn, test and compare methods offline, on emoji, drawings and small photos: no substitute for CLIP"
)
QUICK = "quick_gelu"  # tags with this key are also listed for the architecture NAME-quickgelu


def tags_by_backbone() -> dict[str, tuple[str, ...]]:
    """Return OpenCLIP's architectures in its own order, each with the tags of its published weights."""
    tags = _pretrained(open_clip_folder() / "pretrained.py")
    return {name: tags.get(name, ()) for name in list_architectures()}


def list_architectures() -> list[str]:
    """Return OpenCLIP's architectures in its own order."""
    return sorted((path.stem for path in (open_clip_folder() / "model_configs").glob("*.json")), key=_natural)


def open_clip_folder() -> Path:
    """The folder in which OpenCLIP is installed."""
    spec = find_spec("open_clip")
    assert spec is not None  # a dependency
    assert spec.origin is not None  # of every package that has a file of its own
    return Path(spec.origin).parent


def _natural(name: str) -> list[int | str]:
    """Sort key of OpenCLIP's order, which compares numbers by value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


def _pretrained(file: Path) -> dict[str, tuple[str, ...]]:
    """Tags by architecture: the dictionary ``_PRETRAINED`` in a source file, some of whose values are variables."""
    assigned = {
        target.id: node.value
        for node in ast.parse(file.read_text("utf-8")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def entries(node: Any) -> dict[str, Any]:
        if isinstance(node, ast.Name):
            return entries(assigned[node.id])
        if isinstance(node, ast.Dict):
            return {key.value: value for key, value in zip(node.keys, node.values, strict=True)}  # type: ignore[union-attr]
        return {word.arg: word.value for word in node.keywords if word.arg}

    listed = {name: entries(node) for name, node in entries(assigned["_PRETRAINED"]).items()}
    quick = {name: [tag for tag, facts in tags.items() if _is_quick(entries(facts))] for name, tags in listed.items()}
    found = {name: tuple(tags) for name, tags in listed.items()}
    return found | {f"{name}-quickgelu": tuple(tags) for name, tags in quick.items() if tags}


def _is_quick(facts: dict[str, Any]) -> bool:
    return QUICK in facts and bool(ast.literal_eval(facts[QUICK]))
