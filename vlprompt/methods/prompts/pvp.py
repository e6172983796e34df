"""PVP: pre-trained visual parameter-efficient tuning (Song et al., 2023, arXiv:2304.13639), with visual prompts.

Trained: VPT's tokens, from those that a source task has learnt. Two steps: ``method=vpt`` with sixteen shots of a
source, then ``method=pvp init_from=RUN`` with one to four shots of the target. What is gained shrinks with the shots.
Protocols: few-shot, base-to-new. The result tells the start and its datasets, and is marked if a target is among them.
A reconstruction: the abstract alone could be followed (modules that are pre-trained help where shots are few). Its
source task, its loss and its backbone, a ViT without text, are not known here.
"""

from __future__ import annotations

from typing import Any

from vlprompt.learner import register
from vlprompt.methods.prompts.vpt import VPT


@register("pvp", paper="arXiv:2304.13639", trains=("vision",), cacheable_images=False, fidelity="reconstruction")
class PVP(VPT):
    """Visual prompt tuning from the tokens of a source task."""

    @classmethod
    def lacks(cls, config: Any) -> str:
        """A start."""
        if config.init_from is not None:
            return ""
        return "starts from visual prompts of a source task (method=vpt, sixteen shots): say init_from=RUN"
