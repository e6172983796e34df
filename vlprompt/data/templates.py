"""Prompt templates as data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vlprompt.base.checks import check_templates
from vlprompt.base.files import read_text, text_lines
from vlprompt.base.wiring import lazy_exports
from vlprompt.clip.openclip import OPENAI_IMAGENET_TEMPLATES
from vlprompt.errors import VlpromptError, nearest

if TYPE_CHECKING:  # of a room above this one, which version 0.1 had here
    from datasets_registry.descriptions import read_descriptions as read_descriptions

# the seven that CLIP's authors kept of their eighty for ImageNet, in CoOp's order
IMAGENET7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
TEMPLATE_SETS = ("hand", "imagenet7", "imagenet80")


@cache
def imagenet80() -> tuple[str, ...]:
    """CLIP's eighty templates for ImageNet, as OpenCLIP has them."""
    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


class HasTemplates(Protocol):
    """A dataset, or a learner that was given a dataset's templates."""

    @property
    def templates(self) -> tuple[str, ...]:
        """With one ``{}`` each."""


def resolve_templates(spec: str | Sequence[str] | None, splits: HasTemplates) -> tuple[str, ...]:
    """Return the templates that a setting stands for.

    Args:
        spec: None or ``hand``, the dataset's own; ``imagenet7``, these seven and the dataset's own (CoOp's
            ZeroshotCLIP2, without its bug of adding them up over datasets); ``imagenet80``; a template with one ``{}``,
            or a list of them; or the path of a text file, one template a line, or of a JSON list.
        splits: whose own templates ``hand`` stands for.

    Raises:
        VlpromptError: a set or file is unknown, or a template has not exactly one ``{}``.
    """
    if spec is None or spec == "hand":
        return splits.templates
    if spec == "imagenet80":
        return imagenet80()
    if spec == "imagenet7":
        own = () if getattr(splits, "name", "").startswith("imagenet") else splits.templates
        return IMAGENET7 + own
    if isinstance(spec, str):
        spec = [spec] if "{}" in spec else _read_templates(spec)
    return check_templates(spec)


def _read_templates(spec: str) -> list[str]:
    path = Path(spec).expanduser()
    if not path.is_file():
        raise VlpromptError(
            f"'{spec}' is not a template (it has no {{}}), a file or a set: {nearest(spec, TEMPLATE_SETS)}"
        )
    try:
        templates = json.loads(read_text(path)) if path.suffix == ".json" else text_lines(path)
    except (OSError, json.JSONDecodeError, RecursionError) as error:
        raise VlpromptError(f"the templates in {path} cannot be read ({error})") from error
    if not isinstance(templates, list):
        raise VlpromptError(f"the templates in {path} must be a list, not {type(templates).__name__}")
    return templates


__getattr__, __dir__ = lazy_exports(__name__)
