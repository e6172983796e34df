"""Lazy imports: names of a package that are imported at first use, and functions of higher rooms called by name.

``learner.save_pretrained(…)`` is a method of the learner, but writing folders belongs to a higher room. The lower room
looks the function up by name (``wired``), and the top-level ``__init__.py``, which may import everything, says where it
is (``wire``). So imports never point up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.machinery import SourceFileLoader
from typing import Any, cast

_places: dict[str, str] = {}
Exports = tuple[Callable[[str], Any], Callable[[], list[str]]]


def wire(places: Mapping[str, str]) -> None:
    """Record where functions are: ``module:attribute`` by name, or ``module`` for a whole module."""
    _places.update(places)


def wired(name: str) -> Any:
    """Import the module that was recorded under a name, and return its attribute or the module itself."""
    module, _, attribute = _places[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def lazy_exports(package: str, formerly: str = "", elsewhere: Mapping[str, str] | None = None) -> Exports:
    """Return ``__getattr__`` and ``__dir__`` of a package whose public names are imported when they are first used.

    The names and their modules are read from the imports under ``if TYPE_CHECKING:`` in the package's own file, so that
    type checkers and editors see what is found at run time. Submodules are found as attributes too, but ``dir`` lists
    only ``__all__``.

    Args:
        package: ``__name__`` of the package, or of a single module.
        formerly: the module that the whole package was in version 0.1, whose names are still found in the package.
        elsewhere: ``module:attribute`` by name, where it differs from what type checkers see.

    >>> from vlprompt.base.wiring import lazy_exports
    >>> __getattr__, __dir__ = lazy_exports(__name__)  # doctest: +SKIP
    """

    def find(name: str) -> Any:
        place = (elsewhere or {}).get(name) or exports_of(package).get(name)
        if place is not None:
            module, _, attribute = place.partition(":")
            found = getattr(import_module(module), attribute)
            setattr(sys.modules[package], name, found)  # the next access does not come here
            return found
        if not name.startswith("__"):
            from importlib.util import find_spec

            if hasattr(sys.modules[package], "__path__") and find_spec(f"{package}.{name}"):
                return import_module(f"{package}.{name}")
            if formerly and hasattr(import_module(formerly), name):
                return getattr(import_module(formerly), name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    def names() -> list[str]:
        module = sys.modules[package]
        return sorted(getattr(module, "__all__", None) or {*vars(module), *exports_of(package)})

    return find, names


@cache
def exports_of(package: str) -> dict[str, str]:
    """The names that a package imports under ``if TYPE_CHECKING:``, with their places as ``module:attribute``."""
    import ast  # here, since a package without lazy names does not need it

    spec = sys.modules[package].__spec__
    assert spec is not None  # of every package that was imported
    source = cast(SourceFileLoader, spec.loader).get_source(package) or ""
    typed = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    blocks = (node.body for node in typed if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
    imports = (node for block in blocks for node in block if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name: f"{each.module}:{alias.name}" for each in imports for alias in each.names}
