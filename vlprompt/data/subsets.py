"""Parts of a dataset other than CoOp's halves: domains, and seen and unseen classes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from vlprompt.data.splits import PARTS, DatasetSplits
from vlprompt.errors import VlpromptError, nearest

SEEN_SHARE = 0.62


def seen_classes(classes: int, seed: int) -> tuple[int, ...]:
    """Draw the seen classes of transductive zero-shot learning: 62% of the labels, sorted.

    With the seeds 500, 0 and 200 it is the published draw (`Enhancing CLIP with CLIP
    <https://arxiv.org/abs/2306.01669>`_), if the classes have the published order.

    Args:
        classes: C.
        seed: the seed of the draw.

    >>> seen_classes(10, 500)
    (0, 2, 3, 4, 5, 9)
    """
    drawn = np.random.RandomState(seed).choice(classes, size=int(classes * SEEN_SHARE), replace=False)
    return tuple(sorted(drawn.tolist()))


def select_domains(splits: DatasetSplits, domains: Collection[str]) -> DatasetSplits:
    """Return a dataset with only the items of some domains, in every split.

    Raises:
        VlpromptError: a domain is unknown.
    """
    _check_domains(splits, domains)
    return splits.with_parts({p: [i for i in getattr(splits, p) if i.domain in domains] for p in PARTS})


def leave_domain_out(
    splits: DatasetSplits,
    held_out: str,
    test_parts: Sequence[Literal["train", "val", "test"]] = ("train", "val", "test"),
) -> DatasetSplits:
    """Return the multi-source split of domain generalisation: train on all domains but one, test on that one.

    Train and val are the other domains' train and val; test is the whole held-out domain, each image once, as published
    (`SPG <https://arxiv.org/abs/2404.19286>`_, whose test parts equal their val parts).

    Args:
        splits: a dataset of several domains.
        held_out: the domain to test on.
        test_parts: the parts of the held-out domain to test on.

    Raises:
        VlpromptError: the domain is unknown, or the only one.
    """
    _check_domains(splits, [held_out])
    if len(splits.domains) < 2:
        raise VlpromptError(f"{splits.name} has the domain '{held_out}' only: there is none left to learn on")
    tested = {i.path: i for part in test_parts for i in getattr(splits, part) if i.domain == held_out}
    return replace(
        splits,
        train=[i for i in splits.train if i.domain != held_out],
        val=[i for i in splits.val if i.domain != held_out],
        test=list(tested.values()),
    )


def _check_domains(splits: DatasetSplits, domains: Collection[str]) -> None:
    for domain in domains:
        if domain not in splits.domains:
            hint = nearest(domain, splits.domains) if splits.domains else "its images have no domains"
            raise VlpromptError(f"{splits.name} has no domain '{domain}': {hint}")
