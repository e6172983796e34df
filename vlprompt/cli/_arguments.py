"""Parsing of command lines: ``key=value``, ``--key value`` and ``--key=value`` are the same; flags have no value."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlprompt.base.settings_text import read_value, show
from vlprompt.errors import VlpromptError, nearest

FLAGS = ("--help", "--quiet", "--version")
KEY = re.compile(r"\w+")
SETTING = re.compile(r"\w+=")
NEGATIVE = re.compile(r"-\.?\d")
TRUTHS = ("true", "false", "yes", "no", "on", "off")
PLUGIN = "plugin"  # a key of every command, whose modules are imported before the command runs
LOOKS_LIKE = 0.8  # similarity by ``difflib`` from which an argument is a misspelt flag
Kind = Literal["word", "flag", "setting"]


@dataclass(frozen=True)
class Arguments:
    """A parsed command line.

    Attributes:
        settings: values by key, with the types of YAML.
        words: the arguments without a key.
        flags: of ``--help``, ``--quiet``, ``--version``.
        texts: the settings as they were written.
    """

    settings: dict[str, Any]
    words: tuple[str, ...]
    flags: frozenset[str]
    texts: dict[str, str] = field(default_factory=dict)

    def again(self, **changes: str | None) -> list[str]:
        """The arguments as ``key=value`` again, with changed values for some keys and without those set to None."""
        texts = {**self.texts, **changes}
        return [*self.words, *(f"{key}={text}" for key, text in texts.items() if text is not None), *sorted(self.flags)]


def parse(
    argv: Sequence[str],
    words: int = 0,
    texts: Sequence[str] = (),
    switches: Sequence[str] = (),
    is_word: Callable[[str], bool] = lambda argument: False,
) -> Arguments:
    """Parse a command line that may have up to ``words`` arguments without a key.

    The value of ``--key`` is the argument after it, or true if none follows or the next is ``--key`` or ``key=value``.
    A value that looks like one of these is joined to its key: ``--name=-x``. After ``--`` all arguments are words.

    Args:
        argv: the arguments.
        words: how many of them may have no key.
        texts: keys, such as class names, whose values stay text, whatever they look like.
        switches: keys that are true or false, so that a word after ``--key`` is not their value.
        is_word: recognises words that look like a setting or a flag, such as the file ``x=1.png``.

    Raises:
        VlpromptError: a flag or a key is invalid, a key is given twice, or there are too many words.

    >>> parse(["shots=4", "--ctx-init", "a photo of a", "--resume", "--quiet"]).settings
    {'shots': 4, 'ctx_init': 'a photo of a', 'resume': True}
    """
    flags, free, given = set(), [], {}
    for kind, name, text in read(argv, switches, is_word):
        if kind == "word":
            free.append(name)
        elif kind == "flag":
            flags.add(_flag(name))
        elif not KEY.fullmatch(name):
            raise VlpromptError(f"{show(f'{name}={text}')} has no valid key before its =: write key=value")
        elif name in given:
            raise VlpromptError(f"{name} is given twice: give it once")
        else:
            given[name] = text
    if len(free) > words:
        raise VlpromptError(f"'{free[words]}' is not key=value; quote values that hold spaces")
    settings = {key: read_value(key, text, typed=key not in texts) for key, text in given.items() if key != PLUGIN}
    return Arguments(settings, tuple(free), frozenset(flags), given)


def read(
    argv: Iterable[str], switches: Sequence[str] = (), is_word: Callable[[str], bool] = lambda argument: False
) -> Iterator[tuple[Kind, str, str]]:
    """Yield the kind of each argument, its name, and the text of a setting; takes the arguments of ``parse``."""
    left = deque(argv)
    while left:
        argument = left.popleft()
        if argument == "--":
            yield from (("word", word, "") for word in left)
            return
        if is_word(argument):
            yield "word", argument, ""
        elif _is_long(argument):
            name, joined, text = argument[2:].partition("=")
            key = name.replace("-", "_")
            if not joined:
                text = left.popleft() if left and _is_value(left[0], key in switches) else "true"
            yield "setting", key, text
        elif argument.startswith("-"):
            yield "flag", argument, ""
        elif "=" in argument:
            key, _, text = argument.partition("=")
            yield "setting", key, text
        else:
            yield "word", argument, ""


def _is_long(argument: str) -> bool:
    """Whether an argument is ``--key``, and neither a flag nor a misspelt one."""
    return argument.startswith("--") and argument not in FLAGS and ("=" in argument or not _meant(argument))


def _is_value(following: str, is_switch: bool) -> bool:
    """Whether the argument after ``--key`` is its value."""
    if is_switch:
        return following.lower() in TRUTHS
    return not SETTING.match(following) and (not following.startswith("-") or bool(NEGATIVE.match(following)))


def _flag(argument: str) -> str:
    """The flag that an argument is; an error if it is none."""
    if argument in FLAGS or argument == "-h":
        return "--help" if argument == "-h" else argument
    meant = _meant(argument)
    if meant:
        raise VlpromptError(f"unknown flag '{argument}': did you mean {meant}?")
    raise VlpromptError(
        f"unknown flag '{argument}': settings are written key=value or --key value; flags are {', '.join(FLAGS)}"
    )


def _meant(argument: str) -> str | None:
    """The flag that a misspelt argument is similar to; None if there is none."""
    import difflib

    alike = difflib.get_close_matches(argument[2:], [flag[2:] for flag in FLAGS], n=1, cutoff=LOOKS_LIKE)
    return next((flag for flag in FLAGS if sorted(flag) == sorted(argument) or flag[2:] in alike), None)


def check_keys(settings: Iterable[str], known: Iterable[str]) -> None:
    """Raise a ``VlpromptError`` for the first key that a command does not have."""
    known = list(known)
    for key in settings:
        if key not in known:
            raise VlpromptError(f"unknown key '{key}': {nearest(key, known)}")
