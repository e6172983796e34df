"""Settings that name a part and its arguments: ``text_anchor(weight=8)``, ``gpa(mean=15, std=1)``."""

from __future__ import annotations

import ast
import re
from typing import Any, TypeVar

from vlprompt.errors import VlpromptError
from vlprompt.registry import Registry

T = TypeVar("T")


def parse_part(text: str, registry: Registry[type[T]]) -> T:
    """Make a part from ``name`` or ``name(key=value, …)``; values are Python literals, or bare words for texts.

    Raises:
        VlpromptError: it cannot be read, the name is unknown, or an argument is.
    """
    kind = registry.kind
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        arguments = {k.arg or "": _value(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise VlpromptError(f"cannot read {kind} '{text}': {_advice(text)}") from None
    try:
        part = registry.get(call.func.id)(**arguments)
    except TypeError as error:
        raise VlpromptError(f"{kind} '{text}': {str(error).split('() ')[-1]}") from None
    part.name = call.func.id
    return part


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
