"""Images whose features by a frozen model are almost the same, within one part of a dataset or across two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlprompt.base.checks import checked
from vlprompt.errors import VlpromptError

NEIGHBOURS = 5  # an image's usual distance is that to its fifth nearest image
CLOSE = 0.4  # share of that distance; three in four copies that were saved again, scaled or cropped are nearer
# share of the dataset's usual distance within which every pair counts: shots of a burst have no other neighbours
FLOOR = 0.05
SAME = 1e-6  # cosine distance below which rounding decides


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images that are far closer to each other than to their other neighbours, the most striking first.

    Attributes:
        pairs: (M, 2) indices of the images; each is paired with its nearest of its own part and of every other part.
        distances: (M,) cosine distances of the pairs, in [0, 2].
        shares: (M,) the distances as a share of that to the fifth nearest image.
    """

    pairs: np.ndarray
    distances: np.ndarray
    shares: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)


@checked
def near_duplicates(
    features: np.ndarray, parts: Sequence[str] | None = None, *, close: float = CLOSE
) -> NearDuplicates:
    """Find pairs of images whose features are almost the same.

    What is close depends on an image's own neighbours: a pair is found if its distance is at most ``close`` times that
    to the fifth nearest image, and at most the median distance of images to their nearest. Thus among pictures of water
    or sky, which are all alike, hardly any but copies are found. A pair whose distance is negligible beside that median
    is found in any case, since shots of a burst have no neighbours but each other.

    Args:
        features: (N, D) image features of a frozen model, normalised or not.
        parts: (N,) the part of the dataset that each image is in. The nearest image is looked up in every part, so that
            a test image is compared with the training images even if its copy in the test part is closer.
        close: share of the distance to the fifth nearest image, in (0, 1).

    Raises:
        VlpromptError: there are fewer than two images, or ``close`` is not between 0 and 1.
    """
    if features.ndim != 2 or len(features) < 2:
        raise VlpromptError(f"near-duplicates need at least two images, not features {features.shape}")
    if not 0 < close < 1:
        raise VlpromptError(f"close must be a share between 0 and 1, not {close}")
    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    names = np.array(["all"] * len(rows) if parts is None else list(parts))
    members = {part: np.flatnonzero(names == part) for part in dict.fromkeys(names.tolist())}
    neighbours = [_with_neighbours(rows, queries, members) for queries in members.values()]
    places, others, distances, usual = (np.concatenate(each) for each in zip(*neighbours, strict=True))
    closest = np.full(len(rows), np.inf)
    np.minimum.at(closest, places, distances)
    typical = float(np.median(closest))
    shares = distances / np.maximum(usual, SAME)
    striking = (shares <= close) & (distances <= typical)
    kept = np.flatnonzero(striking | (distances <= max(FLOOR * typical, SAME)))
    kept = kept[np.argsort(shares[kept], kind="stable")]
    pairs = np.sort(np.stack([places[kept], others[kept]], axis=1), axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)  # two that are each other's nearest count once
    first = np.sort(first)
    return NearDuplicates(pairs[first], distances[kept][first], shares[kept][first])


def _with_neighbours(
    rows: np.ndarray, queries: np.ndarray, members: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The M images of one part, their nearest in each of P parts, its distance, and that to their fifth nearest of all.

    Args:
        rows: (N, D) unit vectors.
        queries: (M,) indices of the images of one part.
        members: indices by part.

    Returns:
        Four arrays of length M·P.
    """
    near = [_nearest(rows, queries, among) for among in members.values() if len(among) > 1 or among is not queries]
    every = np.sort(np.concatenate([distances for _, distances in near], axis=1), axis=1)
    usual = every[:, min(NEIGHBOURS, every.shape[1]) - 1]
    return (
        np.tile(queries, len(near)),
        np.concatenate([places[:, 0] for places, _ in near]),
        np.concatenate([distances[:, 0] for _, distances in near]),
        np.tile(usual, len(near)),
    )


def _nearest(rows: np.ndarray, queries: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices and cosine distances (M, k) of each query's nearest other images ``among`` some."""
    from sklearn.neighbors import NearestNeighbors

    own = queries is among
    fitted = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(among) - own), algorithm="brute").fit(rows[among])
    distances, places = fitted.kneighbors(None if own else rows[queries])  # None leaves out the image itself
    return among[places], distances**2 / 2  # of unit vectors
