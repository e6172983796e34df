"""Exact prompted text encoding: what comes before the class name is computed once for all classes.

In a causal text tower a token attends only to itself and to earlier tokens, so ``[SOS, context, fixed words]`` has the
same hidden states before every class name, and nothing after the end-of-text token matters. One pass encodes this
prefix and keeps its keys and values; a second pass encodes the packed class suffixes, each of which attends to
``[prefix | itself]``. That is ``P + Σ_c S_c`` tokens instead of ``L·C``, and fewer still if class names begin alike:
"boeing 737-200" and "boeing 737-300" differ only in the last word (docs/design.md, "Exact text encoding").

``encode_prompts_plain`` computes the same with full-length sequences: as a reference for tests, and for towers that are
not causal or pool elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlprompt.clip.blocks import Block
from vlprompt.clip.chunks import Chunk, classes_at_once
from vlprompt.clip.edits import Edit, Rows, Trimmed, edits_of, shared_layers
from vlprompt.clip.towers import TextTower
from vlprompt.errors import VlpromptError

Encode = Callable[["Prompts", Rows], Tensor]


@dataclass(frozen=True)
class Prompts:
    """Class prompts as embeddings, split into what all classes share and what follows for each class.

    Attributes:
        prefix: (G, P, d_t), start-of-text and the context shared by all classes. G prompts are encoded side by side: 1
            for a unified context, the batch for an image-conditioned one, K for a collection of prompts.
        suffix: (C, S, d_t) or (G, C, S, d_t), what follows for each class, padded at the end.
        lengths: (C,), number of tokens of each suffix up to and including end-of-text.
        beginnings: (C, S), equal numbers where suffixes are equal up to and including that token, as returned by
            ``same_beginnings``; None treats all tokens as different.
        deep: {layer: (n, d_t) or (G, n, d_t)}, tokens that replace positions start…start+n-1 at the input of that
            block.
        start: position of the first replaced token, after start-of-text (0 for tokenizers without one).
        context: the learnt vectors of the prompts, for edits and recorders; not used for encoding.
        owners: (C,), the class of each row, if classes have several names with a row each; else None.
        averaged: whether the features of a class's names are then averaged, as directions.
    """

    prefix: Tensor
    suffix: Tensor
    lengths: Tensor
    beginnings: Tensor | None = None
    deep: Mapping[int, Tensor] | None = None
    start: int = 1
    context: Tensor | None = None
    owners: Tensor | None = None
    averaged: bool = True

    def of_classes(self, classes: slice) -> Prompts:
        """The prompts of a slice of the classes."""
        beginnings = None if self.beginnings is None else self.beginnings[classes]
        suffix = self.suffix[..., classes, :, :]
        owners = None if self.owners is None else self.owners[classes]
        return replace(self, suffix=suffix, lengths=self.lengths[classes], beginnings=beginnings, owners=owners)

    def of_group(self, group: slice) -> Prompts:
        """A slice of the G prompts of each class; tensors whose group axis is missing or of size one are kept."""

        def one(t: Tensor, dims: int) -> Tensor:
            return t[group] if t.dim() == dims and len(t) > 1 else t

        suffix = one(self.suffix, 4)
        deep = {layer: one(tokens, 3) for layer, tokens in (self.deep or {}).items()}
        return replace(self, prefix=one(self.prefix, 3), suffix=suffix, deep=deep)


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


def encode_prompts(tower: TextTower, prompts: Prompts, chunk: Chunk = None, edits: Sequence[Edit] = ()) -> Tensor:
    """Encode class prompts exactly, sharing the prefix where the tower and the edits allow it.

    Args:
        tower: the text tower.
        prompts: G·C prompts; positional embeddings are added here.
        chunk: number of classes encoded at a time. If gradients are recorded, each chunk is checkpointed: its
            activations are recomputed in the backward pass, so that memory grows with the chunk and not with C.
            ``auto`` takes as many classes as fit in memory, see ``vlprompt.clip.chunks``.
        edits: edits of any tower, of which the text tower's are applied.

    Returns:
        Text features (G, C, D), fp32, not normalised; of the C classes if rows are averaged names.

    Raises:
        VlpromptError: there are edits, but the tower takes none, or an edit's ``shared_until`` is wrong.
    """
    edits = edits_of("text", edits, tower.promptable)
    if not tower.shares_prefix or shared_layers(edits, tower.layers) == 0:
        return encode_prompts_plain(tower, prompts, edits, chunk)
    prompts = _prompted(prompts, edits)
    prefix = _encode_prefix(tower, prompts, edits)
    chunk = classes_at_once(tower, prompts, chunk, shared=True)
    features = _in_chunks(prompts, chunk, lambda part, rows: _encode_suffix(tower, prefix, part, edits, rows))
    return _of_classes(features, prompts)


def encode_prompts_plain(tower: TextTower, prompts: Prompts, edits: Sequence[Edit] = (), chunk: Chunk = None) -> Tensor:
    """Encode the same prompts as full-length sequences, one per class, as published code does: (G, C, D)."""
    edits = edits_of("text", edits, tower.promptable)
    chunk = classes_at_once(tower, prompts, chunk, shared=False)
    prompts = _prompted(prompts, edits)
    features = _in_chunks(prompts, chunk, lambda part, rows: _encode_full(tower, part, edits, rows))
    return _of_classes(features, prompts)


def average_names(features: Tensor, owners: Tensor) -> Tensor:
    """The mean direction of each class's names: features (…, M, D) and the class of each, (M,) -> (…, C, D)."""
    counts = owners.bincount()
    means = features.new_zeros(*features.shape[:-2], len(counts), features.shape[-1])
    means = means.index_add(-2, owners, F.normalize(features, dim=-1))
    return means / counts.unsqueeze(-1)


