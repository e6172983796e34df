"""What is offered below and done above: short forms that a lower room has of an upper one's functions.

``learner.save_pretrained(…)`` is a method of the learner, and writing folders is a room above it. The lower room asks
here by name; the package's face, which stands above both, says where the function is. So imports never point up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.machinery import SourceFileLoader
from typing import Any, cast

_places: dict[str, str] = {}
Face = tuple[Callable[[str], Any], Callable[[], list[str]]]


def wire(places: Mapping[str, str]) -> None:
    """Say where functions are: by the name that is asked for, ``module:attribute``, or ``module`` for all of one."""
    _places.update(places)


def wired(name: str) -> Any:
    """Return what was wired under a name; its module is imported now."""
    module, _, attribute = _places[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def face(package: str, formerly: str = "", elsewhere: Mapping[str, str] | None = None) -> Face:
    """Return ``__getattr__`` and ``__dir__`` of a package whose names are imported when they are asked for.

    ``dir`` shows what ``__all__`` names, which is what users are to find; modules are there when they are asked for.

    What the package, or a module alone, offers, and where that is, stands under ``if TYPE_CHECKING:`` in its own file,
    and nowhere else: what type checkers and editors are told is what is found. Its modules are attributes too.

    Args:
        package: ``__name__``.
        formerly: what was the whole of it in version 0.1, a module; its names are still found in the package.
        elsewhere: places of names, ``module:attribute``, that type checkers are told another one of.

    >>> from vlprompt.base.wiring import face
    >>> __getattr__, __dir__ = face(__name__)  # doctest: +SKIP
    """

    def find(name: str) -> Any:
        place = (elsewhere or {}).get(name) or offered(package).get(name)
        if place is not None:
            module, _, attribute = place.partition(":")
            found = getattr(import_module(module), attribute)
            setattr(sys.modules[package], name, found)  # which is not asked for again
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
        return sorted(getattr(module, "__all__", None) or {*vars(module), *offered(package)})

    return find, names


@cache
def offered(package: str) -> dict[str, str]:
    """Where a package tells type checkers that its names are: ``module:attribute`` by name."""
    import ast  # here, since a package that is not asked for anything needs none of it

    spec = sys.modules[package].__spec__
    assert spec is not None  # of every package that was imported
    source = cast(SourceFileLoader, spec.loader).get_source(package) or ""
    typed = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    blocks = (node.body for node in typed if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
    imports = (node for block in blocks for node in block if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name: f"{each.module}:{alias.name}" for each in imports for alias in each.names}
