"""What this package's files declare, read without running them: to list methods or refuse a setting takes no torch.

A class is read with the classes that it is made of, wherever they are imported from. What cannot be followed is None,
and whoever asks then imports the module.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PLACE = Path(__file__).resolve().parents[2]  # of the packages


@dataclass(frozen=True)
class Declared:
    """A class in a module."""

    module: str
    node: ast.ClassDef

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (ast.get_docstring(self.node) or "").partition("\n")[0]


@cache
def registered(package: str, decorator: str = "register") -> dict[str, Declared]:
    """The classes below a package that are registered as ``@register("NAME", …)``, by name."""
    found = {}
    for file in sorted(PLACE.joinpath(*package.split(".")).rglob("*.py")):
        module = ".".join(file.relative_to(PLACE).with_suffix("").parts)
        for node in _body(module):
            name = _registered_name(node, decorator) if isinstance(node, ast.ClassDef) else None
            if name is not None and isinstance(node, ast.ClassDef):
                found[name] = Declared(module, node)
    return dict(sorted(found.items()))


def fields_of(owner: Declared, inner: str = "Config") -> list[str] | None:
    """The fields of the dataclass that a class calls ``inner``, or inherits, with those of its bases."""
    own = next((n for n in owner.node.body if isinstance(n, ast.ClassDef) and n.name == inner), None)
    if own is not None:
        return _fields(Declared(owner.module, own))
    bases = (_class(owner.module, base.id) for base in owner.node.bases if isinstance(base, ast.Name))
    return next((fields for base in bases if base and (fields := fields_of(base, inner)) is not None), None)


def _fields(settings: Declared) -> list[str] | None:
    """The fields of a dataclass whose bases are dataclasses too, alone or of a class: ``PromptLearner.Config``."""
    names: list[str] = []
    for base in settings.node.bases:
        inside = isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name)
        name = base.value.id if inside else getattr(base, "id", "")  # type: ignore[attr-defined]
        cls = _class(settings.module, name)
        inherited = None if cls is None else fields_of(cls, base.attr) if inside else _fields(cls)  # type: ignore[attr-defined]
        if inherited is None:
            return None
        names += inherited
    own = (node.target for node in settings.node.body if isinstance(node, ast.AnnAssign))
    return [*names, *(target.id for target in own if isinstance(target, ast.Name))]


def docstring(module: str) -> str:
    """The docstring of a module; empty if it has none."""
    return ast.get_docstring(ast.Module(_body(module), [])) or ""


def parameters(module: str, function: str) -> list[str]:
    """The names of a function's parameters."""
    node = next(node for node in _body(module) if isinstance(node, ast.FunctionDef) and node.name == function)
    return [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


@cache
def _body(module: str) -> list[ast.stmt]:
    """The statements of a module; none if it is another package's."""
    path = PLACE.joinpath(*module.split("."))
    file = next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)
    return ast.parse(file.read_text("utf-8")).body if file else []


def _registered_name(node: ast.ClassDef, decorator: str) -> str | None:
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == decorator and call.args:
            name = call.args[0]
            return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None
    return None


def _class(module: str, name: str) -> Declared | None:
    """A class by the name that it has in a module, which may import it for type checkers alone."""
    for node in _body(module):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Declared(module, node)
        for each in node.body if isinstance(node, ast.If) else [node]:
            if isinstance(each, ast.ImportFrom) and each.module:
                for alias in each.names:
                    if (alias.asname or alias.name) == name:
                        return _class(each.module, alias.name)
    return None
