"""Settings that name a part and its arguments: ``text_anchor(weight=8)``, ``gpa(mean=15, std=1)``."""

from __future__ import annotations

import ast
import inspect
import re
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from typing_extensions import Unpack

from vlprompt.base.registry import Registry
from vlprompt.base.schema import validated
from vlprompt.errors import VlpromptError, nearest


class Part:
    """Base class of what a setting names, such as an objective or a schedule."""

    name = ""  # the name in the setting


T = TypeVar("T", bound=Part)


def parse_part(text: str, registry: Registry[type[T]]) -> T:
    """Create a part from ``name`` or ``name(key=value, …)``; values are Python literals, or bare words for texts.

    Raises:
        VlpromptError: the text cannot be parsed, or the name or an argument is unknown or wrong.
    """
    of = registry.kind
    name, arguments = read_part(text, of)
    make = registry.get(name)
    declared = _declared(make)
    for key, value in arguments.items():
        if key not in declared and _takes_any(make):  # passed on, it would fail in a place that nobody expects
            raise VlpromptError(f"{of} '{text}': unknown key '{key}': {nearest(key, declared)}")
        try:
            arguments[key] = validated(value, declared[key]) if _is_plain(declared.get(key)) else value
        except ValueError as error:
            raise VlpromptError(f"{of} '{text}': {key} {error}") from None
    try:
        part = make(**arguments)
    except TypeError as error:
        odd = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        said = f"unknown key '{odd[1]}': {nearest(odd[1], declared)}" if odd else str(error).split("() ")[-1]
        raise VlpromptError(f"{of} '{text}': {said}") from None
    part.name = name
    return part


def read_part(text: str, of: str) -> tuple[str, dict[str, Any]]:
    """Split ``name`` or ``name(key=value, …)`` into the name and the arguments; ``of`` is the kind, for messages.

    >>> read_part("gda(alpha=0.1, fit_views=1)", "method")
    ('gda', {'alpha': 0.1, 'fit_views': 1})

    Raises:
        VlpromptError: the text cannot be parsed.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        return call.func.id, {k.arg or "": _value(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise VlpromptError(f"cannot read {of} '{text}': {_advice(text)}") from None


def _declared(make: type) -> dict[str, Any]:
    """Types of a part's arguments, including those that its class passes on to its bases."""
    found: dict[str, Any] = {}
    for each in reversed(make.__mro__):
        if "__init__" in vars(each):
            try:
                found |= get_type_hints(vars(each)["__init__"])
            except NameError:  # imported for type checkers only
                continue
    more = [hint for hint in found.values() if get_origin(hint) is Unpack]  # **options of a TypedDict
    for hint in more:
        found |= get_type_hints(*get_args(hint))
    return {name: hint for name, hint in found.items() if name != "return" and hint not in more}


def _takes_any(make: type) -> bool:
    """Whether a part's class accepts ``**options``, typed by a ``TypedDict``."""
    parameters = inspect.signature(make).parameters.values()
    return any(each.kind is each.VAR_KEYWORD and "Unpack[" in str(each.annotation) for each in parameters)


def _is_plain(hint: Any) -> bool:
    """Whether values of a type can be validated: numbers, texts, choices, and tuples and unions of them."""
    if get_origin(hint) in (tuple, Union, UnionType):
        return all(map(_is_plain, get_args(hint)))
    return get_origin(hint) is Literal or hint in (int, float, bool, str, NoneType)


def _advice(text: str) -> str:
    """Advice on how to write a part, depending on what seems to be wrong with this one."""
    path = re.search(r"(\w+)\s*=\s*([^\s'\"(),=]*(?:[/\\~]|\.[A-Za-z])[^'\"(),=]*)", text)
    if path:
        return f"put quotes around the path, {path[1]}='{path[2].strip()}'"
    if text.count("(") != text.count(")"):
        return "put quotes around an entry of a list that holds commas"
    return "write it as name or name(key=value, …)"


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
