"""``config.json`` of a saved learner, which may come from anyone: of limited size, and checked field by field."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from vlprompt.base.checks import Template
from vlprompt.base.files import atomic_write
from vlprompt.base.layout import CONFIG
from vlprompt.base.schema import check_fields, strict
from vlprompt.base.sealed import SEAL, seal, unseal
from vlprompt.errors import VlpromptError, first_line
from vlprompt.version import __version__

FORMAT = 2  # 1, of vlprompt 0.1.0, has no hashes
MAX_CONFIG_BYTES = 16 * 2**20  # the names of 100,000 classes take 3 MB
MAX_NAME = 1_000  # characters of a class name, a template and the like
MAX_DEPTH = 3  # folders below the Hub cache's: a learner, the one that it is built on, and the one below that
MAX_SETTING = 10_000  # characters of a setting, such as an objective that lists its templates


Text = Annotated[str, Field(max_length=MAX_NAME)]
Names = Annotated[list[Text], Field(description=f"a list of names of at most {MAX_NAME} characters")]
Plain = Annotated[str, Field(max_length=MAX_SETTING)] | bool | int | Annotated[float, Field(allow_inf_nan=True)] | None
Setting = Plain | list[Plain] | dict[str, Plain | list[Plain]]  # a group is a grid


@strict(extra="allow")
class Identity(TypedDict):
    """A backbone's ``FrozenCLIP.identity``; later versions may add fields."""

    architecture: Text
    activation: Text
    weights: Text
    image_size: int
    pretrained: NotRequired[Text | None]


@strict()
class Source(TypedDict):
    """The arguments with which ``load_clip`` loads the backbone."""

    name: Text
    pretrained: Text | None
    checkpoint: Text | None


@strict()
class Description(TypedDict):
    """The fields of ``config.json``."""

    format: Annotated[int, Field(description="a whole number from 1", ge=1)]
    vlprompt: Annotated[Text, Field(description="a version")]
    method: Annotated[Text, Field(description="a method's name")]
    config: Annotated[dict[str, Setting], Field(description="the method's settings, plain numbers and texts")]
    backbone: Annotated[Identity, Field(description="a backbone's identity")]
    source: Annotated[Source | None, Field(description="null, or name, pretrained and checkpoint of a backbone")]
    class_names: Names
    trained_on: NotRequired[Names]
    templates: Annotated[
        list[Annotated[Template, Field(max_length=MAX_NAME)]],
        Field(description=f"a list of texts of at most {MAX_NAME} characters with one {{}} each", min_length=1),
    ]
    extra: Annotated[dict[str, Any], Field(description="an object")]
    calibration: NotRequired[Annotated[dict[str, Any], Field(description="an object")]]
    files: Annotated[dict[str, Text], Field(description="hashes by name of file")]
    sha256: Annotated[Text, Field(description="a hash of the other fields")]


def read_description(folder: Path) -> dict[str, Any]:
    """Read and check ``config.json`` of a saved learner.

    Args:
        folder: the saved learner's folder.

    Raises:
        VlpromptError: it is missing, too large, not JSON, of a newer format, has an invalid field, or was changed.
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
    """Check ``config.json`` of a saved learner, and return the hash in it; None for one of vlprompt 0.1.0."""
    return json.loads(safe_member(folder, CONFIG).read_bytes()).get(SEAL) if read_description(folder) else None


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write ``config.json`` of a saved learner, in the current format and with its hash."""
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(seal({**description, "format": FORMAT}), indent=1), encoding="utf-8")


def _check_description(saved: Any, file: Path) -> None:
    """Raise a ``VlpromptError`` for the first field that is missing or of the wrong type."""
    where = f"{file} is not a saved learner's configuration"
    if not isinstance(saved, dict):
        raise VlpromptError(f"{where}: it holds no fields")
    version = saved.get("format")
    if isinstance(version, int) and version > FORMAT:
        newer = str(saved.get("vlprompt"))[:20]
        raise VlpromptError(f"{file} was written by a newer vlprompt ({newer}); this is {__version__}")
    check_fields(Description, {"files": {}, SEAL: ""} | saved if version == 1 else saved, where)


def safe_member(folder: Path, name: str) -> Path:
    """Return the path of a regular file in a saved learner's folder.

    Raises:
        VlpromptError: it is missing, not a regular file, or a link that leads out of the folder, other than into the
            Hub cache's blobs.
    """
    path = folder / name
    if not path.exists():
        raise VlpromptError(f"no saved learner in {folder}: {name} is missing")
    real, roots = path.resolve(), [folder.resolve()]
    snapshots = next((up for up in list(folder.parents)[:MAX_DEPTH] if up.name == "snapshots"), None)
    if snapshots is not None:
        roots.append(snapshots.resolve().parent / "blobs")
    if not any(real.is_relative_to(root) for root in roots):
        raise VlpromptError(f"refused {path}: it is a link that leads out of the learner's folder")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise VlpromptError(f"refused {path}: it is not a regular file")
    return path
