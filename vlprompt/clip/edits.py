"""Edits inside the towers: what a learner changes in a frozen model's computation, without a change to the model.

A learner owns its edits and passes them to the encoding functions; the towers call their hooks in each block. Every
hook does nothing by default, so an edit implements only the hooks that it needs.
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
Norm = Literal["attention", "mlp"]  # the norms of a block, by what they come before


class Rows(NamedTuple):
    """Which of the G·C text prompts a pass contains: by default all; else a chunk of the classes, or one group."""

    groups: slice = slice(None)
    classes: slice = slice(None)
    owners: Tensor | None = None  # the class of each row, if classes have several names

    def take(self, t: Tensor) -> Tensor:
        """Select these rows of t (G or 1, C or 1, …); an axis of size one, the same for all rows, is kept."""
        if self.owners is not None and t.shape[1] > 1:
            return (t[self.groups] if t.shape[0] > 1 else t).index_select(1, self.owners)
        groups, classes = (rows if size > 1 else slice(None) for rows, size in zip(self[:2], t.shape[:2], strict=True))
        return t[groups, classes]


class Edit:
    """A change of one tower's computation: a mix-in for an ``nn.Module``, or a plain object made for one call.

    The text tower encodes what all prompts have in common only once (docs/design.md, "Exact text encoding"), so hooks
    see tokens in passes of different shapes. What a hook does to a token must therefore depend on that token alone and
    work with any leading axes. Only ``tokens`` sees whole sequences; an edit that gives each class its own tokens says
    with ``shared_until`` from which block on. States are fp32 of width d, whatever the precision of the tower. A
    leading axis may have size one while all rows are still equal, and ``out`` may have more rows than ``x``. After the
    attention of the last block, only the tokens that are pooled remain, unless ``needs_all_tokens`` is set.

    If several edits lengthen the sequence of a tower, they do so in the order of the list.

    Attributes:
        tower: the tower that is edited.
        shared_until: text: the block from whose input on each class has a prefix of its own. None shares the prefix in
            all blocks, 0 in none, so that every prompt is encoded at full length.
        needs_all_tokens: vision: whether the hooks of the last block need all tokens rather than only the pooled ones.
    """

    tower: Tower
    shared_until: int | None = None
    needs_all_tokens: bool = False

    @property
    def places(self) -> frozenset[str]:
        """What it changes in its tower, by the hooks that it implements; two edits of one place cannot be combined."""
        return frozenset(hook for hook in HOOKS if getattr(type(self), hook) is not getattr(Edit, hook))

    def merge(self, tower: TextTower | VisionTower) -> bool:
        """Add the edit to the weights of a copy of its tower, and return whether that is possible; see ``merging``."""
        return False

    def prompted(self, prompts: Prompts) -> Prompts:
        """Text: change all G·C prompts before they enter the tower and positions are added; once per encoding."""
        return prompts

    def embedded(self, x: Tensor) -> Tensor:
        """Vision: change CLS and patches x (B, 1+N, d) after positions are added, before prompts and ``ln_pre``."""
        return x

    def tokens(self, layer: int, x: Tensor, rows: Rows) -> Tensor:
        """At the input of a block, after the learner's prompts were inserted: replace tokens or lengthen the sequence.

        Args:
            layer: index of the block.
            x: text, (G, C, T, d): sequences from start-of-text on. Below ``shared_until`` they may consist of the
                prefix alone, with C = 1; only prefix tokens may be replaced or inserted. Vision, (B, T, d): the model's
                own 1+N tokens, visual prompts, and what edits have appended; the model's tokens may be replaced, and
                others appended.
            rows: text: which prompts these are, to select tokens that belong to classes; vision: all.
        """
        return x

    def normed(self, layer: int, norm: Norm, x: Tensor, out: Tensor) -> Tensor:
        """After the norm before attention or MLP, which maps x (…, d) to out (…, d): learnable norms replace out."""
        return out

    def tower_normed(self, norm: Literal["pre", "final"], x: Tensor) -> Tensor:
        """After a norm of the tower itself, with its output x (…, d).

        ``final`` is the norm before the projection, where x may contain only the pooled tokens; ``pre`` is the image
        tower's norm before the blocks. Towers that pool by attention refuse an edit of ``final``.
        """
        return x

    def project(self, layer: int, x: Tensor, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """After the linear maps of attention: low-rank updates.

        Args:
            layer: index of the block.
            x: input of the maps (…, d): normed states, or for ``o`` the concatenated outputs of the heads.
            parts: output by map, each (…, d) before it is split into heads: some of ``q``, ``k`` and ``v``, or ``o``
                alone. The last block needs q for fewer tokens than k and v, and calls this hook separately for them.
        """
        return parts

    def attended(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        """After attention, before the residual is added: x (…, d) is the block's input, out (…, d) attention's."""
        return out

    def mlp(self, layer: int, part: Literal["fc", "proj"], x: Tensor, out: Tensor) -> Tensor:
        """After a linear map of the MLP, before the activation (``fc``) or before the residual is added (``proj``).

        For low-rank updates: x, (…, d) or (…, 4d), is the input of the map and out its output.
        """
        return out

    def finished(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        """After the block: x (…, d) is its input, out (…, d) its output."""
        return out

    def projected(self, x: Tensor) -> Tensor:
        """After the tower's projection, with its output x (…, D), which is not normalised yet: adapters."""
        return x

    def pooled(self, layer: int, x: Tensor, rows: Rows) -> None:
        """Text: receives the states x (G, C, d) of the pooled token after a block, for recorders."""


class FullLength(Edit):
    """Changes nothing, but has every prompt encoded at full length, as published code does."""

    tower = "text"
    shared_until = 0


class Trimmed(FullLength):
    """The same, with sequences only as long as the longest prompt, for towers that ignore what follows end-of-text."""


def edits_of(tower: Tower, edits: Iterable[Edit], promptable: bool) -> Sequence[Edit]:
    """The edits of a tower; raises ``VlpromptError`` if there are some but the tower is not promptable."""
    chosen = tuple(edit for edit in edits if edit.tower == tower)
    if chosen and not promptable:
        raise VlpromptError(f"{type(chosen[0]).__name__} edits the {tower} tower, and this one is not OpenCLIP's own")
    return chosen


def shared_layers(edits: Sequence[Edit], layers: int) -> int:
    """Number of text blocks, out of ``layers``, in which all classes share the states of the prefix."""
    return min([layers, *(edit.shared_until for edit in edits if edit.shared_until is not None)])
