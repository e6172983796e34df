"""Parts of a dataset other than CoOp's halves: domains, seen and unseen classes, images without labels."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError, nearest

UNLABELED = -1


def select_domains(splits: DatasetSplits, domains: Collection[str]) -> DatasetSplits:
    """Return the items of some domains, in every split; an unknown domain is an error."""
    _check_domains(splits, domains)
    return replace(splits, **{p: [i for i in getattr(splits, p) if i.domain in domains] for p in PARTS})


def leave_domain_out(
    splits: DatasetSplits, held_out: str, test_parts: Sequence[Literal["train", "val", "test"]] = PARTS
) -> DatasetSplits:
    """Return the multi-source split of domain generalisation: learn on all domains but one, test on that one.

    Train and val are the other domains' train and val; test is the whole held-out domain, each image once, as published
    (`SPG <https://arxiv.org/abs/2404.19286>`_, whose test parts equal their val parts).

    Args:
        splits: a dataset of several domains.
        held_out: the domain to test on.
        test_parts: the parts of the held-out domain to test on.
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


def seen_unseen(
    splits: DatasetSplits, fraction: float = 0.5, seed: int | None = None
) -> tuple[DatasetSplits, DatasetSplits]:
    """Return the seen and the unseen classes as two datasets, each relabelled from 0.

    Args:
        splits: a dataset, after any few-shot draw.
        fraction: of the classes that are seen, rounded to the nearest number and at least one class each.
        seed: draws the seen classes at random; None takes the first ones.
    """
    count = len(splits.class_names)
    if not 0 < fraction < 1:
        raise VlpromptError(f"the fraction of seen classes must be between 0 and 1, not {fraction}")
    size = min(max(round(fraction * count), 1), count - 1)
    seen = range(size) if seed is None else sorted(random.Random(seed).sample(range(count), size))
    unseen = [label for label in range(count) if label not in set(seen)]
    halves = splits.keep_classes(list(seen)), splits.keep_classes(unseen)
    return replace(halves[0], half="base"), replace(halves[1], half="new")


def unlabeled_pool(splits: DatasetSplits, labeled: Sequence[Item] = ()) -> list[Item]:
    """Return the training items that are not in ``labeled``, without label and class name (label -1, name empty).

    Args:
        splits: the whole dataset.
        labeled: the few-shot draw's training items.
    """
    taken = {item.path for item in labeled}
    return [replace(i, label=UNLABELED, class_name="") for i in splits.train if i.path not in taken]
