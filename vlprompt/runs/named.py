"""The learner that a user names: a saved one, a run's, or one on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlprompt.base.layout import LEARNER
from vlprompt.base.settings_text import backbone_settings
from vlprompt.clip.loading import load_clip
from vlprompt.errors import VlpromptError
from vlprompt.learner.contract import PromptLearner
from vlprompt.runs.folder import load_own_learner
from vlprompt.saving.folder import find_saved, load_learner
from vlprompt.saving.hub import PREFIX


def load_named_learner(settings: Mapping[str, Any], device: str = "auto") -> PromptLearner:
    """Load ``learner``: a saved learner, a run, or hf://user/name, on ``backbone`` where that is given.

    Args:
        settings: ``learner``; ``backbone``, ``pretrained``, ``checkpoint`` and ``device`` where they are given.
        device: where none is.

    Raises:
        VlpromptError: there is no such learner, or it is on another backbone.
    """
    source, device = str(settings["learner"]), str(settings.get("device", device))
    weightless = sorted({"pretrained", "checkpoint"} & settings.keys()) if "backbone" not in settings else []
    if weightless:
        raise VlpromptError(f"{weightless[0]} is of a backbone: say backbone=NAME too, or leave it out")
    folder = source if source.startswith(PREFIX) else find_saved(source)
    clip = None
    if "backbone" in settings:
        clip = load_clip(*backbone_settings(settings), device=device)
    if folder == Path(source).expanduser() / LEARNER:
        return load_own_learner(Path(source).expanduser(), clip, device)
    return load_learner(folder, clip=clip, device=device)
