"""Learnable parts: context tokens, deep prompts, visual prompts and the coupling between them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vlprompt.clip.chunks import Chunk
from vlprompt.clip.edits import Edit
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.prompt_inputs import ClassTokens
from vlprompt.clip.text import Prompts
from vlprompt.clip.vision import Place
from vlprompt.errors import VlpromptError
from vlprompt.learner.attributes import AttributeSettings, make_attributes

Position = Literal["end", "middle", "front"]
DEFAULT_N_CTX = 16
MOST_VISUAL = 10_000  # tokens beside the patches of one layer; published methods have 2 to 50
INIT_STD = 0.02  # of random context and deep prompts, as in CoOp


def random_tokens(*shape: int) -> nn.Parameter:
    """Tokens drawn from N(0, 0.02²)."""
    return nn.Parameter(torch.randn(*shape) * INIT_STD)


def split_words(clip: FrozenCLIP, words: str, n: int) -> tuple[Tensor, str]:
    """Embeddings (n, d_t) of a phrase's first n tokens, and the remaining words, which stay fixed.

    MaPLe learns two tokens in place of "a photo" and keeps "of a".
    """
    embedded = clip.word_embeddings(words)
    if n > len(embedded):
        raise VlpromptError(
            f"ctx_init '{words:.80}' has {len(embedded)} tokens, fewer than n_ctx={n}; use ctx_init=null"
        )
    parts = words.split()
    for cut in range(len(parts) + 1):
        if int(clip.count_tokens([" ".join(parts[:cut])])[0]) == n:
            return embedded[:n], " ".join(parts[cut:])
    raise VlpromptError(f"n_ctx={n} cuts a word of ctx_init '{words:.80}' in two; choose another n_ctx")


class TextPrompt(nn.Module):
    """Context vectors among the words of a class prompt, and deep prompts in later blocks.

    Args:
        clip: the frozen model; sizes are read from it.
        n_ctx: number n of learnt tokens; None uses as many as ``ctx_init`` has, or 16.
        ctx_init: a phrase such as "a photo of a", whose first n tokens initialize the context while the rest stay as
            fixed words; None draws from N(0, 0.02²).
        position: position of the class name: after the context (``end``), in its ``middle``, or in ``front``.
        depth: number of blocks that get learnt tokens, including the first.
        n_classes: set for a separate context per class.
        n_prompts: set for a collection of K prompts, encoded side by side.
        attributes: attribute words in front of the context, if any.

    Attributes:
        ctx: (n, d_t); (C, n, d_t) when class-specific; (K, n, d_t) for a collection.
        deep: depth-1 tensors (n, d_t); the i-th replaces the context's states at the input of block i+1.
        words: the fixed words after the context.
        attributes: the words in front of it, with the learnt vectors before each; None without any.
        start: word embeddings (n, d_t) that the context was initialized with; None if it was drawn.
        update: added to the embeddings of the words after start-of-text, by position; None adds nothing.
    """

    start: Tensor | None

    def __init__(
        self,
        clip: FrozenCLIP,
        n_ctx: int | None = None,
        ctx_init: str | None = None,
        position: Position = "end",
        depth: int = 1,
        n_classes: int | None = None,
        n_prompts: int | None = None,
        attributes: AttributeSettings | None = None,
    ):
        super().__init__()
        clip.require(text=depth)
        if position not in get_args(Position):
            raise VlpromptError(f"unknown class_token_position '{position}': use {', '.join(get_args(Position))}")
        if n_ctx is None:
            n_ctx = int(clip.count_tokens([ctx_init])[0]) if ctx_init else DEFAULT_N_CTX
        if n_ctx < 1:
            raise VlpromptError(f"n_ctx={n_ctx} leaves nothing to learn; use 1 or more")
        clip.room_for_words(n_ctx)  # before memory is asked for
        start, self.words = split_words(clip, ctx_init, n_ctx) if ctx_init else (None, "")
        if position != "end" and (depth > 1 or self.words):
            raise VlpromptError("deep text prompts and fixed words behind the context need class_token_position=end")
        if depth > 1 and n_classes is not None:
            raise VlpromptError("deep text prompts need one context for all classes: set class_specific=false")
        shape = (n_ctx, clip.text.width)
        sets = [count for count in (n_classes, n_prompts) if count is not None]
        ctx = random_tokens(*sets, *shape)
        self.ctx = ctx if start is None else nn.Parameter(start.expand_as(ctx).clone())
        self.register_buffer("start", start, persistent=False)
        self.update: nn.Module | None = None
        self.deep = nn.ParameterList(random_tokens(*shape) for _ in range(depth - 1))
        self.attributes = make_attributes(clip, attributes, n_ctx)
        self.n_ctx, self.class_specific = n_ctx, n_classes is not None
        self.before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]  # learnt tokens before the name

    def compute_from(self, tokens: nn.Module) -> None:
        """Make ``ctx`` and ``deep`` the output of a module (as one list), and train its parameters instead."""
        del self.ctx, self.deep
        self.tokens = tokens

    @property
    def is_computed(self) -> bool:
        """Whether the tokens are computed from other parameters."""
        return "tokens" in self._modules

    @property
    def trains_vectors(self) -> bool:
        """Whether the context's vectors are parameters themselves, not the output of a module or method."""
        return "ctx" in self._parameters

    def __getattr__(self, name: str) -> Any:
        if name in ("ctx", "deep") and self.is_computed:
            ctx, *deep = self.tokens()
            return ctx if name == "ctx" else deep
        return super().__getattr__(name)

    def tokenize(self, clip: FrozenCLIP, class_names: Sequence[str]) -> ClassTokens:
        """Token ids of the class prompts, with room for the context."""
        return clip.class_tokens(class_names, self.words, self.n_inserted)

    @property
    def n_inserted(self) -> int:
        """Number of positions besides words: the context, and attribute words with the learnt vectors before them."""
        return self.n_ctx + (self.attributes.n_inserted if self.attributes else 0)

    def first(self, clip: FrozenCLIP) -> int:
        """Position of the context's first token in a prompt (for class names at the end)."""
        return len(clip.start_embedding()) + (self.attributes.front if self.attributes else 0)

    def encode(
        self,
        clip: FrozenCLIP,
        tokens: ClassTokens,
        ctx: Tensor | None = None,
        chunk: Chunk = None,
        edits: Sequence[Edit] = (),
    ) -> Tensor:
        """Encode the class prompts.

        Args:
            clip: the frozen model.
            tokens: as returned by ``tokenize``.
            ctx: replaces ``self.ctx``: (n, d_t), (C, n, d_t) if class-specific, (G, n, d_t) for G prompts side by side,
                or (G, C, n, d_t) for G per class.
            chunk: number of classes at a time; ``auto`` uses as many as fit in memory.
            edits: the learner's edits of the text tower, ``learner.edits``.

        Returns:
            Features (G, C, D), fp32, not normalised; G is 1 unless ``ctx`` holds several prompts.
        """
        prompts = self.assemble(clip, tokens, self.ctx if ctx is None else ctx)
        return clip.encode_prompts(replace(prompts, owners=tokens.owners, averaged=tokens.averaged), chunk, edits)

    def assemble(self, clip: FrozenCLIP, tokens: ClassTokens, ctx: Tensor) -> Prompts:
        """Split the prompts into what all classes share and what follows for each; ``ctx`` as in ``encode``."""
        start, behind = clip.start_embedding(), ctx.new_empty(0, ctx.shape[-1])  # (1, d_t)
        if self.attributes is not None:
            start, behind = torch.cat([start, self.attributes()]), self.attributes.behind
        deep = {i + 1: prompt for i, prompt in enumerate(self.deep)}
        body = self._embed(clip, tokens)  # (C, S, d_t)
        of_classes = self.class_specific or ctx.dim() == 4
        if of_classes and tokens.owners is not None:  # a class's context for each of its names
            ctx = ctx.index_select(-3, tokens.owners)
        head, tail = ctx[..., : self.before, :], ctx[..., self.before :, :]
        if of_classes:
            sets = ctx.shape[:-2]  # (C,) or (G, C)
            named = _insert(body, tail, tokens.name_lengths).expand(*sets, -1, -1)
            suffix = torch.cat([head, behind.expand(*sets, -1, -1), named], dim=-2)
            return Prompts(start.unsqueeze(0), suffix, tokens.lengths + self.n_ctx + len(behind), context=ctx)
        head = head if head.dim() == 3 else head.unsqueeze(0)  # (G, h, d_t)
        words = body[0, : tokens.n_words]
        before, fixed = start.expand(len(head), -1, -1), torch.cat([behind, words]).expand(len(head), -1, -1)
        prefix = torch.cat([before, head, fixed], dim=1)
        if tail.dim() == 3:
            tail = tail.unsqueeze(1)  # (G, 1, n-h, d_t)
        suffix = _insert(body[:, tokens.n_words :], tail, tokens.name_lengths)
        lengths = tokens.lengths - tokens.n_words + tail.shape[-2]
        beginnings = tokens.beginnings[:, tokens.n_words :] if self.before == self.n_ctx else None
        return Prompts(prefix, suffix, lengths, beginnings, deep, len(start), ctx)

    def _embed(self, clip: FrozenCLIP, tokens: ClassTokens) -> Tensor:
        """Embeddings (C, S, d_t) of the tokens after start-of-text, with ``update`` added except to padding."""
        body = clip.text.embed(tokens.ids)
        if self.update is None:
            return body
        size = body.shape[1]
        kept = torch.arange(size, device=body.device) < tokens.lengths[:, None]
        return torch.where(kept.unsqueeze(-1), body + self.update(size), body)


