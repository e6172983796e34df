"""List methods, datasets, protocols, backbones or recipes."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from vlprompt.base.reporter import make_console
from vlprompt.base.static_inspection import registered
from vlprompt.cli._early import only_shipped
from vlprompt.cli._shared import check_keys, command, parse
from vlprompt.clip.catalog import PURPOSE, TINY, tags_by_backbone
from vlprompt.errors import VlpromptError, nearest

USAGE = """vlprompt list methods|datasets|protocols|backbones|recipes [PATTERN]
vlprompt list datasets [PATTERN | COLLECTION] [data_root=DIR]

The list of datasets shows how many classes and images each has, and where it is: embedded, found in `data_root`,
available for download, or to be obtained by hand. The list of recipes shows where the hyper-parameters come from and
the figure published with them."""
Lines = list[tuple[str, ...]]
Settings = Mapping[str, Any]


def methods(pattern: str, settings: Settings) -> Lines:
    """Name and summary of each registered method; of those that ship if the methods are not yet imported."""
    if only_shipped():
        shipped = registered("vlprompt.methods")
        return [(name, shipped[name].summary) for name in fnmatch.filter(shipped, pattern)]
    from vlprompt.learner.registration import METHODS

    return [(name, METHODS.info(name).summary) for name in METHODS.names(pattern)]


def datasets(pattern: str, settings: Settings) -> Lines:
    """Name, title, classes, images and place of each dataset; those of plugins have no card."""
    from datasets_registry.listed import find_card, is_own, list_datasets, whereabouts  # which other lists do without

    def line(name: str) -> tuple[str, ...]:
        if is_own(name):
            return name, "", "", "", "in memory"
        card = find_card(name)[0]
        parts = [card.counts[part] for part in ("train", "val", "test", "total") if part in card.counts]
        images = ("≈ " if card.approximate else "") + f"{sum(parts):,}" if parts else ""
        return name, card.title, str(card.classes or ""), images, whereabouts(card, settings.get("data_root"))

    return [line(name) for name in list_datasets(pattern)]


def protocols(pattern: str, settings: Settings) -> Lines:
    """Name and summary of each protocol."""
    from vlprompt.evaluation.protocols import PROTOCOLS

    return [(name, PROTOCOLS.get(name).summary) for name in PROTOCOLS.names(pattern)]


def backbones(pattern: str, settings: Settings) -> Lines:
    """Name of each backbone, with its pretrained tags, or what the embedded one is for."""
    tags = {name: ", ".join(tags) for name, tags in tags_by_backbone().items()}
    every = {TINY: PURPOSE, **tags}
    return [(name, every[name] or "no published weights") for name in fnmatch.filter(every, pattern)]


def recipes(pattern: str, settings: Settings) -> Lines:
    """Name of each shipped recipe, the source of its hyper-parameters, and the figure published with them."""
    from vlprompt.training.shipped_recipes import list_recipes, provenance

    recipes = ((name, provenance(name)) for name in fnmatch.filter(list_recipes(), pattern))
    return [(name, recipe.source, recipe.published) for name, recipe in recipes]


KINDS: dict[str, Callable[[str, Settings], Lines]] = {
    each.__name__: each for each in (methods, datasets, protocols, backbones, recipes)
}
HEADINGS = {
    "datasets": ("name", "title", "classes", "images", "where"),
    "recipes": ("name", "source", "published"),
}
NUMBERS = ("classes", "images")
TITLE = 32  # characters of a dataset's title
WHOLE = ("title", *NUMBERS)  # on one line, if need be cut short


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Print one of the lists as a table."""
    arguments = parse(argv, words=2)
    if not arguments.words:
        raise VlpromptError(f"say what to list: vlprompt list {'|'.join(KINDS)}")
    kind, pattern = (*arguments.words, "*")[:2]
    if kind not in KINDS:
        raise VlpromptError(f"there is no list of '{kind}': {nearest(kind, KINDS)}")
    check_keys(arguments.settings, ["data_root"] if kind == "datasets" else [])
    lines = KINDS[kind](pattern, arguments.settings)
    if not lines:
        known = [line[0] for line in KINDS[kind]("*", {})]
        raise VlpromptError(f"none of the {kind} matches '{pattern}': {nearest(pattern, known)}")
    headings = HEADINGS.get(kind, ())
    table = Table(box=None, show_header=bool(headings), pad_edge=False)
    for heading in headings or ("",) * len(lines[0]):
        whole = not table.columns or heading in WHOLE
        table.add_column(heading, no_wrap=whole, max_width=TITLE if heading == "title" else None)
        if heading in NUMBERS:
            table.columns[-1].justify = "right"
    for line in lines:
        table.add_row(*line)
    make_console().print(table)
    return 0
