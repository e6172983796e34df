"""Which datasets there are, and what their cards say; no reader is imported."""

from __future__ import annotations

import fnmatch
import os
import re
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_registry.card import Card, card_names, collections, load_card, locate_images
from vlprompt.errors import VlpromptError, nearest

if TYPE_CHECKING:
    from vlprompt.data.splits import DatasetSplits

LEAVE_OUT = "to-"
in_memory: dict[str, DatasetSplits] = {}


def list_datasets(pattern: str = "*") -> list[str]:
    """Return the sorted names of the registered datasets that match a shell-style pattern, or belong to a collection.

    Your own folders and tables need no registration: ``load_split("folder:PATH")``.
    """
    if pattern in collections():
        return list(collections()[pattern])
    cards = (load_card(name) for name in card_names())
    names = [name for card in cards for name in ([f"{card.name}/{v}" for v in card.variants] or [card.name])]
    return sorted(fnmatch.filter([*names, *in_memory], pattern))


def list_collections() -> dict[str, tuple[str, ...]]:
    """Return the named lists of datasets that papers report on together, such as ``coop11``."""
    return dict(collections())


def dataset_info(name: str) -> dict[str, Any]:
    """Return the facts on a registered dataset's card as a dictionary; an unknown name lists the nearest ones."""
    return asdict(find_card(name)[0])


def domains_of(name: str) -> tuple[str, ...]:
    """Domains of a registered dataset or of one in memory; none if they are not known before it is read."""
    if name in in_memory:
        return in_memory[name].domains
    return tuple(find_card(name)[0].domains) if name in list_datasets() else ()


def is_own(name: str) -> bool:
    """Whether a dataset is the user's own: named by a path, or in memory."""
    return bool(scheme_of(name)) or name in in_memory


def outlives_process(name: str) -> bool:
    """Tell whether other processes find a dataset, or several joined by +, by name: it has a card or is a path."""

    def lasts(part: str) -> bool:
        try:
            find_card(part)
        except VlpromptError:
            return bool(scheme_of(part))
        return True

    return all(lasts(part.strip()) for part in name.split("+")) or bool(scheme_of(name))


def find_card(name: str) -> tuple[Card, str]:
    """Return the card and the variant of a registered name; the counts are the variant's if it has its own.

    Raises:
        VlpromptError: the name is unknown; the error names similar ones.
    """
    base, _, variant = name.partition("/")
    if base in card_names():
        card = load_card(base)
        domains = ["", *card.domains, *(LEAVE_OUT + domain for domain in card.domains)]
        known = card.variants or domains
        if variant in card.variant_counts:
            counts = dict(card.variant_counts[variant])
            return replace(card, classes=counts.pop("classes"), counts=counts), variant
        if variant in known:
            return card, variant
        if variant and known != [""]:
            raise VlpromptError(f"{card.title} has no '{variant}': {nearest(variant, [k for k in known if k])}")
    if name in in_memory:
        raise VlpromptError(f"'{name}' is a dataset in memory, which has no card; load_split gives its splits")
    registered = registered_name(name)
    if registered and registered != name:
        raise VlpromptError(f"unknown dataset '{name}': its name here is {registered}")
    schemes = [f"{scheme}:PATH" for scheme in _schemes()]
    raise VlpromptError(f"unknown dataset '{name}': {nearest(name, [*list_datasets(), *schemes])}")


def registered_name(name: str) -> str:
    """Return the registered name of a dataset from a name that is used elsewhere; empty if it is not known."""
    base, slash, variant = name.partition("/")
    registered = _other_names().get(_bare(base), "")
    return registered and registered + slash + variant


@cache
def _other_names() -> dict[str, str]:
    """Return registered names by other names: titles, folders (CoOp's, torchvision's) and the cards' aliases."""
    names: dict[str, str] = {}
    for card in map(load_card, card_names()):
        theirs = [path.split("/")[0] for path in card.torchvision if "/" in path]
        for name in (card.name, *re.split(r"[()]", card.title), card.folder, *theirs, *card.aliases):
            names.setdefault(_bare(name), card.name)
    return names


def _bare(name: str) -> str:
    """Return only a name's letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def scheme_of(name: str) -> str:
    """Return the scheme of a dataset that is named by a path, such as ``folder``; empty for other names."""
    scheme, colon, _ = name.partition(":")
    return scheme if colon and scheme in _schemes() else ""


def _schemes() -> list[str]:
    from datasets_registry.readers import readers  # here, since they import NumPy and Pillow

    return [name for name in readers if readers.info(name).facts.get("takes_path")]


def whereabouts(card: Card, root: str | os.PathLike[str] | None = None) -> str:
    """Return where a dataset is, or how to get it, in a few words.

    Args:
        card: of the dataset.
        root: the data root to look for it in; None looks nowhere. What is found there is named by its folder in it.
    """
    if not card.folder:
        return "embedded"
    folder = None if root is None else Path(root).expanduser() / card.folder
    if folder is not None and (folder / locate_images(card, folder).images).is_dir():
        return f"found in {card.folder}"
    size = download_size(card)
    return "to get by hand" if not card.archives else f"to download ({size})" if size else "to download"


def download_size(card: Card) -> str:
    """Return the approximate size of a download, ``94 MB``; empty if it is unknown, or there is no download."""
    size = sum(archive.megabytes for archive in card.archives)
    return f"{size / 1000:.2g} GB" if size >= 1000 else f"{size} MB" if size else ""
