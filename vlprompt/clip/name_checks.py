"""Class names that no prompt can tell apart: found by the rows of token embeddings that they become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import open_clip
from torch import Tensor

from vlprompt.clip.frozen import FrozenCLIP, natural_name
from vlprompt.clip.tiny import TINY_NAME, unseen_names
from vlprompt.errors import VlpromptError, warn

SHOWN = 3  # names of a sentence
FAR = 0.25  # the share of class names behind which a list is far from what the embedded model has seen
# Lists that were looked at, by model, for as long as it lives: scoring a learner sets its class names again and again.
_KNOWN: WeakKeyDictionary[FrozenCLIP, set[tuple[str, ...]]] = WeakKeyDictionary()


def check_names(clip: FrozenCLIP, class_names: Sequence[str], shared_names: bool = False) -> None:
    """Refuse classes of the same tokens, and warn of those that a small vocabulary makes alike; once a list.

    Args:
        clip: the frozen model.
        class_names: C names.
        shared_names: tell classes of the same tokens in a warning only: those of datasets that were joined, or of a
            learner that exists already. ImageNet's, of which two pairs have one name, are always told only.

    Raises:
        VlpromptError: two names are the same tokens, such as ``Cat`` and ``cat`` to CLIP.
    """
    names, known = tuple(class_names), _KNOWN.setdefault(clip, set())
    if names in known:
        return
    same, alike = describe_alike(clip, names)
    if same and not shared_names and not _published(clip, names):
        raise VlpromptError(same[0])
    for sentence in (*same, *(alike or describe_unseen(clip, names))):
        warn(sentence)
    known.add(names)


def describe_alike(clip: FrozenCLIP, class_names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what is to be said of names that are the same tokens, and of those that a model does not tell apart.

    Returns:
        Two lists of a sentence or none.
    """
    same, alike = find_alike(clip, class_names)
    more = f" (and {len(same) - 1} more such groups)" if len(same) > 1 else ""
    of_data = [
        f"no prompt can tell the classes {_quoted(group)} apart, since they are the same tokens{more}: rename or merge "
        "them"
        for group in same[:1]
    ]
    of_model = [
        f"{clip.name} cannot tell {sum(map(len, alike))} of {len(class_names)} class names apart, such as "
        f"{_quoted(group)}: it does not know their words, so accuracy on them is chance; take a larger backbone, such "
        "as backbone=ViT-B-16 pretrained=openai"
        for group in alike[:1]
    ]
    return of_data, of_model


def describe_unseen(clip: FrozenCLIP, class_names: Sequence[str]) -> list[str]:
    """Return what is to be said of names that the embedded model has seen no picture of: a sentence or none.

    A few such names among many are left unsaid.
    """
    if clip.name != TINY_NAME:
        return []
    unseen = unseen_names([natural_name(name) for name in class_names])
    if len(unseen) < FAR * len(class_names):
        return []
    return [
        f"{clip.name} saw no picture in its pretraining that was called by any word of {len(unseen)} of "
        f"{len(class_names)} class names, such as {_quoted(unseen)}: expect little of it there, or take a larger "
        "backbone, such as backbone=ViT-B-16 pretrained=openai"
    ]


def find_alike(clip: FrozenCLIP, class_names: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Return groups of names that are the same tokens, and of names whose tokens differ but have equal embeddings.

    The second are words that a model does not know, as most are to the small one. One look at the embeddings tells all:
    whatever stands before and after, rows that are equal have equal text features.
    """
    texts = [f"{natural_name(name)}." for name in class_names]
    ids = clip.tokenizer(texts, context_length=4 * clip.context_length)  # names that do not fit are told elsewhere
    same = _groups(ids)
    first = [group[0] for group in same]
    alike: list[list[int]] = []
    if clip.text.promptable:  # else its embeddings are not at hand
        used, places = ids[first].unique(return_inverse=True)
        kinds = clip.text.embed(used.to(clip.device)).unique(dim=0, return_inverse=True)[
            1
        ]  # tokens of equal embeddings are one kind
        alike = [[first[i] for i in group] for group in _groups(kinds.cpu()[places])]

    def named(groups: list[list[int]]) -> list[list[str]]:
        return [[class_names[i] for i in group] for group in groups if len(group) > 1]

    return named(same), named(alike)


def _groups(rows: Tensor) -> list[list[int]]:
    """Return the positions of equal rows (C, L) together, in the order of their first."""
    groups: dict[bytes, list[int]] = {}
    for position, row in enumerate(rows.numpy()):
        groups.setdefault(row.tobytes(), []).append(position)
    return list(groups.values())


def _quoted(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _published(clip: FrozenCLIP, class_names: Sequence[str]) -> bool:
    """Whether no names are the same but those that two of ImageNet's classes have."""
    twice = {name for name, count in Counter(open_clip.IMAGENET_CLASSNAMES).items() if count > 1}
    return all(set(group) <= twice for group in find_alike(clip, class_names)[0])
