"""Edits inside the towers: what a learner changes in a frozen model's computation, without a change to the model.

A learner owns its edits and hands them to the functions that encode; the towers call their hooks block by block. Every
hook is a no-op unless an edit fills it in, so that an edit is as long as what it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from vlprompt.clip.text import Prompts
    from vlprompt.clip.towers import TextTower, VisionTower

Tower = Literal["text", "vision"]
HOOKS = (
    *("prompted", "embedded", "tokens", "normed", "tower_normed", "project", "attended", "mlp", "finished"),
    "projected",
)
Norm = Literal["attention", "mlp"]  # a block's norms, by what stands behind them


class Rows(NamedTuple):
    """Which of a text tower's G·C prompts a pass holds: all groups and a chunk of classes, or fewer groups."""

    groups: slice = slice(None)
    classes: slice = slice(None)
    owners: Tensor | None = None  # of classes that go by several names: whose the row of each name is

    def take(self, t: Tensor) -> Tensor:
        """These rows of t (G or 1, C or 1, …); an axis of size one is the same for all, and stays."""
        if self.owners is not None and t.shape[1] > 1:
            return (t[self.groups] if t.shape[0] > 1 else t).index_select(1, self.owners)
        groups, classes = (rows if size > 1 else slice(None) for rows, size in zip(self[:2], t.shape[:2], strict=True))
        return t[groups, classes]


class Edit:
    """What is done inside one tower. A mix-in for an ``nn.Module``, or a plain object made for one call.

    The text tower encodes what all prompts have in common once (docs/design.md, "Exact text encoding"), so hooks see
    tokens in passes of different shapes. What a hook does to a token must therefore depend on that token alone, and
    apply to any leading axes; ``tokens`` alone sees sequences, and says with ``shared_until`` where classes part.
    States are fp32, of width d, whatever the precision of the tower. A leading axis may be of size one where all rows
    are alike so far, and out's be longer than x's. Behind the attention of a tower's last block stand only the tokens
    that are read, unless ``needs_all_tokens``.

    Edits that lengthen a sequence in one tower come in the order of the list.

    Attributes:
        tower: the tower that is edited.
        shared_until: text: the block from whose input on a prefix is one of each class's own; None shares it
            throughout, 0 not at all, so that every prompt is encoded at full length.
        needs_all_tokens: vision: whether the last block's hooks see all tokens and not only what is pooled.
    """

    tower: Tower
    shared_until: int | None = None
    needs_all_tokens: bool = False

    @property
    def places(self) -> frozenset[str]:
        """What of its tower it changes, by the hooks that it fills in; edits of one place do not go together."""
        return frozenset(hook for hook in HOOKS if getattr(type(self), hook) is not getattr(Edit, hook))

    def merge(self, tower: TextTower | VisionTower) -> bool:
        """Put what it does into the weights of a copy of its tower, and say whether that can be; see ``merging``."""
        return False

    def prompted(self, prompts: Prompts) -> Prompts:
        """Text: the prompts as they enter the tower, before positions are added; all G·C of them, once a call."""
        return prompts

    def embedded(self, x: Tensor) -> Tensor:
        """Vision: CLS and patches x (B, 1+N, d) with positions, before prompts enter and before the norm."""
        return x

    def tokens(self, layer: int, x: Tensor, rows: Rows) -> Tensor:
        """At a block's input, behind the learner's own prompts: replace tokens, or lengthen the sequence.

        Args:
            layer: index of the block.
            x: text, (G, C, T, d): sequences from start-of-text on, below ``shared_until`` of at least the prefix, where
                C may be 1; only prefix tokens may be replaced or inserted. Vision, (B, T, d): the model's own 1+N
                tokens, visual prompts, and what edits appended; own tokens may be replaced, others appended.
            rows: text: which prompts these are, for tokens of each class's own; vision: all.
        """
        return x

    def normed(self, layer: int, norm: Norm, x: Tensor, out: Tensor) -> Tensor:
        """Behind the norm in front of attention or MLP, which makes out of x, both (…, d): a learnable norm is here."""
        return out

    def tower_normed(self, norm: Literal["pre", "final"], x: Tensor) -> Tensor:
        """Behind a norm of the tower's own, x (…, d): ``final`` in front of the projection, where x may be what is read
        alone; vision's ``pre`` in front of the blocks. Towers that pool by attention refuse an edit of ``final``."""
        return x

    def project(self, layer: int, x: Tensor, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Behind the linear maps of attention: low-rank updates.

        Args:
            layer: index of the block.
            x: what the maps take (…, d): normed states, or for ``o`` the heads' outputs side by side.
            parts: some of ``q``, ``k`` and ``v``, or ``o`` alone, by name, each (…, d) before it is cut into heads. The
                last block asks for q of fewer tokens than k and v, in calls of their own.
        """
        return parts

    def attended(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        """Behind attention, before it is added: x (…, d) the block's input, out (…, d) attention's output."""
        return out

    def mlp(self, layer: int, part: Literal["fc", "proj"], x: Tensor, out: Tensor) -> Tensor:
        """Behind a linear map of the MLP: low-rank updates. x (…, d) or (…, 4d) is what the map takes, out what it
        gives, before the activation (``fc``) or before it is added (``proj``)."""
        return out

    def finished(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        """Behind the block: x (…, d) the block's input, out (…, d) its output."""
        return out

    def projected(self, x: Tensor) -> Tensor:
        """Behind the tower's projection, x (…, D): adapters of what it gives, before that is normalised."""
        return x

    def pooled(self, layer: int, x: Tensor, rows: Rows) -> None:
        """Text: look at the states x (G, C, d), behind a block, of the token that the tower reads."""


class FullLength(Edit):
    """Changes nothing and shares nothing: every prompt is encoded at full length, as published code does."""

    tower = "text"
    shared_until = 0


class Trimmed(FullLength):
    """Shares nothing either, but sequences end with the longest prompt, of towers that read nothing behind it."""


def edits_of(tower: Tower, edits: Iterable[Edit], promptable: bool) -> Sequence[Edit]:
    """Those of the edits that are made in a tower, or one sentence if it takes none."""
    chosen = tuple(edit for edit in edits if edit.tower == tower)
    if chosen and not promptable:
        raise VlpromptError(f"{type(chosen[0]).__name__} edits the {tower} tower, and this one is not OpenCLIP's own")
    return chosen


def shared_layers(edits: Sequence[Edit], layers: int) -> int:
    """Blocks whose prefix states are the same for all classes, of a text tower's."""
    return min([layers, *(edit.shared_until for edit in edits if edit.shared_until is not None)])
