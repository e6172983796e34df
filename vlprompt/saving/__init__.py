"""Saved learners, model cards, the Hub, exports, and checkpoints of the published repositories."""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports

if TYPE_CHECKING:
    from vlprompt.saving.folder import find_saved, load_learner, read_learnables, save_learner

__all__ = ["find_saved", "load_learner", "read_learnables", "save_learner"]

__getattr__, __dir__ = lazy_exports(__name__, formerly="vlprompt.saving.folder")
