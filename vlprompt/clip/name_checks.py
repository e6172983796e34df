"""Finds class names that no prompt can tell apart, by comparing their tokens and token embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import open_clip
from torch import Tensor

from vlprompt.clip.catalog import TINY
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.naming import natural_name
from vlprompt.clip.tiny import unseen_names
from vlprompt.errors import VlpromptError, warn

SHOWN = 3  # names that a message lists
FAR = 0.25  # share of class names unknown to the embedded model from which on it warns
# lists that were checked, by model: scoring a learner sets its class names again and again
_KNOWN: WeakKeyDictionary[FrozenCLIP, set[tuple[str, ...]]] = WeakKeyDictionary()


def check_names(clip: FrozenCLIP, class_names: Sequence[str], shared_names: bool = False) -> None:
    """Refuse class names with the same tokens, and warn of names that the model cannot tell apart; once per list.

    Args:
        clip: the frozen model.
        class_names: C names.
        shared_names: only warn of names with the same tokens, for datasets that were joined and for existing learners.
            ImageNet, which has two pairs of equal names, only causes a warning in any case.

    Raises:
        VlpromptError: two names have the same tokens, such as ``Cat`` and ``cat`` for CLIP.
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
    """Describe names with the same tokens, and names with other tokens that the model cannot tell apart.

    Returns:
        Two lists, each with one sentence or empty.
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
        f"{_quoted(group)}: it does not know their words, so accuracy on them is chance; use a larger backbone, such "
        "as backbone=ViT-B-16 pretrained=openai"
        for group in alike[:1]
    ]
    return of_data, of_model


def describe_unseen(clip: FrozenCLIP, class_names: Sequence[str]) -> list[str]:
    """Describe names none of whose words the embedded model has seen in pretraining: one sentence, or an empty list.

    A few such names among many are not mentioned.
    """
    if clip.name != TINY:
        return []
    unseen = unseen_names([natural_name(name) for name in class_names])
    if len(unseen) < FAR * len(class_names):
        return []
    return [
        f"{clip.name} was not pretrained on pictures named with any word of {len(unseen)} of {len(class_names)} "
        f"class names, such as {_quoted(unseen)}: expect a low zero-shot accuracy, or use a larger "
        "backbone, such as backbone=ViT-B-16 pretrained=openai"
    ]


def find_alike(clip: FrozenCLIP, class_names: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Return groups of names with the same tokens, and groups of names with different tokens of equal embeddings.

    The latter consist of words that the model does not know, as is common for the embedded one. Comparing embeddings is
    enough: prompts whose embeddings are equal have equal text features, whatever the words around the name.
    """
    texts = [f"{natural_name(name)}." for name in class_names]
    ids = clip.tokenizer(texts, context_length=4 * clip.context_length)  # names that are too long are refused elsewhere
    same = _groups(ids)
    first = [group[0] for group in same]
    alike: list[list[int]] = []
    if clip.text.promptable:  # else its embeddings cannot be accessed
        used, places = ids[first].unique(return_inverse=True)
        # tokens with equal embeddings get the same number
        _, numbers = clip.text.embed(used.to(clip.device)).cpu().unique(dim=0, return_inverse=True)  # Apple's lack it
        alike = [[first[i] for i in group] for group in _groups(numbers[places])]

    def named(groups: list[list[int]]) -> list[list[str]]:
        return [[class_names[i] for i in group] for group in groups if len(group) > 1]

    return named(same), named(alike)


def _groups(rows: Tensor) -> list[list[int]]:
    """Group the indices of equal rows (C, L), in the order of their first row."""
    groups: dict[bytes, list[int]] = {}
    for position, row in enumerate(rows.numpy()):
        groups.setdefault(row.tobytes(), []).append(position)
    return list(groups.values())


def _quoted(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _published(clip: FrozenCLIP, class_names: Sequence[str]) -> bool:
    """Whether the only equal names are those that two ImageNet classes share."""
    twice = {name for name, count in Counter(open_clip.IMAGENET_CLASSNAMES).items() if count > 1}
    return all(set(group) <= twice for group in find_alike(clip, class_names)[0])
