"""Attribute words inside a learnt context, as in ATPrompt (Li et al., ICCV 2025, arXiv:2412.09442).

``SOS [a₁]×n word₁ [a₂]×n word₂ … [v]×n class name``: fixed words that name how classes differ ("color", "shape") stand
before the context v, each preceded by its own learnt vectors. They are the same for all classes, so they lengthen
the prefix, which is still encoded once. ``attributes=[color, shape]`` is a setting of every design with a text context.
Deep prompts replace only the context; the words and their vectors are not replaced.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.errors import VlpromptError
from vlprompt.learner.facts import Facts

INIT_STD = 0.01  # of the vectors before a word, as published; half of the context's
PLACEHOLDER = "X"  # a word that published code puts in the place of each learnt vector


@dataclass
class AttributeSettings:
    """Settings of every design with a text context.

    Attributes:
        attributes: fixed words in front of the context, such as color and shape, each preceded by learnt vectors.
        n_att: number of learnt vectors before each attribute; None uses as many as the context has.
        published_slicing: cut prompts as the authors' code does, which counts each word as one token: of "playfulness"
            it keeps "play", and placeholders take the positions of later words.
    """

    attributes: list[str] = field(default_factory=list)
    n_att: int | None = None
    published_slicing: bool = False


class Attributes(nn.Module):
    """The attribute words of a prompt, and the learnt vectors before each.

    Args:
        clip: the frozen model.
        settings: with at least one word.
        n_ctx: length of the context that follows.

    Attributes:
        blocks: (n, d_t) for each word.
        behind: embeddings (m, d_t) that published slicing leaves between context and class name.
    """

    behind: Tensor

    def __init__(self, clip: FrozenCLIP, settings: AttributeSettings, n_ctx: int):
        super().__init__()
        n, words = n_ctx if settings.n_att is None else settings.n_att, settings.attributes
        if n < 1:
            raise VlpromptError(f"n_att={n} leaves nothing to learn before an attribute's word; use 1 or more")
        empty = [word for word, count in zip(words, clip.count_tokens(words).tolist(), strict=True) if not count]
        if empty:
            raise VlpromptError(f"attributes must be words, and '{empty[0]}' is not a word")
        self.blocks = nn.ParameterList(torch.randn(n, clip.text.width) * INIT_STD for _ in words)
        placed = [clip.word_embeddings(word) for word in words]
        behind = placed[0][:0]
        if settings.published_slicing:
            placed, behind = _as_published(clip, words, n, n_ctx)
        self.lengths = [len(word) for word in placed]
        self.register_buffer("words", torch.cat(placed), persistent=False)
        # a copy, since exports would contain the rest of a view
        self.register_buffer("behind", behind.clone(), persistent=False)

    @property
    def front(self) -> int:
        """Number of tokens in front of the context."""
        return sum(len(block) for block in self.blocks) + sum(self.lengths)

    @property
    def n_inserted(self) -> int:
        """Number of positions that they take in a prompt."""
        return self.front + len(self.behind)

    def forward(self) -> Tensor:
        """Learnt vectors and words before the context (m, d_t)."""
        words: Tensor = self.get_buffer("words")
        pieces = zip(self.blocks, words.split(self.lengths), strict=True)
        return torch.cat([piece for pair in pieces for piece in pair])


def _as_published(clip: FrozenCLIP, words: list[str], n: int, n_ctx: int) -> tuple[list[Tensor], Tensor]:
    """The tokens that published code takes for the words, assuming one token each, and those it leaves over."""
    text = [part for word in words for part in (*[PLACEHOLDER] * n, word)] + [PLACEHOLDER] * n_ctx
    tokens = clip.word_embeddings(" ".join(text))
    places = [(n + 1) * (i + 1) - 1 for i in range(len(words))]
    return [tokens[place : place + 1] for place in places], tokens[(n + 1) * len(words) + n_ctx :]


def make_attributes(clip: FrozenCLIP, settings: AttributeSettings | None, n_ctx: int) -> Attributes | None:
    """The attribute words in the settings; None if there are none.

    Raises:
        VlpromptError: one is not a word, or other settings of attributes are given without any.
    """
    if settings is None:
        return None
    if not settings.attributes:
        if settings.n_att is not None or settings.published_slicing:
            raise VlpromptError("n_att and published_slicing need attributes: give some, as in attributes=[color]")
        return None
    return Attributes(clip, settings, n_ctx)


def facts_with_attributes(config: Any, facts: Facts) -> Facts:
    """The facts of a learner with attribute words, for which recipes have the authors' values (``selection=paper``)."""
    if not getattr(config, "attributes", None) or facts.paper_settings is not None:
        return facts
    return replace(facts, paper_settings="none")
