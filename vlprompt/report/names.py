"""The names that papers print: ``CoOp`` for ``coop``, ``DTD`` for ``dtd``."""

from __future__ import annotations

import inspect
import re
from functools import lru_cache

from datasets_registry.listed import dataset_info, is_own, list_datasets
from vlprompt.learner.registration import METHODS

LONGEST = 16  # characters of a dataset's title that fit over a column


@lru_cache
def display_method(label: str) -> str:
    """Return a row's label with the method's name as papers print it.

    That is the start of the docstring of the method's module, or the name of its class; other labels stay as they are.

    >>> display_method("coop"), display_method("coop (lr=0.1)"), display_method("lp_plus_plus")
    ('CoOp', 'CoOp (lr=0.1)', 'LP++')
    """
    name, space, rest = label.partition(" ")
    if name not in METHODS.names():
        return label
    method = METHODS.get(name)
    heading = (inspect.getdoc(inspect.getmodule(method)) or "").partition("\n")[0]
    printed = re.split(r":| \(", heading)[0]
    for each in re.split(r", | and | for ", printed):
        if _letters(each) == _letters(name):
            return each + space + rest
    if not _letters(printed).startswith(_letters(name)[:4]):  # a module of several methods, say
        printed = method.__name__ if _letters(method.__name__) == _letters(name) else name
    return printed + space + rest


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower().replace("+", "plus"))


@lru_cache
def display_dataset(name: str) -> str:
    """Return a dataset's name as papers print it: its card's title if that is short, or the abbreviation behind it.

    >>> display_dataset("dtd"), display_dataset("eurosat"), display_dataset("glyphs/arrows"), display_dataset("digits")
    ('DTD', 'EuroSAT', 'Arrows', 'Digits')
    """
    if "/" in name:
        return name.rpartition("/")[2].replace("_", " ").capitalize()
    if is_own(name) or name not in list_datasets():
        return name
    title = str(dataset_info(name)["title"])
    short = re.search(r"\(([A-Z0-9-]+)\)", title)
    if short:
        return short[1]
    return title if len(title) <= LONGEST and " " not in title else name.replace("_", " ").capitalize()
