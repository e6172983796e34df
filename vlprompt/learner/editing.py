"""Edits as settings: ``edits=[lora(rank=4), layer_norms(tower=vision)]``, in addition to what a method learns.

An edit works with every design that passes its edits to that tower and is trained in the loop. Combinations that make
no sense are refused with a sentence: before a backbone is loaded if the method's facts suffice to tell, and otherwise
when the learner is created, if two edits would change the same place in a tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from typing_extensions import TypedDict, Unpack

from vlprompt.base.parts import Part, parse_part
from vlprompt.base.registry import Registry
from vlprompt.clip.edits import Edit, Tower
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.errors import VlpromptError
from vlprompt.learner.edits import Adapter, Approximated, LayerNorms, LearntEdit, LoRA, Surgery
from vlprompt.learner.facts import Facts
from vlprompt.learner.method import Method

Where = Literal["text", "vision", "both"]
WHERE: dict[Where, tuple[Tower, ...]] = {"text": ("text",), "vision": ("vision",), "both": ("text", "vision")}


class EditSetting(Part):
    """An edit named in a setting, in one tower or in both.

    Args:
        tower: which tower.
        make: creates it for a tower of a frozen model.
    """

    def __init__(self, tower: Where, make: Callable[[FrozenCLIP, Tower], LearntEdit]):
        if tower not in WHERE:
            raise VlpromptError(f"the tower of an edit must be text, vision or both, not '{tower}'")
        self.towers, self._make = WHERE[tower], make

    def made(self, clip: FrozenCLIP, among: Sequence[Edit] = ()) -> list[LearntEdit]:
        """Create one edit per tower; ``among`` are the learner's other edits."""
        return [self._make(clip, tower) for tower in self.towers]


EDITS: Registry[type[EditSetting]] = Registry("edit")


class More(TypedDict, total=False):
    """Rarely used arguments of a low-rank update; see ``vlprompt.learner.edits.LoRA``."""

    dropout: float
    lr_scale: float


@EDITS.register("lora", paper="CLIP-LoRA, arXiv:2405.18541", fidelity="code")
class LoRASetting(EditSetting):
    """Low-rank updates of the attention maps; see ``vlprompt.learner.edits.LoRA``."""

    def __init__(
        self, tower: Where = "both", rank: int = 2, alpha: float = 1.0, maps: str = "qkv", **more: Unpack[More]
    ):
        super().__init__(tower, partial(LoRA, rank=rank, alpha=alpha, maps=maps, **more))


@EDITS.register("layer_norms", paper="MoCoOp, arXiv:2409.12011", fidelity="invariants")
class LayerNormsSetting(EditSetting):
    """Trained layer norms of the blocks; see ``vlprompt.learner.edits.LayerNorms``."""

    def __init__(self, tower: Where = "vision", lr_scale: float = 0.1):
        super().__init__(tower, partial(LayerNorms, lr_scale=lr_scale))


@EDITS.register("approx", paper="APT (approximated), arXiv:2306.15706", fidelity="code")
class ApproximatedSetting(EditSetting):
    """Prompts in each block, as a term added after attention; see ``vlprompt.learner.edits.Approximated``."""

    def __init__(
        self, tower: Where = "both", n: int = 50, rank: int = 4, depth: int | None = None, lr_scale: float = 1.0
    ):
        make = partial(Approximated, n=n, rank=rank, depth=depth, lr_scale=lr_scale)
        super().__init__(tower, make)
        self._among = make

    def made(self, clip: FrozenCLIP, among: Sequence[Edit] = ()) -> list[LearntEdit]:
        """Create one edit per tower, whose input depends on learnt norms among the others."""
        return [self._among(clip, tower, among=among) for tower in self.towers]


@EDITS.register("adapter", paper="CoPrompt, arXiv:2306.01195", fidelity="code")
class AdapterSetting(EditSetting):
    """A bottleneck adapter on a tower's output; see ``vlprompt.learner.edits.Adapter``."""

    def __init__(self, tower: Where = "both", reduction: int = 4, ratio: float = 0.2, lr_scale: float = 1.0):
        super().__init__(tower, partial(Adapter, reduction=reduction, ratio=ratio, lr_scale=lr_scale))


@EDITS.register("surgery", paper="RESTORE, arXiv:2403.06136", fidelity="code")
class SurgerySetting(EditSetting):
    """A residual on a tower's output; see ``vlprompt.learner.edits.Surgery``."""

    def __init__(self, tower: Where = "both", ratio: float = 0.1, lr_scale: float = 1.0):
        super().__init__(tower, partial(Surgery, ratio=ratio, lr_scale=lr_scale))


def parse_edits(settings: Sequence[str]) -> list[EditSetting]:
    """The edits that a setting names."""
    return [parse_part(setting, EDITS) for setting in settings]


def edited_facts(cls: type[Method], config: Method.Config, facts: Facts) -> Facts:
    """The facts of a learner with its edits, given those without.

    Raises:
        VlpromptError: an edit is unknown, or the method cannot use it.
    """
    for setting, edit in zip(config.edits, parse_edits(config.edits), strict=True):
        reason = _refused(cls, config, facts, edit)
        if reason is not None:
            raise VlpromptError(f"edits={setting} is not possible: {cls.method} with these settings {reason}")
        trains = facts.trains | set(edit.towers)
        facts = replace(facts, trains=trains, cacheable_images=facts.cacheable_images and "vision" not in edit.towers)
    return facts


def _refused(cls: type[Method], config: Method.Config, facts: Facts, edit: EditSetting) -> str | None:
    """Why a method cannot use an edit, as a phrase after its name; None if it can."""
    if cls.learn is not Method.learn or facts.labels != "needed":
        return "is not trained by the loop on labelled images, as an edit is: take it with coop, maple or clip_lora"
    if cls.builds_on(config) is not None:
        return "has the towers of the learner that it stands on: train that one with the edit"
    if "text" in edit.towers and "text" not in facts.trains:
        return "has the frozen model's class features: say tower=vision, or take it with coop, maple or clip_lora"
    return None


def make_edits(settings: Sequence[str], clip: FrozenCLIP, own: Sequence[Edit]) -> list[LearntEdit]:
    """Create the edits in a setting, to be added to the method's ``own``.

    Raises:
        VlpromptError: two of them change the same place in a tower.
    """
    made: list[LearntEdit] = []
    for setting, edit in zip(settings, parse_edits(settings), strict=True):
        for each in edit.made(clip, own):
            _check_place(setting, each, [*own, *made])
            made.append(each)
    return made


def _check_place(setting: str, edit: LearntEdit, others: Sequence[Edit]) -> None:
    for other in others:
        both = sorted(edit.places & other.places) if other.tower == edit.tower else []
        if both:
            raise VlpromptError(
                f"edits={setting} changes what {type(other).__name__} changes too, in the {edit.tower} tower "
                f"('{both[0]}'): keep one of the two"
            )
