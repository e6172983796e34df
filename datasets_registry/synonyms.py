"""Other names of classes, ``{class: [names]}``: from a file, or from the cards of datasets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets_registry.card import card_names, load_card
from datasets_registry.descriptions import read_lists
from vlprompt.errors import VlpromptError

CARD = "card"  # in place of a file: the synonyms on each dataset's card


def read_synonyms(path: str | Path) -> dict[str, list[str]]:
    """Read other names of classes from a JSON file ``{class: [names]}``.

    Raises:
        VlpromptError: there is no such file, or it is of another form.
    """
    if str(path) == CARD:
        raise VlpromptError(f"names={CARD} is for runs on a dataset with a card: give a JSON file {{class: [names]}}")
    return {name: list(names) for name, names in read_lists(path, "names", "names").items()}


def card_synonyms(datasets: Iterable[str]) -> dict[str, list[str]]:
    """Return other names of the classes of datasets, from their cards.

    Raises:
        VlpromptError: none of them has any.
    """
    found: dict[str, list[str]] = {}
    asked = list(dict.fromkeys(datasets))
    for dataset in asked:
        for name, others in _of_card(dataset).items():
            found[name] = list(dict.fromkeys([*found.get(name, []), *others]))
    if not found:
        raise VlpromptError(f"no card of {', '.join(asked)} has other names of classes: give names a JSON file")
    return found


def _of_card(dataset: str) -> Mapping[str, Any]:
    name = dataset.partition("/")[0]
    return load_card(name).synonyms if name in card_names() else {}  # a user's own images have none