def _of_classes(features: Tensor, prompts: Prompts) -> Tensor:
    """Features (G, C, D) of classes from those of rows, which may be names."""
    if prompts.owners is None or not prompts.averaged:
        return features
    return average_names(features, prompts.owners)


def _prompted(prompts: Prompts, edits: Sequence[Edit]) -> Prompts:
    """The prompts as edits change them before they enter the tower."""
    for edit in edits:
        prompts = edit.prompted(prompts)
    return prompts


def _in_chunks(prompts: Prompts, chunk: int | None, encode: Encode) -> Tensor:
    """Encode slices of the class axis, checkpointed if gradients are recorded, and concatenate the results."""
    count = len(prompts.lengths)
    if chunk is None or chunk >= count:
        return encode(prompts, Rows(owners=prompts.owners))
    slices = [slice(first, min(first + chunk, count)) for first in range(0, count, chunk)]
    parts = [prompts.of_classes(classes) for classes in slices]
    pieces = [(part, Rows(classes=classes, owners=part.owners)) for part, classes in zip(parts, slices, strict=True)]
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(encode, *piece, use_reentrant=False) for piece in pieces], dim=1)
    return torch.cat([encode(*piece) for piece in pieces], dim=1)


def _replace_deep(x: Tensor, tokens: Tensor | None, start: int) -> Tensor:
    """Replace positions start…start+n-1 of x (G, [C,] T, d_t) by deep prompt tokens (n, d_t) or (G, n, d_t)."""
    if tokens is None:
        return x
    if tokens.dim() == 3 and x.dim() == 4:
        tokens = tokens.unsqueeze(1)
    tokens = tokens.expand(*x.shape[:-2], -1, -1)
    return torch.cat([x[..., :start, :], tokens, x[..., start + tokens.shape[-2] :, :]], dim=-2)


@dataclass(frozen=True)
class _Prefix:
    """The encoded prefix of all classes.

    Attributes:
        keys_values: keys and values (G, H, P, d_h) of each block that shares the prefix.
        states: input (G, P, d_t) of the first block that does not share it; None if all blocks do.
    """

    keys_values: list[tuple[Tensor, Tensor]]
    states: Tensor | None


