"""Reads settings as YAML, from the command line and from files that anyone may have written.

Only a safe subset of YAML is allowed: no interpolation (``${…}``), no ``???``, no anchors and aliases, no tags, no
duplicate keys, and limits on size and depth. Only decimal numbers are numbers; ``0x1F``, ``12:30`` and ``007`` are
texts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from vlprompt.base.files import refuse_stream
from vlprompt.errors import VlpromptError

MAX_BYTES = 2**20  # of a file; the largest recipe has three thousand
MAX_TEXT = 10_000  # characters of a setting, such as an objective that lists its templates
MAX_DIGITS = 30
MAX_DEPTH = 20
SHOWN = 60  # characters of a value that a message repeats
COMMENT = re.compile(r"(^|\s)#")
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML brings no types
    """Safe YAML without aliases and tags, so that the result is no larger than the text."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise _Refused("it has an anchor or alias of YAML's (& or *): write the value itself, or put quotes")
        if event.tag:
            raise _Refused(f"it has the tag {event.tag[:SHOWN]}, and tags are not read")
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > MAX_DEPTH:
            raise _Refused(f"its lists and groups lie more than {MAX_DEPTH} deep in one another")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused("a key of it is a list or a group")
            if key.value in seen:
                raise _Refused(f"it has the key '{key.value[:SHOWN]}' twice")
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_number(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise _Refused(f"it has a number of {len(node.value):,} digits")
        return int(node.value)


class _Refused(ValueError):
    """Why a text is refused, as the end of a message."""


# booleans and null as in YAML 1.1, but no dates, and only decimal numbers
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in pairs if tag.rpartition(":")[2] not in ("int", "float", "timestamp", "merge")
    ]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)


class _ShippedLoader(_Loader):
    """The same with libyaml's parser if PyYAML has it, which is five times as fast, for files of this package.

    Its error messages differ, so users' files and command lines are not read with it.
    """

    def __init__(self, text: str) -> None:
        if not yaml.__with_libyaml__:
            super().__init__(text)
            return
        events = yaml.cyaml.CParser(text)
        self.check_event, self.peek_event, self.get_event = events.check_event, events.peek_event, events.get_event
        self.dispose = events.dispose
        yaml.composer.Composer.__init__(self)
        yaml.constructor.SafeConstructor.__init__(self)
        yaml.resolver.Resolver.__init__(self)


class _TextLoader(_Loader):
    """Lists and texts only, without numbers, flags and null."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


def read_settings(path: str | os.PathLike[str], what: str = "settings", shipped: bool = False) -> dict[str, Any]:
    """Read a YAML file of settings, one ``key: value`` a line.

    Args:
        path: the file.
        what: the kind of content, for error messages.
        shipped: whether the file is part of the package and can be read with the faster parser.

    Raises:
        VlpromptError: the file cannot be read, is too large, or contains what settings may not (see the module).
    """
    path = Path(path)
    try:
        refuse_stream(path)
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except VlpromptError:
        raise
    except FileNotFoundError:
        raise VlpromptError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VlpromptError(f"{path} cannot be read as YAML: {reason}") from error
    if len(content) > MAX_BYTES:
        raise VlpromptError(f"{path} has more than {MAX_BYTES >> 20} MB, too much for a file of {what}")
    try:
        values = _load(content.decode("utf-8-sig"), _ShippedLoader if shipped else _Loader)
    except UnicodeDecodeError as error:
        raise VlpromptError(f"{path} cannot be read as YAML: it is not UTF-8 (byte {error.start})") from error
    except ValueError as error:
        raise VlpromptError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise VlpromptError(f"{path} must hold {what}, one 'key: value' a line" + ("" if content else ", and is empty"))
    values = {str(key): value for key, value in values.items()}
    for key, value in values.items():
        check_plain(key, value, f"{path}: ")
    return values


def read_value(key: str, text: str, typed: bool = True) -> Any:
    """Return the value of ``key=text`` on a command line: a number, a flag, null, a list or group, or the text itself.

    Args:
        key: name of the setting.
        text: text after the equals sign.
        typed: whether texts that look like numbers, flags or null are converted.

    Raises:
        VlpromptError: the text is empty, too long or not valid.

    >>> read_value("shots", "4"), read_value("ctx_init", "a photo #1 of a"), read_value("classes", "[cat, 007]")
    (4, 'a photo #1 of a', ['cat', '007'])
    """
    if text.strip() == "":
        raise VlpromptError(f"{key}= has no value: write {key}=VALUE, or leave it out")
    if len(text) > MAX_BYTES:
        raise VlpromptError(f"{key} has {len(text):,} characters, more than any setting needs")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise VlpromptError(f"{key} is not UTF-8: {text!a:.{SHOWN}}") from None
    if COMMENT.search(text) and not text.lstrip().startswith(("'", '"', "[", "{")):
        value: Any = text.strip()  # YAML would drop the part after # as a comment
    else:
        try:
            value = _load(text, _Loader if typed else _TextLoader)
        except ValueError as error:
            hint = "" if isinstance(error, _Refused) else ": put quotes around a text with signs such as : { and ["
            raise VlpromptError(f"{key}={show(text)} cannot be read ({error}){hint}") from error
    check_plain(key, value)
    return value


def check_plain(key: str, value: Any, where: str = "") -> None:
    """Raise a ``VlpromptError`` for placeholders, control characters, or too long texts and numbers, at any depth.

    Args:
        key: name of the setting.
        value: a text, number, flag or None, or lists and mappings of them; other objects are not checked.
        where: where it was read, as the beginning of an error message.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            check_plain(key, name, where)
            check_plain(key, inner, where)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_plain(key, inner, where)
    elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        raise VlpromptError(f"{where}{key} is a number of more than {MAX_DIGITS} digits, more than any setting needs")
    elif isinstance(value, str):
        _check_text(key, value, where)


def _check_text(key: str, text: str, where: str) -> None:
    if "${" in text:
        raise VlpromptError(
            f"{where}{key} has {text[text.index('${') :]:.{SHOWN}}, and settings are not interpolated: write the "
            "value itself"
        )
    if text == "???":
        raise VlpromptError(f"{where}{key} is ???, which marks a missing value: write one, or leave {key} out")
    if len(text) > MAX_TEXT:
        raise VlpromptError(f"{where}{key} has {len(text):,} characters, and a setting has at most {MAX_TEXT:,}")
    odd = CONTROLS.search(text)
    if odd:
        raise VlpromptError(
            f"{where}{key} has the character {odd[0]!a}, which settings may not contain: {text!a:.{SHOWN}}"
        )


def backbone_settings(settings: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    """Return ``backbone``, ``pretrained`` and ``checkpoint`` as texts; the latter two are None if not given."""
    given = (settings.get(key) for key in ("pretrained", "checkpoint"))
    pretrained, checkpoint = (None if value is None else str(value) for value in given)
    return str(settings["backbone"]), pretrained, checkpoint


def show(value: Any) -> str:
    """Return a value for a message, shortened; numbers too large for Python to print are described."""
    try:
        text = repr(value)
    except ValueError:
        return f"a number of more than {MAX_DIGITS} digits"
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"


def read_texts(text: str) -> Any:
    """Return a YAML document as lists, groups and texts, without numbers, flags and null; or raise ``ValueError``."""
    return _load(text, _TextLoader)


def _load(text: str, kind: type[_Loader] = _Loader) -> Any:
    """Read one YAML document; errors are a ``ValueError`` with one line."""
    loader = None
    try:
        loader = kind(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark and "\n" in text else ""
        raise ValueError(f"{error.problem}{line}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    finally:
        if loader is not None:
            loader.dispose()
