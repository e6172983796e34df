"""From texts and class names to token ids and embeddings."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vlprompt.clip.naming import ClassNames, all_names, names_and_owners, natural_name
from vlprompt.clip.text import Prompts, same_beginnings
from vlprompt.clip.towers import TextTower
from vlprompt.errors import VlpromptError

Tokenizer = Callable[..., Tensor]
LISTS_KEPT = 64  # tokenized lists of class prompts that are cached per model
SHORTEST_TEXT = 3  # start of text, a word of one token, end of text


@dataclass(frozen=True)
class ClassTokens:
    """Class prompts "words name." as token ids, without the leading start-of-text token.

    Attributes:
        ids: (C, S), prompts with end-of-text and padding; one row per name if classes have several.
        lengths: (C,), number of tokens up to and including end-of-text.
        name_lengths: (C,), number of tokens of the class name alone.
        n_words: number of leading tokens that are the same fixed words in every prompt.
        beginnings: (C, S), as returned by ``vlprompt.clip.text.same_beginnings``.
        owners: the class of each row, if classes have several names; None if every row is a class.
        averaged: whether the features of a class's names are averaged, see ``vlprompt.clip.text.Prompts``.
    """

    ids: Tensor
    lengths: Tensor
    name_lengths: Tensor
    n_words: int
    beginnings: Tensor
    owners: Tensor | None = None
    averaged: bool = True


# tokenized class prompts by model, for as long as it lives
_TOKENIZED: WeakKeyDictionary[PromptInputs, dict[tuple[Any, ...], ClassTokens]] = WeakKeyDictionary()


class PromptInputs:
    """The part of ``FrozenCLIP`` that tokenizes texts and class prompts, and embeds them."""

    name: str
    device: torch.device
    text: TextTower
    tokenizer: Tokenizer
    _start: int  # number of start tokens that every text has
    _start_ids: Tensor  # their ids
    _padding_id: int

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of the text tower, L."""
        return self.text.context_length

    def _probe_tokenizer(self) -> tuple[int, int]:
        """Number of start tokens that every text has, and the padding id; checks that the tokenizer fits."""
        try:
            ids = self.tokenizer(["a", "dog", ""], context_length=self.context_length)
            highest = int(ids.max()) if ids.dim() == 2 else 0
        except Exception as error:  # the tokenizer may be anyone's code
            reason = " ".join(str(error).split())[:200]
            raise VlpromptError(
                f"the tokenizer does not give ids (N, L) for tokenizer(texts, context_length=L): {reason}"
            ) from error
        if self.text.promptable and highest >= (known := len(self.text.module.token_embedding.weight)):
            raise VlpromptError(
                f"the tokenizer gives ids up to {highest}, and the model knows {known}: give the tokenizer of the model"
            )
        same = (ids[0] == ids[1]).tolist()
        return (same.index(False) if False in same else 0), statistics.mode(ids[2].tolist())

    def _lengths(self, ids: Tensor) -> Tensor:
        """Number of tokens of each row without padding, including start and end: (C, L) -> (C,)."""
        if self.text.promptable and self.text.pool_type in ("argmax", "eos"):
            return self.text.end_of_text(ids) + 1
        return (ids != self._padding_id).sum(dim=-1)

    def room_for_words(self, inserted: int) -> int:
        """Number of tokens left for words next to learnt vectors; raises ``VlpromptError`` if there are too few."""
        room = self.context_length - inserted
        if room < SHORTEST_TEXT:
            raise VlpromptError(
                f"{inserted} learnt vectors leave no room for class names: the text tower of {self.name} reads "
                f"{self.context_length} tokens"
            )
        return room

    def tokenize(self, texts: Sequence[str], inserted: int = 0, cut: bool = False) -> Tensor:
        """Tokenize to (N, L - inserted) ids; raises ``VlpromptError`` naming a text that is too long.

        Args:
            texts: the texts.
            inserted: number of positions to leave free for learnt vectors.
            cut: truncate texts that are too long instead of raising; the end-of-text token is kept.
        """
        room = self.room_for_words(inserted)
        ids = self.tokenizer(list(texts), context_length=room)
        lengths = self._lengths(self.tokenizer(list(texts), context_length=4 * self.context_length))
        too_long = (lengths > room).nonzero().flatten().tolist()
        if too_long and not cut:
            text, length = texts[too_long[0]], int(lengths[too_long[0]]) + inserted
            more = f" (and {len(too_long) - 1} more)" if len(too_long) > 1 else ""
            raise VlpromptError(
                f"'{text:.80}' takes {length} tokens with its context, but the text tower of {self.name} "
                f"reads {self.context_length}: shorten the class name or the context{more}"
            )
        return ids.to(self.device)

    def class_tokens(
        self, class_names: Sequence[str], words: str = "", inserted: int = 0, stop: str = "."
    ) -> ClassTokens:
        """Tokenize the class prompts "words name." and leave room for learnt vectors after start-of-text.

        The latest lists are cached for all learners of the model, since a sweep, or a test on both halves of the
        classes, repeats the same few.

        Args:
            class_names: C names; classes with several (``ClassNames``) get one row per name.
            words: fixed words before the class name, such as "a photo of a".
            inserted: number of learnt vectors.
            stop: text after the class name.

        Raises:
            VlpromptError: a prompt is longer than the text tower's context.
        """
        names, owners = names_and_owners(class_names)
        best = isinstance(class_names, ClassNames) and class_names.best
        key, cache = (tuple(names), owners, best, words, inserted, stop), _TOKENIZED.setdefault(self, {})
        tokens = cache.pop(key, None) or self._class_tokens(class_names, words, inserted, stop)
        cache[key] = tokens  # at the end: the first entry is the one used longest ago
        if len(cache) > LISTS_KEPT:
            cache.pop(next(iter(cache)))
        return tokens

    def _class_tokens(self, class_names: Sequence[str], words: str, inserted: int, stop: str) -> ClassTokens:
        names = [natural_name(name) for name in all_names(class_names)]
        ids = self.tokenize([f"{words} {name}{stop}".strip() for name in names], inserted)
        lengths = self._lengths(ids) - self._start
        ids = ids[:, self._start :]
        if self.text.shares_prefix:
            ids = ids[:, : int(lengths.max())]  # nothing after end-of-text is read
        n_words = int(self.count_tokens([words])) if words else 0
        beginnings, named = same_beginnings(ids), self._names_of(class_names)
        return ClassTokens(ids, lengths, self.count_tokens(names), n_words, beginnings, **named)

    def _names_of(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The fields ``owners`` and ``averaged`` of prompts, if classes have several names; else none."""
        _, owners = names_and_owners(class_names)
        if owners is None:
            return {}
        best = isinstance(class_names, ClassNames) and class_names.best
        return {"owners": torch.tensor(owners, device=self.device), "averaged": not best}

    def prompts_of_classes(self, class_names: Sequence[str], template: str) -> Prompts:
        """Prompts for ``encode_prompts``: each class name, or each name of a class, in a template with one ``{}``."""
        texts = [template.replace("{}", natural_name(name)) for name in all_names(class_names)]
        return replace(self.prompts_of(texts), **self._names_of(class_names))

    def count_tokens(self, texts: Sequence[str]) -> Tensor:
        """Number of tokens (N,) of each text, without the start and end tokens."""
        ids = self.tokenizer([*texts, ""], context_length=4 * self.context_length)
        lengths = self._lengths(ids)
        return (lengths[:-1] - lengths[-1]).to(self.device)

    def word_embeddings(self, words: str) -> Tensor:
        """Token embeddings (n, d_t) of a phrase, without the start and end tokens."""
        count = int(self.count_tokens([words])[0])
        return self.text.embed(self.tokenize([words])[0, self._start : self._start + count])

    def start_embedding(self) -> Tensor:
        """Embedding (1, d_t) of start-of-text; (0, d_t) for tokenizers without one."""
        return self.text.embed(self._start_ids)

    def prompts_of(self, texts: Sequence[str], cut: bool = False) -> Prompts:
        """Whole texts as prompts for ``encode_prompts``, which unlike ``encode_text`` keeps gradients of edits.

        What all texts have in common at the beginning becomes their shared prefix. Arguments as for ``tokenize``.
        """
        ids = self.tokenize(texts, cut=cut)
        lengths = self._lengths(ids) - self._start
        start, ids = self.start_embedding(), ids[:, self._start :]
        if self.text.shares_prefix:
            ids = ids[:, : int(lengths.max())]  # nothing after end-of-text is read
            common = (ids == ids[:1]).all(dim=0).int().cumprod(dim=0).sum()  # tokens that all texts begin with
            same = min(int(common), int(lengths.min()) - 1)
            start = torch.cat([start, self.text.embed(ids[0, :same])])
            ids, lengths = ids[:, same:], lengths - same
        return Prompts(start.unsqueeze(0), self.text.embed(ids), lengths, same_beginnings(ids))
