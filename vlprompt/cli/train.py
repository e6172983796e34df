"""Train a prompt learner and test it."""

from vlprompt.train import main

__all__ = ["main"]
