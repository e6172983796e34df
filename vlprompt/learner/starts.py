"""Where a learner starts: the learnt numbers of another one, fitted in length, and what that one had learnt from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vlprompt.base.wiring import wired
from vlprompt.learner.prompts import TextPrompt, VisualPrompt

if TYPE_CHECKING:
    from vlprompt.learner.contract import PromptLearner

Length = Literal["same", "fit"]


def load_start(learner: PromptLearner, place: str, length: Length) -> dict[str, Any]:
    """Load the learnables that a learner starts from, and return what is known of them.

    Args:
        learner: set up, with numbers of its own.
        place: a saved learner, a run's folder or a ``.safetensors`` file.
        length: ``same`` refuses prompts of another length; ``fit`` takes the first tokens of longer ones, and shorter
            ones over and over.

    Returns:
        What ``vlprompt.saving.starts.describe_start`` tells, and ``fitted``: lengths by tensor, before and after.

    Raises:
        VlpromptError: there are none, or they do not fit the learner.
    """
    tensors = wired("read_learnables")(Path(place))
    fitted = {}
    if length == "fit":
        for name in token_names(learner):
            own = learner.state_dict()[name].shape
            if name in tensors and tensors[name].shape[-2:-1] != own[-2:-1] and tensors[name].dim() == len(own):
                fitted[name] = [tensors[name].shape[-2], own[-2]]
                tensors[name] = with_length(tensors[name], own[-2])
    learner.reserve({name: tensor.shape for name, tensor in tensors.items()})
    learner.load_learnables(tensors, f"the tensors of {place}")
    told: Mapping[str, Any] = wired("describe_start")(Path(place))
    return {"from": place, **told, "fitted": fitted}


def token_names(learner: PromptLearner) -> list[str]:
    """Names of the tensors (…, n, d) that are a prompt's tokens."""
    return [
        f"{parent}.{name}" if parent else name
        for parent, module in learner.named_modules()
        if isinstance(module, (TextPrompt, VisualPrompt))
        for name, tensor in module.named_parameters()
        if tensor.dim() >= 2
    ]


def with_length(tokens: Tensor, n: int) -> Tensor:
    """The first n of m tokens (…, m, d), or all of them over and over until there are n: (…, n, d).

    >>> with_length(torch.arange(3.0).view(3, 1), 5).flatten().tolist()
    [0.0, 1.0, 2.0, 0.0, 1.0]
    """
    return tokens[..., torch.arange(n) % tokens.shape[-2], :]
