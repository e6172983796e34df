"""What leaves the house: saved learners, cards, the Hub, exports, and checkpoints of the published repositories."""

from vlprompt.base.wiring import formerly
from vlprompt.saving.folder import find_saved, load_learner, read_learnables, save_learner

__all__ = ["find_saved", "load_learner", "read_learnables", "save_learner"]

__getattr__ = formerly("vlprompt.saving.folder")
