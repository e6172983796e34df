"""What a saved learner, which another one starts from, had learnt from itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlprompt.base.files import sha256_file
from vlprompt.base.layout import CONFIG, LEARNER
from vlprompt.saving.description import description_hash, read_description


def describe_start(path: Path) -> dict[str, Any]:
    """Tell what is known of the learnables at a place, as ``vlprompt.saving.folder.read_learnables`` takes it.

    Returns:
        ``sha256`` of the learner's description, or of a bare file of tensors; ``method``, ``protocol``, ``shots`` and
        ``seed`` where they are known; ``reconstructs``, a method that it is our reading of; ``datasets`` that it had
        learnt from, those of its own start included, or None where that is not known.
    """
    folder = next((f for f in (path, path / LEARNER) if (f / CONFIG).is_file()), None)
    if folder is None:
        return {"sha256": sha256_file(path) if path.is_file() else None, "datasets": None}
    saved = read_description(folder)
    extra = saved["extra"]
    known = {key: extra[key] for key in ("protocol", "shots", "seed", "reconstructs") if key in extra}
    told = {"sha256": description_hash(folder), "method": saved["method"], **known}
    return told | {"datasets": _datasets(extra)}


def _datasets(extra: dict[str, Any]) -> list[str] | None:
    """Names of the datasets that a learner had learnt from, its own first; None if one is not known."""
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
