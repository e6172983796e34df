"""Exact prompted text encoding: what stands before a class name is computed once for all classes.

In a causal text tower a token sees only what stands before it, so ``[SOS, context, fixed words]`` has the same hidden
states in front of every class name, and nothing after the end-of-text token matters. One pass encodes the prefix and
keeps its keys and values; a second encodes the packed class suffixes, each of which attends to ``[prefix | itself]``.
That is ``P + Σ_c S_c`` tokens instead of ``L·C``, and fewer still where class names begin alike: "boeing 737-200" and
"boeing 737-300" are one token sequence up to their last word (docs/design.md, "Exact text encoding").

``encode_prompts_plain`` computes the same over full-length sequences: the counterpart that tests compare with, and the
way for towers that are not causal or pool elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlprompt.towers import TextTower

KeysValues = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Prompts:
    """Class prompts as embeddings, cut where they stop being the same for every class.

    Attributes:
        prefix: (G, P, d_t), start-of-text and the context shared by all classes; G prompts are encoded side by side
            (1 for a unified context, the batch for an image-conditioned one, K for a collection of prompts).
        suffix: (C, S, d_t) or (G, C, S, d_t), what follows for each class, padded at the end.
        lengths: (C,), tokens of each suffix up to and including end-of-text.
        beginnings: (C, S), the same number wherever suffixes are the same up to and including that token, as
            ``same_beginnings`` gives them; None takes every token for a different one.
        deep: {layer: (n, d_t) or (G, n, d_t)}, tokens that replace positions 1…n at the input of that block.
        start: position of the first replaced token, after start-of-text (0 for tokenizers that have none).
    """

    prefix: Tensor
    suffix: Tensor
    lengths: Tensor
    beginnings: Tensor | None = None
    deep: Mapping[int, Tensor] | None = None
    start: int = 1


def same_beginnings(ids: Tensor) -> Tensor:
    """Number the beginnings of token rows: equal numbers at (C, S) where rows are equal up to and including that token.

    Args:
        ids: (C, S).

    >>> same_beginnings(torch.tensor([[7, 8, 9], [7, 8, 5], [6, 8, 9]])).tolist()
    [[2, 4, 7], [2, 4, 6], [1, 3, 5]]
    """
    columns, vocabulary = [torch.zeros_like(ids[:, 0])], int(ids.max()) + 1
    for column in ids.T:
        before = columns[-1]
        _, number = (before * vocabulary + column).unique(return_inverse=True)
        columns.append(number + before.max() + 1)
    return torch.stack(columns[1:], dim=1)


def encode_prompts(tower: TextTower, prompts: Prompts, chunk: int | None = None) -> Tensor:
    """Encode class prompts exactly, sharing the prefix where the tower allows it.

    Args:
        tower: the text tower.
        prompts: G·C prompts; positional embeddings are added here.
        chunk: classes encoded at a time. While gradients are recorded each chunk is checkpointed: its activations are
            computed again in the backward pass, so that memory grows with the chunk and not with C.

    Returns:
        Text features (G, C, D), fp32, not normalised.
    """
    if not tower.shares_prefix:
        return _in_chunks(prompts, chunk, lambda suffix, lengths, _: _encode_full(tower, prompts, suffix, lengths))
    prefix = _encode_prefix(tower, prompts)
    start = prompts.prefix.shape[1]
    return _in_chunks(prompts, chunk, lambda *suffix: _encode_suffix(tower, prefix, start, *suffix))


def encode_prompts_plain(tower: TextTower, prompts: Prompts) -> Tensor:
    """Encode the same prompts as full-length sequences, one by one per class as the published code does: (G, C, D)."""
    return _encode_full(tower, prompts, prompts.suffix, prompts.lengths)


def _in_chunks(prompts: Prompts, chunk: int | None, encode) -> Tensor:
    """Run ``encode(suffix, lengths, beginnings)`` over slices of the class axis and join the results on it."""
    suffix, lengths, beginnings = prompts.suffix, prompts.lengths, prompts.beginnings
    if chunk is None or chunk >= len(lengths):
        return encode(suffix, lengths, beginnings)
    parts = suffix.split(chunk, dim=-3), lengths.split(chunk)
    pieces = zip(*parts, [None] * len(parts[1]) if beginnings is None else beginnings.split(chunk), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(encode, *piece, use_reentrant=False) for piece in pieces], dim=1)
    return torch.cat([encode(*piece) for piece in pieces], dim=1)


def _replace_deep(x: Tensor, tokens: Tensor | None, start: int) -> Tensor:
    """Put deep prompt tokens (n, d_t) or (G, n, d_t) in the place of positions start…start+n-1 of x (G, P, d_t)."""
    if tokens is None:
        return x
    tokens = tokens.expand(len(x), -1, -1)
    return torch.cat([x[:, :start], tokens, x[:, start + tokens.shape[1] :]], dim=1)


def _encode_prefix(tower: TextTower, prompts: Prompts) -> KeysValues:
    """Keys and values (G, H, P, d_h) of the shared prefix in every block."""
    deep = prompts.deep or {}
    x = prompts.prefix + tower.positions[: prompts.prefix.shape[1]]  # (G, P, d_t)
    out = []
    for i, block in enumerate(tower.blocks):
        x = _replace_deep(x, deep.get(i), prompts.start)
        if i == tower.layers - 1:  # nothing reads the prefix after the last block
            k, v = (t.transpose(1, 2) for t in block.project(x, "kv"))
        else:
            q, k, v = (t.transpose(1, 2) for t in block.project(x))  # (G, H, P, d_h)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = block.finish(x, attended.transpose(1, 2))
        out.append((k, v))
    return out


def _pack(kept: Tensor, beginnings: Tensor | None) -> tuple[Tensor, Tensor]:
    """Number the different tokens of a padded grid.

    Args:
        kept: (C, S), False at the padding.
        beginnings: (C, S), or None if all are different.

    Returns:
        Slots (T,), a place of each of the T different tokens in the flat grid; and owners (C, S), the token at each
        place. At the padding that is any one.
    """
    slots = kept.flatten().nonzero().squeeze(1)
    tokens, count = torch.arange(len(slots), device=slots.device), len(slots)
    if beginnings is not None:
        different, same = beginnings[kept].unique(return_inverse=True)
        if len(different) < count:
            tokens, count = same, len(different)
    owners = slots.new_zeros(kept.shape).masked_scatter(kept, tokens)
    return slots.new_zeros(count).scatter_reduce(0, tokens, slots, "amax"), owners


def _encode_suffix(
    tower: TextTower, prefix: KeysValues, start: int, suffix: Tensor, lengths: Tensor, beginnings: Tensor | None
) -> Tensor:
    """Encode class suffixes ([G,] C, S, d_t) behind the prefix's keys and values: (G, C, D).

    Linear layers see the T different tokens packed (G, T, d_t); attention sees all, padded to (G, H, C, S, d_h).
    Layer 0's input is the same for all G prompts unless the suffix holds context itself, so its group axis stays 1
    until the prefix enters.
    """
    longest = int(lengths.max())
    suffix = suffix[..., :longest, :] + tower.positions[start : start + longest]
    suffix = suffix if suffix.dim() == 4 else suffix.unsqueeze(0)
    kept = torch.arange(longest, device=lengths.device) < lengths[:, None]  # (C, S)
    slots, owners = _pack(kept, None if beginnings is None else beginnings[:, :longest])
    ends = owners.gather(1, lengths[:, None] - 1).squeeze(1)  # (C,) places of end-of-text among the packed tokens
    future = torch.ones(longest, longest, dtype=torch.bool, device=lengths.device).triu(1)
    x = suffix.flatten(1, 2)[:, slots]  # (G, T, d_t)

    def pad(t: Tensor) -> Tensor:
        """Packed (G, T, H, d_h) -> (G, H, C, S, d_h)."""
        if len(slots) < kept.numel():
            t = t.index_select(1, owners.flatten())
        return t.unflatten(1, kept.shape).movedim(3, 1)

    for i, (block, (prefix_k, prefix_v)) in enumerate(zip(tower.blocks, prefix, strict=True)):
        last = i == tower.layers - 1
        if last:  # only the end-of-text token is read, so only it asks; keys and values are needed for all
            (q,) = block.project(x[:, ends], "q")  # (G, C, H, d_h)
            k, v = map(pad, block.project(x, "kv"))
            q, x = q.unsqueeze(2).movedim(3, 1), x[:, ends]  # (G, H, C, 1, d_h)
            hidden = ~kept.unsqueeze(1)  # (C, 1, S)
        else:
            q, k, v = map(pad, block.project(x))
            hidden = future
        out = _attend(q, k, v, prefix_k, prefix_v, hidden).movedim(1, 3)  # (G, C, S or 1, H, d_h)
        out = out.flatten(1, 2)
        x = block.finish(x, out if last or len(slots) == kept.numel() else out[:, slots])
        if tower.watch:
            tower.watch(i, x if last else x[:, ends])
    return tower.project(x)


def _attend(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, hidden: Tensor) -> Tensor:
    """Softmax attention of suffix queries over [prefix keys | own keys], by explicit products.

    q (G, H, C, Q, d_h); k, v (G, H, C, S, d_h); prefix_k, prefix_v (G, H, P, d_h); hidden is True where an own key must
    not be seen. The prefix part is one large product per head; no copy of the prefix is made for any class.
    """
    q = q * q.shape[-1] ** -0.5
    to_prefix = (q.flatten(2, 3) @ prefix_k.transpose(-1, -2)).unflatten(2, q.shape[2:4])  # (G, H, C, Q, P)
    to_own = (q @ k.transpose(-1, -2)).masked_fill(hidden, float("-inf"))  # (G, H, C, Q, S)
    to_own = to_own.expand(len(to_prefix), *to_own.shape[1:])
    size = prefix_k.shape[-2]
    weights = torch.cat([to_prefix, to_own], dim=-1).softmax(dim=-1)
    from_prefix = weights[..., :size].flatten(2, 3) @ prefix_v  # (G, H, C·Q, d_h)
    return from_prefix.unflatten(2, q.shape[2:4]) + weights[..., size:] @ v


def _encode_full(tower: TextTower, prompts: Prompts, suffix: Tensor, lengths: Tensor) -> Tensor:
    """Encode full-length sequences, group by group: (G, C, D)."""
    groups = max(len(prompts.prefix), len(suffix) if suffix.dim() == 4 else 1)
    prefix = prompts.prefix.expand(groups, -1, -1)
    suffix = suffix.expand(groups, *suffix.shape[-3:])
    return torch.stack([_encode_sequences(tower, prompts, g, prefix[g], suffix[g], lengths) for g in range(groups)])


def _encode_sequences(
    tower: TextTower, prompts: Prompts, group: int, prefix: Tensor, suffix: Tensor, lengths: Tensor
) -> Tensor:
    """Encode C sequences of context length: prefix (P, d_t), suffix (C, S, d_t) -> (C, D)."""
    size, count = len(prefix), len(suffix)
    x = torch.cat([prefix.expand(count, -1, -1), suffix], dim=1)[:, : tower.context_length]
    x = F.pad(x, (0, 0, 0, tower.context_length - x.shape[1]))  # (C, L, d_t)
    end = size + lengths - 1
    mask = tower.full_mask(torch.arange(x.shape[1], device=x.device) <= end[:, None])
    if tower.cls_emb is not None:
        x = torch.cat([x, tower.cls_emb.float().expand(count, 1, -1)], dim=1)
    x = x + tower.positions[: x.shape[1]]
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (count, -1))  # (C, H, L, L)
    for i, block in enumerate(tower.blocks):
        tokens = (prompts.deep or {}).get(i)
        if tokens is not None and tokens.dim() == 3:
            tokens = tokens[group if len(tokens) > 1 else 0]
        x = _replace_deep(x, tokens, prompts.start)
        q, k, v = (t.transpose(1, 2) for t in block.project(x))  # (C, H, L, d_h)
        x = block.finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2))
        if tower.watch:
            tower.watch(i, tower.pool_full(x, end).unsqueeze(0))
    return tower.project(tower.pool_full(x, end))
