"""``config.json`` of a saved learner, which may come from anyone: read within bounds and checked field by field."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlprompt.base.checks import is_template
from vlprompt.base.files import atomic_write
from vlprompt.base.layout import CONFIG
from vlprompt.base.sealed import SEAL, seal, unseal
from vlprompt.errors import VlpromptError, first_line
from vlprompt.version import __version__

FORMAT = 2  # 1, of vlprompt 0.1.0, has no hashes
MAX_CONFIG_BYTES = 16 * 2**20  # the names of 100,000 classes take three
MAX_NAME = 1_000  # characters of a class name, a template and the like
MAX_SETTING = 10_000  # of a setting, such as an objective that lists its templates


def read_description(folder: Path) -> dict[str, Any]:
    """Read and check ``config.json`` of a saved learner.

    Raises:
        VlpromptError: it is missing, larger than any, not JSON, of a newer format, a field is not what it must be, or
            the file is not what was written.
    """
    file = safe_member(folder, CONFIG)
    try:
        with open(file, "rb") as opened:
            content = opened.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise VlpromptError(f"{file} has more than {MAX_CONFIG_BYTES >> 20} MB, which no saved learner's has")
        saved = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, VlpromptError):
            raise
        raise VlpromptError(f"{file} is not a saved learner's configuration: {first_line(error)}") from error
    _check_description(saved, file)
    return unseal(saved, file) | {"files": saved.get("files", {})}


def description_hash(folder: Path) -> str | None:
    """The hash that stands in ``config.json`` of a saved learner, which is checked; None in one of vlprompt 0.1.0."""
    return json.loads(safe_member(folder, CONFIG).read_bytes()).get(SEAL) if read_description(folder) else None


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write ``config.json`` of a saved learner, in the present format and with its hash."""
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(seal({**description, "format": FORMAT}), indent=1), encoding="utf-8")


def _check_description(saved: Any, file: Path) -> None:
    """Raise one sentence for the first field that is missing or not of its kind."""
    if not isinstance(saved, dict):
        raise VlpromptError(f"{file} is not a saved learner's configuration: it holds no fields")
    if _is_int(saved.get("format")) and saved["format"] > FORMAT:  # its fields may be others
        newer = str(saved.get("vlprompt"))[:20]
        raise VlpromptError(f"{file} was written by a newer vlprompt ({newer}); this is {__version__}")
    optional = ("files", SEAL) if saved.get("format") == 1 else ()
    missing = sorted(FIELDS.keys() - saved.keys() - set(optional))
    if missing:
        raise VlpromptError(f"{file} is not a saved learner's configuration: it lacks '{missing[0]}'")
    for name, (kind, is_right) in FIELDS.items():
        if name in saved and not is_right(saved[name]):
            raise VlpromptError(f"{file} is not a saved learner's configuration: '{name}' must be {kind}")
    unknown = sorted(saved.keys() - FIELDS.keys())
    if unknown:
        raise VlpromptError(f"{file} is not a saved learner's configuration: it has the unknown field '{unknown[0]}'")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_identity(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_is_text(value.get(key)) for key in ("architecture", "activation", "weights"))
        and _is_int(value.get("image_size"))
        and (value.get("pretrained") is None or _is_text(value["pretrained"]))
    )


def _is_source(value: Any) -> bool:
    if value is None:
        return True
    known = {"name", "pretrained", "checkpoint"}
    return (
        isinstance(value, dict)
        and value.keys() == known
        and _is_text(value["name"])
        and all(v is None or _is_text(v) for v in value.values())
    )


def _are_settings(value: Any) -> bool:
    """Settings by name: short texts, numbers, flags, lists of them or, as a grid, a group of such by name.

    No interpolation that reads elsewhere.
    """

    def is_plain(v: Any) -> bool:
        if isinstance(v, str):
            return len(v) <= MAX_SETTING and "${" not in v
        return v is None or isinstance(v, (int, float))

    def are_plain(v: Any) -> bool:
        return all(map(is_plain, v)) if isinstance(v, list) else is_plain(v)

    return isinstance(value, dict) and all(
        all(map(is_plain, v)) and all(map(are_plain, v.values())) if isinstance(v, dict) else are_plain(v)
        for v in value.values()
    )


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format": ("a whole number from 1", lambda value: _is_int(value) and value >= 1),
    "vlprompt": ("a version", _is_text),
    "method": ("a method's name", _is_text),
    "config": ("the method's settings, plain numbers and texts", _are_settings),
    "backbone": ("a backbone's identity", _is_identity),
    "source": ("null, or name, pretrained and checkpoint of a backbone", _is_source),
    "class_names": (f"a list of names of at most {MAX_NAME} characters", _are_texts),
    "templates": (
        f"a list of texts of at most {MAX_NAME} characters with one {{}} each",
        lambda value: _are_texts(value) and bool(value) and all(map(is_template, value)),
    ),
    "extra": ("an object", lambda value: isinstance(value, dict)),
    "files": (
        "hashes by name of file",
        lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    ),
    SEAL: ("a hash of the other fields", _is_text),
}


def safe_member(folder: Path, name: str) -> Path:
    """A regular file of a saved learner's folder; a link out of it is refused, but for the Hub cache's own blobs."""
    path = folder / name
    if not path.exists():
        raise VlpromptError(f"no saved learner in {folder}: {name} is missing")
    real, roots = path.resolve(), [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append(folder.resolve().parent.parent / "blobs")
    if not any(real.is_relative_to(root) for root in roots):
        raise VlpromptError(f"refused {path}: it is a link that leads out of the learner's folder")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise VlpromptError(f"refused {path}: it is no plain file")
    return path
