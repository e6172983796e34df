"""Translates between our names of learnt tensors and the authors', by each method's table.

A table maps our names to the authors'. A key that ends in a dot stands for every name that starts with it, and ``{i}``
for a number, which the authors' name may shift: ``{"prompt.deep.{i}": "text_prompts.{i+1}"}``. Names that are not in
the table are the same in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from vlprompt.learner.contract import PromptLearner

PARTS = {"prompt.attributes.blocks.{i}": "ctx_att{i+1}"}  # of any design
STATISTICS = (".running_mean", ".running_var")
SHOWN = 5  # names of tensors in a sentence
NUMBER = re.compile(r"\{i([+-]\d+)?\}")


def published_names(learner: PromptLearner) -> dict[str, str]:
    """The authors' name, by ours, of each learnable tensor, statistic of a batch norm, and buffer in the table."""
    head = learner.second_head
    others = (
        PARTS if head is None else PARTS | {f"second_head.{ours}": theirs for ours, theirs in head.published.items()}
    )
    kept = [name for name, _ in learner.named_buffers() if name.endswith(STATISTICS) or name in learner.published]
    names = [*dict(learner.named_parameters()), *kept]
    return {name: published_name(name, {**others, **learner.published}) for name in names}


def published_name(name: str, table: Mapping[str, str]) -> str:
    """The authors' name for one of ours.

    >>> published_name("prompt.deep.2", {"prompt.deep.{i}": "text_prompts.{i+1}"})
    'text_prompts.3'
    """
    for ours, theirs in table.items():
        pattern = re.escape(ours).replace(r"\{i\}", r"(\d+)") + (r"(?P<rest>.+)" if ours.endswith(".") else "")
        found = re.fullmatch(pattern, name)
        if found:
            return _shifted(theirs, found[1] if "{i}" in ours else "0") + (found.groupdict().get("rest") or "")
    return name


def _shifted(theirs: str, number: str) -> str:
    """The authors' name with its ``{i}``, ``{i+1}`` or the like filled in."""
    return NUMBER.sub(lambda shift: str(int(number) + int(shift[1] or 0)), theirs)


def published_state(learner: PromptLearner) -> dict[str, Tensor]:
    """A copy of the learnables under the authors' names."""
    state = learner.state_dict()
    return {theirs: state[ours].clone() for ours, theirs in published_names(learner).items()}


def load_published(learner: PromptLearner, tensors: Mapping[str, Tensor]) -> None:
    """Load learnables given under the authors' names; other tensors (class buffers) are ignored.

    Raises:
        VlpromptError: one is missing or has another shape.
    """
    names = published_names(learner)
    settings = {name for name, _ in learner.named_buffers() if name in learner.published}  # old files may lack these
    names = {ours: theirs for ours, theirs in names.items() if theirs in tensors or ours not in settings}
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise VlpromptError(f"{learner.method}: the tensors lack {', '.join(missing[:SHOWN])}{more}")
    own = learner.state_dict()
    state = own | {ours: _shaped_as(tensors[theirs], own[ours]) for ours, theirs in names.items()}
    learner.load_learnables(state, "the published tensors")


def _shaped_as(theirs: Tensor, ours: Tensor) -> Tensor:
    """A 1×1 convolution's weight (out, in, 1, 1) as the linear map (out, in) that it is, and one number (1,) as ()."""
    if theirs.dim() == 4 and theirs.shape[:2] == ours.shape and theirs[0, 0].numel() == 1:
        return theirs.flatten(1)
    return theirs.reshape(()) if ours.dim() == 0 and theirs.numel() == 1 else theirs
