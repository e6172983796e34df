"""The registry of named objects: methods, objectives, dataset readers, protocols and others."""

from __future__ import annotations

import fnmatch
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vlprompt.base.plugins import load_installed
from vlprompt.base.wiring import wired
from vlprompt.errors import VlpromptError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered object with its name and facts."""

    name: str
    value: T
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """First line of the registered object's docstring."""
        return (self.value.__doc__ or "").strip().split("\n", 1)[0]


class Registry(Generic[T]):
    """A dictionary that refuses to overwrite entries and suggests the nearest names for an unknown one.

    The package's own objects are registered first, then those of installed plugins, then others.

    Args:
        kind: what it contains, for messages.
        shipped: name (see ``vlprompt.base.wiring``) of the module whose import registers the package's own objects;
            empty if the registry's own module does.

    >>> shapes = Registry("shape")
    >>> @shapes.register("disc", round=True)
    ... def disc(): "A disc."
    >>> shapes.names("d*"), shapes.info("disc").facts["round"]
    (['disc'], True)
    """

    def __init__(self, kind: str, shipped: str = ""):
        self.kind, self._shipped = kind, shipped
        self._entries: dict[str, Entry[T]] = {}

    def _filed(self) -> dict[str, Entry[T]]:
        self._file_shipped()
        load_installed()
        return self._entries

    def _file_shipped(self) -> None:
        if self._shipped:
            wired(self._shipped)  # has no effect if it was imported before or is being imported

    def register(self, name: str, **facts: Any) -> Callable[[T], T]:
        """Return a decorator that registers an object under ``name`` with ``facts`` about it.

        A definition that is executed again, as in a notebook's cell or a reloaded module, replaces its earlier version.

        Raises:
            VlpromptError: the name is taken by another definition.
        """

        def file(value: T) -> T:
            if not value.__module__.startswith("vlprompt."):  # the package's own objects come first
                self._file_shipped()
            former = self._entries[name].value if name in self._entries else None
            if former is not None and _definition(former) != _definition(value):
                raise VlpromptError(f"{self.kind} '{name}' is registered already, by {former!r}")
            self._entries[name] = Entry(name, value, facts)
            return value

        return file

    def info(self, name: str) -> Entry[T]:
        """Return the entry of ``name``; raises ``VlpromptError`` with the nearest names if there is none."""
        try:
            return self._filed()[name]
        except (KeyError, TypeError):  # a list cannot be a key
            raise VlpromptError(f"unknown {self.kind} '{name}'{_where()}: {nearest(name, self._entries)}") from None

    def get(self, name: str) -> T:
        """Return the object registered under ``name``."""
        return self.info(name).value

    def names(self, pattern: str = "*") -> list[str]:
        """Return the sorted names that match a shell-style ``pattern``."""
        return sorted(fnmatch.filter(self._filed(), pattern))

    def order(self) -> list[str]:
        """Return all names in the order of registration."""
        return list(self._filed())

    def __contains__(self, name: object) -> bool:
        return name in self._filed()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


def _definition(value: object) -> tuple[str, str]:
    return value.__module__, getattr(value, "__qualname__", repr(value))


def _where() -> str:
    """In a worker process: that a notebook's definitions are not there."""
    if multiprocessing.current_process().name == "MainProcess":
        return ""
    return " in a worker process, which knows plugins (vlprompt.base.plugins.use) and nothing of a notebook's"
