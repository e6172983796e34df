"""Names to things: one small registry for methods, objectives, dataset readers and protocols."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vlprompt.base.plugins import load_installed
from vlprompt.base.wiring import wired
from vlprompt.errors import VlpromptError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """What is known about a registered name."""

    name: str
    value: T
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """First line of the registered object's docstring."""
        return (self.value.__doc__ or "").strip().split("\n", 1)[0]


class Registry(Generic[T]):
    """A dictionary that refuses silent overwriting and answers a wrong name with the nearest ones.

    What the package ships is filed first, then what installed plugins add, and then whatever else.

    Args:
        kind: what it holds, for sentences.
        shipped: under which name the module is wired that files what the package ships; empty if this one's own does.

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
            wired(self._shipped)  # a module that is there already, or is being imported, is not run again

    def register(self, name: str, **facts: Any) -> Callable[[T], T]:
        """Return a decorator that files an object under ``name`` with ``facts`` about it.

        A definition that is run again, as a notebook's cell or a reloaded module, takes the place of its former self.
        """

        def file(value: T) -> T:
            if not value.__module__.startswith("vlprompt."):  # which may be on its way, and others come after it
                self._file_shipped()
            former = self._entries[name].value if name in self._entries else None
            if former is not None and _definition(former) != _definition(value):
                raise VlpromptError(f"{self.kind} '{name}' is registered already, by {former!r}")
            self._entries[name] = Entry(name, value, facts)
            return value

        return file

    def info(self, name: str) -> Entry[T]:
        """Return the entry of ``name``; an unknown name is an error that lists the nearest."""
        try:
            return self._filed()[name]
        except (KeyError, TypeError):  # a list is no key at all
            raise VlpromptError(f"unknown {self.kind} '{name}': {nearest(name, self._entries)}") from None

    def get(self, name: str) -> T:
        """Return the object filed under ``name``."""
        return self.info(name).value

    def names(self, pattern: str = "*") -> list[str]:
        """Return the sorted names that match a shell-style ``pattern``."""
        return sorted(fnmatch.filter(self._filed(), pattern))

    def order(self) -> list[str]:
        """Return all names in the order in which they were filed."""
        return list(self._filed())

    def __contains__(self, name: object) -> bool:
        return name in self._filed()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


def _definition(value: object) -> tuple[str, str]:
    return value.__module__, getattr(value, "__qualname__", repr(value))
