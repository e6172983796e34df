"""PVP: pre-trained visual parameter-efficient tuning (Song et al., 2023, arXiv:2304.13639), with visual prompts.

Trained: VPT's tokens, initialized with those learnt on a source task, in two steps: ``method=vpt`` with sixteen shots
of a source, then ``method=pvp init_from=RUN`` with one to four shots of the target. The gain is larger the fewer shots
there are.
Protocols: few-shot, base-to-new. The result records the source and its datasets, and is marked if a target is among
them.
A reconstruction from the abstract alone (pre-trained modules help with few shots): its source task, its loss and its
backbone, a ViT without text, are not known here.
"""

from __future__ import annotations

from typing import Any

from vlprompt.learner import register
from vlprompt.methods.prompts.vpt import VPT


@register("pvp", paper="arXiv:2304.13639", trains=("vision",), cacheable_images=False, fidelity="reconstruction")
class PVP(VPT):
    """Visual prompt tuning initialized with tokens from a source task."""

    @classmethod
    def lacks(cls, config: Any) -> str:
        """A source to start from, which the setting ``init_from`` names."""
        if config.init_from is not None:
            return ""
        return "starts from visual prompts of a source task (method=vpt, sixteen shots): say init_from=RUN"
