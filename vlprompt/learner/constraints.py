"""Constraints on the learnables, applied after each training step: the setting ``after_step``."""

from __future__ import annotations

import torch
from torch import nn

from vlprompt.base.parts import Part, parse_part
from vlprompt.base.registry import Registry
from vlprompt.errors import VlpromptError
from vlprompt.learner.prompts import TextPrompt


class Constraint(Part):
    """Projects a learner's learnables onto a set."""

    def refuses(self, learner: nn.Module) -> str | None:
        """Why it makes no sense for a learner, as a phrase that follows the method's name; None if it does."""
        return None

    def __call__(self, learner: nn.Module) -> None:
        """Move learnables that have left the set to its nearest point."""
        raise NotImplementedError


CONSTRAINTS: Registry[type[Constraint]] = Registry("constraint")


@CONSTRAINTS.register("project", paper="CPT, arXiv:2410.17222", fidelity="invariants")
class Project(Constraint):
    """Keeps each vector of a context within a ball around the word that it started from (CPT, arXiv:2410.17222).

    CPT projects after each step of gradient descent, assuming that the user's words are a good start.

    Args:
        eps: radius of the ball, in the space of token embeddings.
    """

    def __init__(self, eps: float = 0.1):
        if eps <= 0:
            raise VlpromptError(f"project(eps={eps}) leaves nothing to learn: its radius must be positive")
        self.eps = eps

    def refuses(self, learner: nn.Module) -> str | None:
        """The vectors must be initialized with words, and be trained themselves."""
        prompts = [part for part in learner.modules() if isinstance(part, TextPrompt)]
        if not prompts or any(prompt.start is None for prompt in prompts):
            return "has no context that starts from words: say ctx_init='a photo of a' where it can"
        if not all(prompt.trains_vectors for prompt in prompts):
            return "has a context that follows from something else that is trained: take context=full or lowrank"
        return None

    @torch.no_grad()
    def __call__(self, learner: nn.Module) -> None:
        """Move vectors (…, n, d) that are farther than eps from their words back to the ball."""
        for prompt in learner.modules():
            if isinstance(prompt, TextPrompt) and prompt.start is not None:
                away = prompt.ctx - prompt.start
                far = (away.norm(dim=-1, keepdim=True) / self.eps).clamp_min(1)
                prompt.ctx.copy_(torch.where(far > 1, prompt.start + away / far, prompt.ctx))


def make_constraint(setting: str | None) -> Constraint | None:
    """The constraint that a setting names, or None."""
    return None if setting is None else parse_part(setting, CONSTRAINTS)
