"""Several names per class: ``names={cat: [kitty, feline]}``, a JSON file, or those on the dataset's card.

A class's own name always counts. With ``names_by=mean`` a class's feature is the mean direction of its names', for
learnt and frozen text alike; with ``best`` an image is scored with the most similar of them, the analogue of a
verbalizer's best label word (SciPrompt, arXiv:2410.01946).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlprompt.clip.naming import ClassNames, natural_name
from vlprompt.errors import VlpromptError, nearest, warn
from vlprompt.learner.facts import Facts


def named(config: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names, with the additional ones in the settings."""
    if not config.names:
        return names
    if isinstance(config.names, str):
        raise VlpromptError(f"names={config.names} is a file, which create_learner reads: give a learner its content")
    return ClassNames(names, config.names, best=config.names_by == "best")


def check_keys(others: Mapping[str, Any], class_names: Sequence[str]) -> None:
    """Check the keys of ``{class: [names]}``, since a misspelt class would get no additional names.

    Warns if some of them are not classes.

    Args:
        others: additional names by class, as given by the user.
        class_names: names of all classes in training and tests.

    Raises:
        VlpromptError: none of the keys is a class.
    """
    known = {natural_name(name).casefold() for name in class_names}
    odd = [key for key in others if natural_name(key).casefold() not in known]
    if not odd:
        return
    hint = f"'{odd[0]}': {nearest(natural_name(odd[0]), map(natural_name, class_names))}"
    if len(odd) == len(others):
        raise VlpromptError(f"names has no key that is a class here; the first is {hint}")
    warn(f"names has {len(odd)} of {len(others)} keys that are not classes here, the first is {hint}")


def facts_with_names(cls: type, config: Any, facts: Facts, base: type) -> Facts:
    """The facts of a learner with several names per class.

    Args:
        cls: its class.
        config: its settings.
        facts: its facts without them.
        base: ``PromptLearner``, whose methods tell whether it makes class features in the usual way.

    Raises:
        VlpromptError: images cannot be scored with the best of several names, since it has no such class features.
    """
    if config.names_by == "mean":
        return facts
    if not config.names:
        raise VlpromptError("names_by=best needs several names per class, and there are none: give names too")
    usual = ("text_features", "text_encoder", "score", "predict", "predict_all")
    reason = ""
    if facts.head or config.head is not None or any(getattr(cls, name) is not getattr(base, name) for name in usual):
        reason = "does not score by the cosines of class features alone"
    elif not getattr(cls, "by_name", True):
        reason = "has one feature per class, whatever its names"
    if reason:
        raise VlpromptError(
            f"names_by=best is not possible: {getattr(cls, 'method', '')} with these settings {reason}: take "
            "names_by=mean"
        )
    return replace(facts, classifier="per_image")


def nearest_names(features: Tensor, v: Tensor, owners: Sequence[int]) -> Tensor:
    """For each class, the feature of its name that is most similar to each image: (B, C, D).

    Args:
        features: normalised, of all names (M, D), or per image (B, M, D).
        v: normalised image features (B, D).
        owners: the class of each name (M,).
    """
    if features.shape[-2] != len(owners):  # of a method that does not say so with ``by_name``
        raise VlpromptError(
            f"names_by=best needs a feature of each of the {len(owners)} names, and there are {features.shape[-2]}: "
            "take names_by=mean"
        )
    rows = [[row for row, owner in enumerate(owners) if owner == c] for c in range(owners[-1] + 1)]
    longest = max(map(len, rows))
    table = torch.tensor([row + row[:1] * (longest - len(row)) for row in rows], device=v.device)  # (C, N)
    of_names = v @ features.T if features.dim() == 2 else torch.einsum("bd,bmd->bm", v, features)
    best = of_names[:, table].argmax(dim=-1)  # (B, C)
    chosen = table.expand(len(v), -1, -1).gather(2, best.unsqueeze(-1)).squeeze(-1)  # (B, C), rows of names
    if features.dim() == 2:
        return features[chosen]
    return features.gather(1, chosen.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
