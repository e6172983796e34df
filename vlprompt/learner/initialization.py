"""Initialization from another learner: its tensors, adjusted in length, and what it had been trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vlprompt.base.wiring import wired
from vlprompt.errors import VlpromptError
from vlprompt.learner.prompts import TextPrompt, VisualPrompt

if TYPE_CHECKING:
    from vlprompt.learner.contract import PromptLearner

Length = Literal["same", "fit"]


def initialize_from(learner: PromptLearner, place: str, length: Length) -> dict[str, Any]:
    """Load the learnables that a learner is initialized with, and return what is known about them.

    Args:
        learner: the learner, already set up with its own initial values.
        place: a saved learner, the folder of a run or a ``.safetensors`` file.
        length: ``same`` refuses prompts of another length; ``fit`` truncates longer ones and repeats shorter ones.

    Returns:
        What ``vlprompt.saving.starts.describe_start`` returns, and ``fitted``: lengths by tensor, before and after.

    Raises:
        VlpromptError: there are none, or they do not fit the learner.
    """
    path = Path(place).expanduser()
    kept = {name: tensor for name, tensor in learner.state_dict().items() if name in learner.own_state}
    read: dict[str, Tensor] = wired("read_learnables")(place)
    tensors = {name: tensor for name, tensor in read.items() if name not in learner.own_state} | kept
    lengths = _other_lengths(learner, tensors)
    if length == "fit":
        tensors |= {name: with_length(tensors[name], own) for name, (_, own) in lengths.items()}
    elif lengths:
        name, (theirs, own) = next(iter(lengths.items()))
        raise VlpromptError(
            f"the tensors of {place} do not fit {learner.method} with these settings: {name} has {theirs} tokens, and "
            f"{own} are expected; say init_length=fit, or set the length to that of the start"
        )
    learner.reserve({name: tensor.shape for name, tensor in tensors.items()})
    learner.load_learnables(tensors, f"the tensors of {place}")
    described: Mapping[str, Any] = wired("describe_start")(path)
    return {"from": place, **described, "fitted": {name: list(both) for name, both in lengths.items()}}


def _other_lengths(learner: PromptLearner, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Prompts whose numbers of tokens are not the learner's: theirs, and its own."""
    own, names = learner.state_dict(), token_names(learner)
    both = {name: (tensors[name].shape, own[name].shape) for name in names if name in tensors}
    same = {name: sizes for name, sizes in both.items() if len(sizes[0]) == len(sizes[1])}
    return {name: (theirs[-2], mine[-2]) for name, (theirs, mine) in same.items() if theirs[-2] != mine[-2]}


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
    """The first n of m tokens (…, m, d), or all of them repeated until there are n: (…, n, d).

    >>> with_length(torch.arange(3.0).view(3, 1), 5).flatten().tolist()
    [0.0, 1.0, 2.0, 0.0, 1.0]
    """
    return tokens[..., torch.arange(n) % tokens.shape[-2], :]