def _encode_prefix(tower: TextTower, prompts: Prompts, edits: Sequence[Edit]) -> _Prefix:
    """Run the prefix of all classes through the blocks that share it."""
    deep, shared = prompts.deep or {}, shared_layers(edits, tower.layers)
    x = prompts.prefix + tower.positions[: prompts.prefix.shape[1]]  # (G, P, d_t)
    out = []
    for i, block in enumerate(tower.blocks[:shared]):
        x = _replace_deep(x, deep.get(i), prompts.start)
        for edit in edits:
            x = _one_for_all_classes(edit, edit.tokens(i, x.unsqueeze(1), Rows()), i)
        if i == tower.layers - 1:  # nothing reads the prefix after the last block
            k, v = (t.transpose(1, 2) for t in block.project(x, "kv", edits))
        else:
            q, k, v = (t.transpose(1, 2) for t in block.project(x, edits=edits))  # (G, H, P, d_h)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = block.finish(x, attended.transpose(1, 2), edits)
        out.append((k, v))
    return _Prefix(out, None if shared == tower.layers else x)


def _one_for_all_classes(edit: Edit, x: Tensor, layer: int) -> Tensor:
    """Prefix states (G, 1, P, d_t) without the class axis; ``VlpromptError`` if they differ between classes."""
    if x.shape[1] == 1:
        return x.squeeze(1)
    raise VlpromptError(
        f"{type(edit).__name__} gives each class tokens of its own in block {layer}: set its shared_until to {layer}"
    )


def _pack(kept: Tensor, beginnings: Tensor | None) -> tuple[Tensor, Tensor]:
    """Number the distinct tokens of a padded grid, so that each is computed once.

    Args:
        kept: (C, S), False for padding.
        beginnings: (C, S), as in ``Prompts``; None if all tokens are distinct.

    Returns:
        Slots (T,), a position of each of the T distinct tokens in the flattened grid; and owners (C, S), the number of
        the token at each position (arbitrary for padding).
    """
    slots = kept.flatten().nonzero().squeeze(1)
    tokens, count = torch.arange(len(slots), device=slots.device), len(slots)
    if beginnings is not None:
        different, same = beginnings[kept].unique(return_inverse=True)
        if len(different) < count:
            tokens, count = same, len(different)
    owners = slots.new_zeros(kept.shape).masked_scatter(kept, tokens)
    return slots.new_zeros(count).scatter_reduce(0, tokens, slots, "amax"), owners


