"""Settings that name a part and its arguments: ``text_anchor(weight=8)``, ``gpa(mean=15, std=1)``."""

from __future__ import annotations

import ast
import inspect
import re
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from typing_extensions import Unpack

from vlprompt.base.registry import Registry
from vlprompt.base.schema import taken
from vlprompt.errors import VlpromptError, nearest


class Part:
    """What a setting names."""

    name = ""  # by which it was asked for


T = TypeVar("T", bound=Part)


def parse_part(text: str, registry: Registry[type[T]]) -> T:
    """Make a part from ``name`` or ``name(key=value, …)``; values are Python literals, or bare words for texts.

    Raises:
        VlpromptError: it cannot be read, the name is unknown, or an argument is.
    """
    of = registry.kind
    name, arguments = read_part(text, of)
    make = registry.get(name)
    declared = _declared(make)
    for key, value in arguments.items():
        if key not in declared and _takes_any(make):  # and may hand it on, to fail where nobody expects it
            raise VlpromptError(f"{of} '{text}': unknown key '{key}': {nearest(key, declared)}")
        try:
            arguments[key] = taken(value, declared[key]) if _is_plain(declared.get(key)) else value
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
    """The name and the arguments of ``name`` or ``name(key=value, …)``, as ``parse_part`` reads them; ``of`` what kind.

    >>> read_part("gda(alpha=0.1, fit_views=1)", "method")
    ('gda', {'alpha': 0.1, 'fit_views': 1})

    Raises:
        VlpromptError: it cannot be read.
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
    """The types that a part's classes give to its arguments; a class hands those that it does not name to its base."""
    found: dict[str, Any] = {}
    for each in reversed(make.__mro__):
        if "__init__" in vars(each):
            try:
                found |= get_type_hints(vars(each)["__init__"])
            except NameError:  # imported for type checkers alone
                continue
    more = [hint for hint in found.values() if get_origin(hint) is Unpack]  # **options of a TypedDict
    for hint in more:
        found |= get_type_hints(*get_args(hint))
    return {name: hint for name, hint in found.items() if name != "return" and hint not in more}


def _takes_any(make: type) -> bool:
    """Whether a part's class takes arguments that it does not name, of a ``TypedDict``."""
    parameters = inspect.signature(make).parameters.values()
    return any(each.kind is each.VAR_KEYWORD and "Unpack[" in str(each.annotation) for each in parameters)


def _is_plain(hint: Any) -> bool:
    """Whether values can be held to a type: numbers, texts, choices, and tuples and unions of them."""
    if get_origin(hint) in (tuple, Union, UnionType):
        return all(map(_is_plain, get_args(hint)))
    return get_origin(hint) is Literal or hint in (int, float, bool, str, NoneType)


def _advice(text: str) -> str:
    """Say how a part is written, after what seems to be wrong with this one."""
    path = re.search(r"(\w+)\s*=\s*([^\s'\"(),=]*(?:[/\\~]|\.[A-Za-z])[^'\"(),=]*)", text)
    if path:
        return f"put quotes around the path, {path[1]}='{path[2].strip()}'"
    if text.count("(") != text.count(")"):
        return "put quotes around an entry of a list that holds commas"
    return "write it as name or name(key=value, …)"


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
