"""List methods, datasets, protocols, backbones or recipes."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from rich.table import Table

from vlprompt.base.declared import registered
from vlprompt.base.reporter import make_console
from vlprompt.cli._early import only_shipped
from vlprompt.cli._shared import check_keys, command, parse
from vlprompt.clip.known import PURPOSE, TINY, tags_by_backbone
from vlprompt.errors import VlpromptError, nearest

USAGE = "vlprompt list methods|datasets|protocols|backbones|recipes [PATTERN]"
Lines = list[tuple[str, str]]


def methods(pattern: str) -> Lines:
    """Name and summary of each method; where nothing has imported the methods yet, of those that ship."""
    if only_shipped():
        found = registered("vlprompt.methods")
        return [(name, found[name].summary) for name in fnmatch.filter(found, pattern)]
    from vlprompt.learner.registration import METHODS

    return [(name, METHODS.info(name).summary) for name in METHODS.names(pattern)]


def datasets(pattern: str) -> Lines:
    """Name and title of each dataset; those that a plugin made have no card."""
    from datasets_registry.catalog import dataset_info, is_own, list_datasets  # what one list needs, others do not

    return [(name, "" if is_own(name) else dataset_info(name)["title"]) for name in list_datasets(pattern)]


def protocols(pattern: str) -> Lines:
    """Name and summary of each protocol."""
    from vlprompt.evaluation.protocols import PROTOCOLS

    return [(name, PROTOCOLS.get(name).summary) for name in PROTOCOLS.names(pattern)]


def backbones(pattern: str) -> Lines:
    """Name of each backbone, with its pretrained tags, or what the embedded one is for."""
    tags = {name: ", ".join(tags) for name, tags in tags_by_backbone().items()}
    every = {TINY: PURPOSE, **tags}
    return [(name, every[name] or "no published weights") for name in fnmatch.filter(every, pattern)]


def recipes(pattern: str) -> Lines:
    """Name of each shipped recipe, with the provenance that it states."""
    from vlprompt.training.shipped import list_recipes

    return [(name, "") for name in fnmatch.filter(list_recipes(), pattern)]


KINDS: dict[str, Callable[[str], Lines]] = {f.__name__: f for f in (methods, datasets, protocols, backbones, recipes)}


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Print a table of what there is."""
    arguments = parse(argv, words=2)
    check_keys(arguments.settings, ())
    if not arguments.words:
        raise VlpromptError(f"say what to list: {USAGE}")
    kind, pattern = (*arguments.words, "*")[:2]
    if kind not in KINDS:
        raise VlpromptError(f"there is no list of '{kind}': {nearest(kind, KINDS)}")
    lines = KINDS[kind](pattern)
    if not lines:
        raise VlpromptError(
            f"none of the {kind} matches '{pattern}': {nearest(pattern, [n for n, _ in KINDS[kind]('*')])}"
        )
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for line in lines:
        table.add_row(*line)
    make_console().print(table)
    return 0
