"""What is known about the saved learner that another one starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlprompt.base.files import sha256_file
from vlprompt.base.layout import CONFIG, LEARNER
from vlprompt.saving.description import description_hash, read_description


def describe_start(path: Path) -> dict[str, Any]:
    """Describe the learnables at a path, which may be any that ``vlprompt.saving.folder.read_learnables`` reads.

    Returns:
        ``sha256`` of the learner's description, or of a plain file of tensors; ``method``, ``protocol``, ``shots`` and
        ``seed`` if they are known; ``reconstructs``, the published method that it reconstructs; ``datasets`` that it
        was trained on, including those of its own start, or None if they are unknown.
    """
    folder = next((f for f in (path, path / LEARNER) if (f / CONFIG).is_file()), None)
    if folder is None:
        return {"sha256": sha256_file(path) if path.is_file() else None, "datasets": None}
    saved = read_description(folder)
    extra = saved["extra"]
    known = {key: extra[key] for key in ("protocol", "shots", "seed", "reconstructs") if key in extra}
    return {"sha256": description_hash(folder), "method": saved["method"], **known, "datasets": _datasets(extra)}


def _datasets(extra: dict[str, Any]) -> list[str] | None:
    """Names of the datasets that a learner was trained on, starting with its own; None if one is unknown."""
    own, start = extra.get("dataset"), extra.get("start")
    if not isinstance(own, str):
        return None
    names = [name.strip() for name in own.split("+")]
    if start is None:
        return names
    before = start.get("datasets") if isinstance(start, dict) else None
    if not isinstance(before, list) or not all(isinstance(name, str) for name in before):
        return None
    return list(dict.fromkeys([*names, *before]))