def _encode_suffix(tower: TextTower, prefix: _Prefix, prompts: Prompts, edits: Sequence[Edit], rows: Rows) -> Tensor:
    """Encode class suffixes ([G,] C, S, d_t), given the prefix's keys and values: (G, C, D).

    Linear layers process the T distinct tokens packed, (G, T, d_t); attention processes all of them, padded to
    (G, H, C, S, d_h). The input of block 0 is the same for all G prompts unless the suffix contains context, so the
    group axis has size 1 until the first attention to the prefix. From the block on that gives each class its own
    prefix, prefix and suffix are processed together.
    """
    lengths, beginnings, start = prompts.lengths, prompts.beginnings, prompts.prefix.shape[1]
    longest = int(lengths.max())
    suffix = prompts.suffix[..., :longest, :] + tower.positions[start : start + longest]
    suffix = suffix if suffix.dim() == 4 else suffix.unsqueeze(0)
    kept = torch.arange(longest, device=lengths.device) < lengths[:, None]  # (C, S)
    slots, owners = _pack(kept, None if beginnings is None else beginnings[:, :longest])
    ends = owners.gather(1, lengths[:, None] - 1).squeeze(1)  # (C,) positions of end-of-text among the packed tokens
    future = torch.ones(longest, longest, dtype=torch.bool, device=lengths.device).triu(1)
    x = suffix.flatten(1, 2)[:, slots]  # (G, T, d_t)

    def unpack(t: Tensor) -> Tensor:
        """Packed (G, T, …) -> (G, C, S, …)."""
        if len(slots) < kept.numel():
            t = t.index_select(1, owners.flatten())
        unpacked: Tensor = t.unflatten(1, kept.shape)
        return unpacked

    def pad(t: Tensor) -> Tensor:
        """Packed (G, T, H, d_h) -> (G, H, C, S, d_h)."""
        return unpack(t).movedim(3, 1)

    for i, (prefix_k, prefix_v) in enumerate(prefix.keys_values):
        block, last = tower.blocks[i], i == tower.layers - 1
        if last:  # only end-of-text is pooled, so only its query is needed, but all keys and values are
            (q,) = block.project(x[:, ends], "q", edits)  # (G, C, H, d_h)
            k, v = map(pad, block.project(x, "kv", edits))
            q, x = q.unsqueeze(2).movedim(3, 1), x[:, ends]  # (G, H, C, 1, d_h)
            hidden = ~kept.unsqueeze(1)  # (C, 1, S)
        else:
            q, k, v = map(pad, block.project(x, edits=edits))
            hidden = future
        out = _attend(q, k, v, prefix_k, prefix_v, hidden).movedim(1, 3)  # (G, C, S or 1, H, d_h)
        out = out.flatten(1, 2)
        x = block.finish(x, out if last or len(slots) == kept.numel() else out[:, slots], edits)
        for edit in edits:
            edit.pooled(i, x if last else x[:, ends], rows)
    if prefix.states is None:
        return tower.project(x, edits)
    states = prefix.states.unsqueeze(1).expand(len(x), len(lengths), -1, -1)  # (G, C, P, d_t)
    end = states.shape[2] + lengths - 1
    whole = torch.cat([states, unpack(x)], dim=2)  # (G, C, P+S, d_t)
    return _encode_sequences(tower, whole, end, prompts, edits, rows, len(prefix.keys_values))


def _attend(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, hidden: Tensor) -> Tensor:
    """Softmax attention of suffix queries over [prefix keys | own keys], by explicit products.

    q (G, H, C, Q, d_h); k, v (G, H, C, S, d_h); prefix_k, prefix_v (G, H, P, d_h); hidden is True where an own key is
    masked. The prefix part is a single product per head, without copying the prefix for each class.
    """
    q = q * q.shape[-1] ** -0.5
    to_prefix = (q.flatten(2, 3) @ prefix_k.transpose(-1, -2)).unflatten(2, q.shape[2:4])  # (G, H, C, Q, P)
    to_own = (q @ k.transpose(-1, -2)).masked_fill(hidden, float("-inf"))  # (G, H, C, Q, S)
    to_own = to_own.expand(len(to_prefix), *to_own.shape[1:])
    size = prefix_k.shape[-2]
    weights = torch.cat([to_prefix, to_own], dim=-1).softmax(dim=-1)
    from_prefix = weights[..., :size].flatten(2, 3) @ prefix_v  # (G, H, C·Q, d_h)
    attended: Tensor = from_prefix.unflatten(2, q.shape[2:4]) + weights[..., size:] @ v
    return attended


def _encode_full(tower: TextTower, prompts: Prompts, edits: Sequence[Edit], rows: Rows) -> Tensor:
    """Encode full-length sequences, group by group: (G, C, D)."""
    groups = max(len(prompts.prefix), len(prompts.suffix) if prompts.suffix.dim() == 4 else 1)
    each = [slice(g, g + 1) for g in range(groups)]
    return torch.cat([_encode_group(tower, prompts.of_group(g), edits, rows._replace(groups=g)) for g in each])


