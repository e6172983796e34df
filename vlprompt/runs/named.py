"""``learner=`` of commands: a saved learner, a run's, or one on the Hub."""

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
    """Load the learner that settings name.

    Args:
        settings: ``learner``, which is a saved learner's folder, a run's folder or ``hf://user/name``; optionally
            ``backbone``, ``pretrained``, ``checkpoint`` and ``device``.
        device: used if the settings have none.

    Raises:
        VlpromptError: there is no such learner, or it is on another backbone.
    """
    source, device = str(settings["learner"]), str(settings.get("device", device))
    without_backbone = sorted({"pretrained", "checkpoint"} & settings.keys()) if "backbone" not in settings else []
    if without_backbone:
        raise VlpromptError(f"{without_backbone[0]} needs a backbone: give backbone=NAME too, or leave it out")
    folder = source if source.startswith(PREFIX) else find_saved(source)
    clip = None
    if "backbone" in settings:
        clip = load_clip(*backbone_settings(settings), device=device)
    if folder == Path(source).expanduser() / LEARNER:
        return load_own_learner(Path(source).expanduser(), clip, device)
    return load_learner(folder, clip=clip, device=device)
