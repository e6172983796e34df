"""Reads classes, settings and docstrings from this package's source files without executing them.

So methods can be listed, and misspelt settings refused, without importing torch. The base classes of a class are read
too, wherever they are imported from. Where that fails, functions return None, and callers import the module instead.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

PLACE = Path(__file__).resolve().parents[2]  # folder of the packages
# name, class, and first line of its docstring; a pattern, since parsing sixty files takes a tenth of a second
REGISTERED = re.compile(
    r'^@register\(\s*"([^"]+)"(?:(?!^(?:def|class) ).)*?^class (\w+)(?:\([^)]*\))?:\n\s+"""([^"\n]*)',
    re.MULTILINE | re.DOTALL,
)


class Declared(NamedTuple):
    """A class in a module."""

    module: str
    name: str
    summary: str = ""  # first line of its docstring, if it is registered

    @property
    def node(self) -> ast.ClassDef:
        """Its syntax tree, for which the module is parsed."""
        return next(node for node in _body(self.module) if isinstance(node, ast.ClassDef) and node.name == self.name)


@cache
def registered(package: str) -> dict[str, Declared]:
    """The classes in a package that are registered by ``@register("NAME", …)``, by name."""
    found = {}
    for file in sorted(PLACE.joinpath(*package.split(".")).rglob("*.py")):
        module = ".".join(file.relative_to(PLACE).with_suffix("").parts)
        for name, cls, summary in REGISTERED.findall(file.read_text("utf-8")):
            found[name] = Declared(module, cls, summary.strip())
    return dict(sorted(found.items()))


Fields = dict[str, tuple[str, ...]]


def fields_of(owner: Declared, inner: str = "Config") -> Fields | None:
    """The fields of a class's inner dataclass, its own or inherited, with those of its bases.

    Returns:
        By name, the values that a field's type lists: those of a ``Literal``, and true and false for a flag; None if
        the classes cannot be read.
    """
    node = owner.node
    own = next((n for n in node.body if isinstance(n, ast.ClassDef) and n.name == inner), None)
    if own is not None:
        return _fields(owner.module, own)
    bases = (_class(owner.module, base.id) for base in node.bases if isinstance(base, ast.Name))
    return next((fields for base in bases if base and (fields := fields_of(base, inner)) is not None), None)


def fields_in(module: str, name: str) -> Fields | None:
    """The fields of a module's dataclass, as returned by ``fields_of``."""
    cls = _class(module, name)
    return cls and _fields(cls.module, cls.node)


def _fields(module: str, node: ast.ClassDef) -> Fields | None:
    """The fields of a dataclass and of its bases, which may be inner classes such as ``PromptLearner.Config``."""
    found: Fields = {}
    for base in node.bases:
        inside = isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name)
        name = base.value.id if inside else getattr(base, "id", "")  # type: ignore[attr-defined]
        cls = _class(module, name)
        inherited = (
            None if cls is None else fields_of(cls, base.attr) if inside else _fields(cls.module, cls.node)  # type: ignore[attr-defined]
        )
        if inherited is None:
            return None
        found |= inherited
    own = (each for each in node.body if isinstance(each, ast.AnnAssign))
    return found | {each.target.id: _choices(each.annotation) for each in own if isinstance(each.target, ast.Name)}


def _choices(annotation: ast.expr) -> tuple[str, ...]:
    """The values that an annotation lists, anywhere in it."""
    found: list[str] = []
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name) and node.id == "bool":
            found += ["true", "false"]
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
            found += [str(each.value) for each in ast.walk(node.slice) if isinstance(each, ast.Constant)]
    return tuple(found)


def docstring(module: str) -> str:
    """The docstring of a module; empty if it has none."""
    return ast.get_docstring(ast.Module(_body(module), [])) or ""


def parameters(module: str, function: str) -> list[str]:
    """The names of a function's parameters."""
    node = next(node for node in _body(module) if isinstance(node, ast.FunctionDef) and node.name == function)
    return [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


@cache
def _body(module: str) -> list[ast.stmt]:
    """The statements of a module; empty if it belongs to another package."""
    path = PLACE.joinpath(*module.split("."))
    file = next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)
    return ast.parse(file.read_text("utf-8")).body if file else []


def _class(module: str, name: str) -> Declared | None:
    """A class by its name in a module, which may define it or import it, also for type checkers only."""
    for node in _body(module):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Declared(module, node.name)
        for each in node.body if isinstance(node, ast.If) else [node]:
            if isinstance(each, ast.ImportFrom) and each.module:
                for alias in each.names:
                    if (alias.asname or alias.name) == name:
                        return _class(each.module, alias.name)
    return None
