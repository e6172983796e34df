"""``templates=``: named sets of prompt templates, files of them, and templates themselves."""

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

if TYPE_CHECKING:  # moved to a room above this one since version 0.1
    from datasets_registry.descriptions import read_descriptions as read_descriptions

# the seven of their eighty that CLIP's authors selected for ImageNet, in CoOp's order
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
    """A dataset, or a learner, which has the templates of its dataset."""

    @property
    def templates(self) -> tuple[str, ...]:
        """Texts with one ``{}`` each."""


def resolve_templates(spec: str | Sequence[str] | None, splits: HasTemplates) -> tuple[str, ...]:
    """Return the templates of a setting.

    Args:
        spec: None or ``hand`` for the dataset's own; ``imagenet7`` for these seven and the dataset's own (CoOp's
            ZeroshotCLIP2, without its bug of accumulating them over datasets); ``imagenet80``; a template with one
            ``{}``, or a list of them; or the path of a text file with one template per line, or of a JSON list.
        splits: has the dataset's own templates.

    Raises:
        VlpromptError: a set or file is unknown, or a template does not have exactly one ``{}``.
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
    """Read templates from a text or JSON file."""
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
