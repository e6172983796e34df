"""Images that are almost the same to a frozen model, within one part of a dataset or across two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlprompt.base.checks import checked
from vlprompt.errors import VlpromptError

CLOSE = 0.13  # of the usual distance between neighbours; that of Datalab, which calls the same near-duplicates
SAME = 1e-6  # cosine distance below which rounding decides


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images that lie far closer than neighbours usually do, the closest first.

    Attributes:
        pairs: (M, 2) places among the images; each image stands with its nearest, of each other part too.
        distances: (M,) cosine distances of the pairs, in [0, 2].
        usual: median distance of an image to its nearest other one.
        limit: pairs at this distance and below are told.
    """

    pairs: np.ndarray
    distances: np.ndarray
    usual: float
    limit: float

    def __len__(self) -> int:
        return len(self.pairs)


@checked
def near_duplicates(
    features: np.ndarray, parts: Sequence[str] | None = None, *, close: float = CLOSE
) -> NearDuplicates:
    """Find pairs of images whose features are almost the same.

    What is close is told by the images themselves: a pair is told where its distance is at most ``close`` times the
    median distance of an image to its nearest. Copies that were saved again, scaled or cropped a little are found, as
    are shots of a series; what is alike by nature (water, sky) is too.

    Args:
        features: (N, D) image features of a frozen model, normalised or not.
        parts: (N,) the part of the dataset that each image is in; nearest images are looked for in each. So a test
            image is set against the training images even if its copy in the test part is closer.
        close: share of the usual distance.

    Raises:
        VlpromptError: there are not two images, or a number is not right.
    """
    if features.ndim != 2 or len(features) < 2:
        raise VlpromptError(f"near-duplicates are looked for among two images or more, not features {features.shape}")
    if not 0 < close < 1:
        raise VlpromptError(f"close must be a share between 0 and 1, not {close}")
    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    names = np.array(["all"] * len(rows) if parts is None else list(parts))
    members = {part: np.flatnonzero(names == part) for part in dict.fromkeys(names.tolist())}
    found = [
        _nearest(rows, asked, among)
        for asked in members.values()
        for among in members.values()
        if len(among) > 1 or asked is not among
    ]
    places, others, distances = (np.concatenate(each) for each in zip(*found, strict=True))
    closest = np.full(len(rows), np.inf)
    np.minimum.at(closest, places, distances)
    usual = float(np.median(closest))
    limit = max(close * usual, SAME)
    kept = np.flatnonzero(distances <= limit)
    pairs = np.sort(np.stack([places[kept], others[kept]], axis=1), axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)  # of two that are each other's nearest, one
    order = np.argsort(distances[kept][first], kind="stable")
    return NearDuplicates(pairs[order], distances[kept][first][order], usual, limit)


def _nearest(rows: np.ndarray, asked: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images that are asked about, the nearest other one of each, and their cosine distances."""
    from sklearn.neighbors import NearestNeighbors

    fitted = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(rows[among])
    distances, places = fitted.kneighbors(None if asked is among else rows[asked])  # of itself none is the nearest
    return asked, among[places[:, 0]], distances[:, 0] ** 2 / 2  # of unit vectors
