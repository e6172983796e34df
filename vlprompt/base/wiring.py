"""What is offered below and done above: short forms that a lower room has of an upper one's functions.

``learner.save_pretrained(…)`` is a method of the learner, and writing folders is a room above it. The lower room asks
here by name; the package's face, which stands above both, says where the function is. So imports never point up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

_places: dict[str, str] = {}


def wire(places: Mapping[str, str]) -> None:
    """Say where functions are: by the name that is asked for, ``module:attribute``."""
    _places.update(places)


def wired(name: str) -> Any:
    """Return what was wired under a name; its module is imported now."""
    module, _, attribute = _places[name].partition(":")
    return getattr(import_module(module), attribute)


def face(module: str) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that finds what was wired under ``<module>.<name>``."""

    def find(name: str) -> Any:
        if f"{module}.{name}" not in _places:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        return wired(f"{module}.{name}")

    return find


def formerly(module: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a room that was one module in version 0.1: its names are still found here.

    Args:
        module: what the earlier module has become.
    """

    def find(name: str) -> Any:
        found = import_module(module)
        if name.startswith("__") or not hasattr(found, name):
            raise AttributeError(f"module '{module.rpartition('.')[0]}' has no attribute '{name}'")
        return getattr(found, name)

    return find
