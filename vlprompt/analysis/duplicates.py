"""Images that are almost the same to a frozen model, within one part of a dataset or across two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlprompt.base.checks import checked
from vlprompt.errors import VlpromptError

NEIGHBOURS = 5  # to the last of which an image's distance is what is usual for it
CLOSE = 0.4  # of that distance: three in four copies that were saved again, scaled or cropped are nearer
FLOOR = 0.05  # of the dataset's usual distance, within which all are told: a burst of shots has no other neighbours
SAME = 1e-6  # cosine distance below which rounding decides


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images that lie far closer than their neighbours do, the most striking first.

    Attributes:
        pairs: (M, 2) places among the images; each image stands with its nearest, of each other part too.
        distances: (M,) cosine distances of the pairs, in [0, 2].
        shares: (M,) of the distance to the fifth nearest image.
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

    What is close is told by an image's own neighbours: a pair is told where its distance is at most ``close`` times
    that to the fifth nearest image, and no more than images usually have to their nearest. So among pictures of water
    or sky, which are all alike, few are told but copies. Next to nothing beside the usual distance is told in any case,
    for the shots of a burst have no other neighbours.

    Args:
        features: (N, D) image features of a frozen model, normalised or not.
        parts: (N,) the part of the dataset that each image is in; nearest images are looked for in each. So a test
            image is set against the training images even if its copy in the test part is closer.
        close: share of the distance to the fifth nearest image.

    Raises:
        VlpromptError: there are not two images, or a number is not right.
    """
    if features.ndim != 2 or len(features) < 2:
        raise VlpromptError(f"near-duplicates need at least two images, not features {features.shape}")
    if not 0 < close < 1:
        raise VlpromptError(f"close must be a share between 0 and 1, not {close}")
    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    names = np.array(["all"] * len(rows) if parts is None else list(parts))
    members = {part: np.flatnonzero(names == part) for part in dict.fromkeys(names.tolist())}
    found = [_with_neighbours(rows, asked, members) for asked in members.values()]
    places, others, distances, usual = (np.concatenate(each) for each in zip(*found, strict=True))
    closest = np.full(len(rows), np.inf)
    np.minimum.at(closest, places, distances)
    typical = float(np.median(closest))
    shares = distances / np.maximum(usual, SAME)
    struck = (shares <= close) & (distances <= typical)
    kept = np.flatnonzero(struck | (distances <= max(FLOOR * typical, SAME)))
    kept = kept[np.argsort(shares[kept], kind="stable")]
    pairs = np.sort(np.stack([places[kept], others[kept]], axis=1), axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)  # of two that are each other's nearest, one
    first = np.sort(first)
    return NearDuplicates(pairs[first], distances[kept][first], shares[kept][first])


def _with_neighbours(
    rows: np.ndarray, asked: np.ndarray, members: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images with their nearest in each part, the distance, and that to their fifth nearest of all parts.

    Args:
        rows: (N, D) unit vectors.
        asked: places of the images of one part.
        members: places by part.
    """
    near = [_nearest(rows, asked, among) for among in members.values() if len(among) > 1 or among is not asked]
    every = np.sort(np.concatenate([distances for _, distances in near], axis=1), axis=1)
    usual = every[:, min(NEIGHBOURS, every.shape[1]) - 1]
    return (
        np.tile(asked, len(near)),
        np.concatenate([places[:, 0] for places, _ in near]),
        np.concatenate([distances[:, 0] for _, distances in near]),
        np.tile(usual, len(near)),
    )


def _nearest(rows: np.ndarray, asked: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and cosine distances (M, k) of the nearest other images of each that is asked about."""
    from sklearn.neighbors import NearestNeighbors

    own = asked is among
    fitted = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(among) - own), algorithm="brute").fit(rows[among])
    distances, places = fitted.kneighbors(None if own else rows[asked])  # none is its own nearest
    return among[places], distances**2 / 2  # of unit vectors