def _insert(body: Tensor, tail: Tensor, at: Tensor) -> Tensor:
    """Insert m tokens into each row at its position: body (C, S, d), tail (…, m, d), at (C,) -> ([G,] C, S+m, d)."""
    size, extra = body.shape[1], tail.shape[-2]
    if extra == 0:
        return body
    lead = torch.broadcast_shapes(tail.shape[:-2], body.shape[:1])  # (C,) or (G, C)
    source = torch.cat([body.expand(*lead, -1, -1), tail.expand(*lead, -1, -1)], dim=-2)
    place = torch.arange(size + extra, device=body.device).expand(len(body), -1)
    at = at[:, None]
    index = torch.where(place < at, place, torch.where(place < at + extra, size + place - at, place - extra))
    return source.take_along_dim(index.expand(*lead, -1).unsqueeze(-1), dim=-2)


class VisualPrompt(nn.Module):
    """Learnt tokens next to the image patches.

    Args:
        clip: the frozen model; sizes are read from it.
        n: number of tokens per layer.
        depth: number of blocks with their own tokens, including the first: 1 is shallow.
        place: where the first layer's tokens enter, before or after ``ln_pre``.

    Attributes:
        tokens: depth tensors (n, d_v).
    """

    def __init__(self, clip: FrozenCLIP, n: int, depth: int, place: Place = "pre_ln"):
        super().__init__()
        clip.require(vision=depth)
        if place not in get_args(Place):
            raise VlpromptError(f"unknown place '{place}' of visual prompts: use {' or '.join(get_args(Place))}")
        if n > MOST_VISUAL:
            raise VlpromptError(f"{n} visual tokens per layer were asked for, and at most {MOST_VISUAL} are allowed")
        self.tokens = nn.ParameterList(random_tokens(n, clip.visual.width) for _ in range(depth))
        self.place = place

    def encode(self, clip: FrozenCLIP, images: Tensor, edits: Sequence[Edit] = ()) -> Tensor:
        """Image features (B, D), not normalised, of images (B, 3, H, W), with the tokens and the edits."""
        return clip.prompted_image_features(images, dict(enumerate(self.tokens)), self.place, edits)


class Coupling(nn.Module):
    """MaPLe's coupling functions: one linear map per layer from text to visual prompts."""

    def __init__(self, clip: FrozenCLIP, depth: int):
        super().__init__()
        clip.require(vision=depth)
        first = nn.Linear(clip.text.width, clip.visual.width)
        deep = nn.Linear(clip.text.width, clip.visual.width)
        # the deep maps start as copies of one initialised layer, as in the authors' code
        self.maps = nn.ModuleList([first, *(copy.deepcopy(deep) for _ in range(depth - 1))])

    def forward(self, text: Iterable[Tensor]) -> dict[int, Tensor]:
        """Map the text prompts (n, d_t) of each layer to its visual prompts (n, d_v)."""
        return {i: f(p) for i, (f, p) in enumerate(zip(self.maps, text, strict=True))}