def _encode_group(tower: TextTower, prompts: Prompts, edits: Sequence[Edit], rows: Rows) -> Tensor:
    """Encode the C sequences of one group, of context length unless an edit trims them: (1, C, D)."""
    size, count = prompts.prefix.shape[1], len(prompts.lengths)
    suffix = prompts.suffix.squeeze(0) if prompts.suffix.dim() == 4 else prompts.suffix
    trimmed = tower.shares_prefix and any(isinstance(edit, Trimmed) for edit in edits)
    length = size + int(prompts.lengths.max()) if trimmed else tower.context_length
    x = torch.cat([prompts.prefix.expand(count, -1, -1), suffix], dim=1)[:, :length]
    x = F.pad(x, (0, 0, 0, length - x.shape[1]))  # (C, L, d_t)
    if tower.cls_emb is not None:
        x = torch.cat([x, tower.cls_emb.float().expand(count, 1, -1)], dim=1)
    x = x + tower.positions[: x.shape[1]]
    return _encode_sequences(tower, x.unsqueeze(0), size + prompts.lengths - 1, prompts, edits, rows)


def _encode_sequences(
    tower: TextTower, x: Tensor, end: Tensor, prompts: Prompts, edits: Sequence[Edit], rows: Rows, first: int = 0
) -> Tensor:
    """Encode whole sequences x (G, C, T, d_t), block ``first``'s input, with end-of-text at ``end`` (C,): (G, C, D)."""
    deep, (groups, count, size) = prompts.deep or {}, x.shape[:3]
    mask = _mask(tower, size, end)
    for i, block in enumerate(tower.blocks[first:], start=first):
        x = _replace_deep(x, deep.get(i), prompts.start)
        for edit in edits:
            x = edit.tokens(i, x, rows)
        if x.shape[2] != size:
            end, size = end + x.shape[2] - size, x.shape[2]
            mask = _mask(tower, size, end)
        if first and i == tower.layers - 1:
            read = _last_of_sequences(block, x, end, edits)
            for edit in edits:
                edit.pooled(i, read, rows)
            return tower.project(read, edits)
        q, k, v = (t.flatten(0, 1).transpose(1, 2) for t in block.project(x, edits=edits))  # (G·C, H, T, d_h)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        x = block.finish(x, attended.unflatten(0, (groups, count)), edits)
        for edit in edits:
            edit.pooled(i, _pool(tower, x, end), rows)
    return tower.project(_pool(tower, x, end), edits)


def _last_of_sequences(block: Block, x: Tensor, end: Tensor, edits: Sequence[Edit]) -> Tensor:
    """The last block's output (G, C, d_t) for end-of-text alone, from whole sequences x (G, C, T, d_t)."""
    (groups, count, size), device = x.shape[:3], x.device
    read = x[:, torch.arange(count, device=device), end]  # (G, C, d_t)
    (q,) = block.project(read, "q", edits)  # (G, C, H, d_h)
    k, v = (t.flatten(0, 1).transpose(1, 2) for t in block.project(x, "kv", edits))  # (G·C, H, T, d_h)
    seen = torch.arange(size, device=device) <= end[:, None]  # (C, T)
    mask = seen.repeat(groups, 1)[:, None, None]  # (G·C, 1, 1, T)
    attended = F.scaled_dot_product_attention(q.flatten(0, 1).unsqueeze(2), k, v, attn_mask=mask)
    return block.finish(read, attended.squeeze(2).unflatten(0, (groups, count)), edits)


def _pool(tower: TextTower, x: Tensor, end: Tensor) -> Tensor:
    """The pooled states (G, C, d_t) of whole sequences (G, C, T, d_t)."""
    pooled: Tensor = tower.pool_full(x.flatten(0, 1), end.repeat(len(x))).unflatten(0, x.shape[:2])
    return pooled


def _mask(tower: TextTower, size: int, end: Tensor) -> Tensor | None:
    """The tower's additive attention mask for T = ``size`` tokens: (T, T), or (C, H, T, T) if it masks padding."""
    content = size - (tower.cls_emb is not None)
    mask = tower.full_mask(torch.arange(content, device=end.device) <= end[:, None])
    return mask.unflatten(0, (len(end), -1)) if mask is not None and mask.dim() == 3 else mask
