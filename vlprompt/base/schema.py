"""Dataclasses as typed settings that OmegaConf checks, with ``Literal`` on releases of it that know none."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import fields, make_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError


def structured(config: type) -> DictConfig:
    """Return ``OmegaConf.structured(config)`` for a dataclass whose fields may be a ``Literal``, or hold some.

    OmegaConf 2.3, the last that Hydra's users can have, refuses such a class. So OmegaConf takes anything for these
    fields, and ``assign`` compares with the hint.
    """
    schema: DictConfig = OmegaConf.structured(_without_literals(config))
    return schema


def hint_of(schema: DictConfig, key: str) -> Any:
    """The type that the dataclass gives to a field."""
    return _hints(_dataclass(schema))[key]


def assign(schema: DictConfig, key: str, value: Any) -> None:
    """Set a field of a ``structured`` configuration.

    Raises:
        OmegaConfBaseException: there is no such field, or the value does not fit its type.
    """
    hints = _hints(_dataclass(schema))
    if key not in hints:
        raise ConfigKeyError(f"there is no field '{key}'")
    if _has_literal(hints[key]) and not fits(value, hints[key]):
        raise ValidationError(f"it must be {kind(hints[key])}")
    OmegaConf.update(schema, key, value, merge=False)  # a dictionary stands in the other's place


def to_object(schema: DictConfig) -> Any:
    """Return the dataclass's instance."""
    loose: Any = OmegaConf.to_object(schema)
    return _dataclass(schema)(**{field.name: getattr(loose, field.name) for field in fields(loose)})


def kind(hint: Any) -> str:
    """Name a type for a user: ``int | None`` is "a whole number or null"."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(kind, get_args(hint)))
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
    return plain.get(hint, "a list" if get_origin(hint) in (list, tuple) else str(hint))


@functools.lru_cache(maxsize=64)  # every run has a class of its own
def _without_literals(config: type) -> type:
    """A subclass that differs in its hints alone."""
    hints = _hints(config)
    loose = [(f.name, Any, copy.copy(f)) for f in fields(config) if _has_literal(hints[f.name])]
    return make_dataclass(config.__name__, loose, bases=(config,))


def _dataclass(schema: DictConfig) -> type:
    """The class that ``_without_literals`` was given."""
    loose = OmegaConf.get_type(schema)
    assert loose is not None
    return loose.__mro__[1]


@functools.lru_cache(maxsize=64)
def _hints(config: type) -> dict[str, Any]:
    return get_type_hints(config)


def _has_literal(hint: Any) -> bool:
    return get_origin(hint) is Literal or any(map(_has_literal, get_args(hint)))


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of a type, without conversion but for a whole number that stands for a float."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(fits(one, inner[0]) for one in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)
