"""Sentences about classes, ``{class: [sentences]}``, and how their keys find the classes."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeGuard

from datasets_registry.card import card_names, load_card
from vlprompt.base.files import read_text
from vlprompt.demo.emoji import emoji_sentences
from vlprompt.errors import VlpromptError, nearest

# sentences that come with the package, by the name that descriptions= takes in place of a file
DESCRIPTION_SETS: dict[str, Callable[[], dict[str, list[str]]]] = {"emoji": emoji_sentences}


def names_file(descriptions: object) -> TypeGuard[str]:
    """Whether ``descriptions=`` names a file or a set, and is not a template, a list of templates or nothing."""
    return isinstance(descriptions, str) and "{}" not in descriptions


def normalise_key(name: str) -> str:
    """Return the form of a class name that is looked up first: lower case, spaces for underscores, single spaces.

    >>> normalise_key(" Yin_Yang ")
    'yin yang'
    """
    return " ".join(name.replace("_", " ").lower().split())


def words_of(name: str) -> str:
    """Return a name's words in alphabetical order, without hyphens, brackets, apostrophes and accents.

    >>> words_of("Apartment building (outdoor)") == words_of("outdoor apartment_building")
    True
    >>> words_of("Colt’s-foot"), words_of("2000 AM General")
    ('colts foot', '2000 am general')
    """
    return " ".join(sorted(_words(name)))


def run_together(name: str) -> str:
    """Return a name's words in their order, joined without spaces.

    >>> run_together("Hand Stand Pushups") == run_together("Handstand Pushups")
    True
    """
    return "".join(_words(name))


def _words(name: str) -> list[str]:
    # only accents of Latin letters: in other scripts a combining mark may be a vowel
    plain = re.sub("[\u0300-\u036f'’]", "", unicodedata.normalize("NFKD", name.lower()))
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", plain.replace("&", " and ")))


# tried in this order: the first form in which a file has a key for the class is used
FORMS: tuple[Callable[[str], str], ...] = (normalise_key, words_of, run_together)


@cache
def card_aliases() -> dict[str, tuple[str, ...]]:
    """Return class name to its keys in published files, if these use other words; from the dataset cards."""
    aliases: dict[str, tuple[str, ...]] = {}
    for card in map(load_card, card_names()):
        for name, key in card.description_keys.items():
            aliases[normalise_key(name)] = (*aliases.get(normalise_key(name), ()), key)
    return aliases


def read_descriptions(
    path: str | Path, class_names: Sequence[str], aliases: Mapping[str, str] | None = None
) -> list[list[str]]:
    """Read sentences about classes: ``{class: [sentences]}``, as CoPrompt, CuPL and their like write it.

    A key belongs to a class if, in this order, they are the same except for case, underscores and spaces; they have the
    same words in any order, regardless of hyphens and brackets; they are the same without spaces; or a dataset card
    says that published files call the class so.

    Args:
        path: a JSON file, or the name of a set that comes with the package.
        class_names: the dataset's. Labels with the same name get the same sentences.
        aliases: class name to the file's key, which takes precedence over all of these.

    Returns:
        The sentences of each class, in the order of ``class_names``.

    Raises:
        VlpromptError: the file is of another form, a class could take two keys or two classes the same one (both are
            named), or it lacks classes, with the number of them and the nearest key of the first.
    """
    known = _read(path)
    keys = match_keys(class_names, known, aliases, str(path))
    return [_sentences(known[keys[name]]) for name in class_names]


def match_keys(
    class_names: Sequence[str], known: Mapping[str, Any], aliases: Mapping[str, str] | None = None, where: str = "it"
) -> dict[str, str]:
    """Return class name to key by the rules of ``read_descriptions``; ``where`` names the file in errors."""
    by_form = [_by_form(form, known) for form in FORMS]
    key_by_alias = {normalise_key(name): key for name, key in (aliases or {}).items()}
    matched: dict[str, str] = {}
    for name in dict.fromkeys(class_names):
        alias = key_by_alias.get(normalise_key(name))
        others = card_aliases().get(normalise_key(name), ())
        for wanted in (alias,) if alias else (name, *others):
            keys = _keys_of(wanted, by_form)
            if any(known[key] != known[keys[0]] for key in keys):
                listed = " and ".join(f"'{key}'" for key in keys[:2])
                raise VlpromptError(f"{where} has two lists of sentences for '{name}', {listed}: keep one")
            if keys:
                matched[name] = keys[0]
                break
    absent = [name for name in class_names if name not in matched]
    if absent:
        hint = nearest(normalise_key(absent[0]), by_form[0])
        raise VlpromptError(
            f"{where} has no sentences for {len(absent)} of {len(class_names)} classes, first '{absent[0]}': {hint}"
        )
    _refuse_shared(matched, where)
    return matched


def _by_form(form: Callable[[str], str], keys: Iterable[str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for key in keys:
        grouped.setdefault(form(key), []).append(key)
    return grouped


def _keys_of(name: str, by_form: Sequence[Mapping[str, list[str]]]) -> list[str]:
    for form, keys in zip(FORMS, by_form, strict=True):
        wanted = form(name)
        if wanted and wanted in keys:  # a name of punctuation alone has no words
            return keys[wanted]
    return []


def _refuse_shared(matched: Mapping[str, str], where: str) -> None:
    """Raise if two classes have the same key: for one of them its sentences would be wrong."""
    owners: dict[str, str] = {}
    for name, key in matched.items():
        owner = owners.setdefault(key, name)
        if normalise_key(owner) != normalise_key(name):
            raise VlpromptError(
                f"{where} has '{key}' for both '{owner}' and '{name}': give each class a key of its own"
            )


def _read(path: str | Path) -> dict[str, Any]:
    if str(path) in DESCRIPTION_SETS:
        return DESCRIPTION_SETS[str(path)]()
    return read_lists(path, "descriptions", "sentences")


def read_lists(path: str | Path, what: str, of: str) -> dict[str, Any]:
    """Read a JSON file ``{class: [texts]}``; a single text may replace a list of one.

    Args:
        path: the file.
        what: the word for its content in errors, such as ``descriptions``.
        of: the word for the entries of its lists, such as ``sentences``.

    Raises:
        VlpromptError: there is no such file, or it is of another form.
    """
    try:
        content = json.loads(read_text(Path(path).expanduser()), object_pairs_hook=partial(_once, path))
    except OSError as error:
        raise VlpromptError(f"no {what} at {path}: give a JSON file {{class: [{of}]}}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise VlpromptError(f"the {what} in {path} are not JSON ({error})") from error
    if not isinstance(content, dict):
        raise VlpromptError(f"{path} must be a JSON file {{class: [{of}]}}, not {type(content).__name__}")
    for key, value in content.items():
        if not _are_sentences(_sentences(value)):
            raise VlpromptError(f"{path} must have a list of {of} for '{key}', not {value!r:.60}")
    return {key: _sentences(value) for key, value in content.items()}


def _once(path: str | Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of a JSON object, and raise if a key occurs twice; ``json`` would keep only the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise VlpromptError(f"{path} has the key '{twice}' twice: keep one")
    return content


def _sentences(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _are_sentences(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(s, str) and s.strip() for s in value)
