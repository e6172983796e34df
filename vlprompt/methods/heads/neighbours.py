"""Nearest images and classes as sparse matrices, for methods that propagate assignments over a graph."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BUDGET = 2**24  # similarities in memory at once, 64 MB


class Similar(NamedTuple):
    """For each of N rows, its K most similar columns: positions and cosines, both (N, K), most similar first."""

    index: Tensor  # type: ignore[assignment]  # hides a method of tuples
    cosine: Tensor


def most_similar(rows: Tensor, columns: Tensor, k: int, own: int | None = None, skip: int = 0) -> Similar:
    """The k columns that are most similar to each row, or all if there are fewer.

    Args:
        rows: normalised features (N, D).
        columns: normalised features (M, D).
        k: number of columns.
        own: the row whose features are column 0, and so on from there; a row's own column is left out.
        skip: number of most similar columns to leave out.
    """
    places, cosines, start = [], [], 0
    there = len(columns) - skip - (own is not None)
    for part in rows.split(max(1, BUDGET // len(columns))):
        similarity = part @ columns.T
        if own is not None:
            column = torch.arange(start, start + len(part), device=rows.device) - own
            row = ((column >= 0) & (column < len(columns))).nonzero()[:, 0]
            similarity[row, column[row]] = -torch.inf
        found = similarity.topk(skip + max(0, min(k, there)), dim=1)
        places.append(found.indices[:, skip:])
        cosines.append(found.values[:, skip:])
        start += len(part)
    return Similar(torch.cat(places), torch.cat(cosines))


def as_sparse(similar: Similar, n_columns: int) -> Tensor:
    """A sparse matrix (N, M) with the cosines at their positions."""
    n, k = similar.index.shape
    row = torch.arange(n, device=similar.index.device).repeat_interleave(k)
    places = torch.stack([row, similar.index.flatten()])
    size = (n, n_columns)
    return torch.sparse_coo_tensor(places, similar.cosine.flatten(), size, check_invariants=False).coalesce()
