"""Validates values against types with pydantic in strict mode; errors are one sentence that names the field.

Settings, methods, cards, saved learners and results share these rules. Values are not converted, except whole numbers
to floats and tuples to lists.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from vlprompt.base.settings_text import show
from vlprompt.errors import VlpromptError, nearest

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
BOUNDS = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "above {gt:g}",
    "less_than_equal": "at most {le:,}",
    "less_than": "below {lt:g}",
}
NAMES: dict[Any, str] = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"},
    **{list: "a list", tuple: "a list", dict: "a group", Any: "a plain value"},
}
OF_TEXTS: dict[Any, str] = {
    list[str]: "a list of texts",
    dict[str, list[str]]: "a group of lists of texts",
}
KINDS = ("constrained-int", "int", "str", "[key]")  # parts of an error's location that name a member of a union
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
MISFITS = (ValidationError, TypeError, ValueError, RecursionError)


def strict(extra: Literal["forbid", "allow"] = "forbid") -> Callable[[type[T]], type[T]]:
    """Mark a dataclass or ``TypedDict`` as strict, as a decorator; ``extra`` says what to do with unknown fields."""

    def mark(cls: type[T]) -> type[T]:
        cls.__pydantic_config__ = STRICT | ConfigDict(extra=extra)  # type: ignore[attr-defined]
        return cls

    return mark


@functools.lru_cache(maxsize=512)
def adapter(hint: Any) -> TypeAdapter[Any]:
    """Pydantic's validator of a type, which is created once."""
    return TypeAdapter(hint, config=None if hasattr(hint, "__pydantic_config__") else STRICT)


def validated(value: Any, hint: Any) -> Any:
    """Validate a setting's value and return a copy, with tuples as lists and paths as texts.

    Raises:
        ValueError: it does not fit its type, as in "must be a whole number, not 'x'".
    """
    try:
        return adapter(hint).validate_json(json.dumps(value, default=os.fspath))
    except MISFITS as error:
        found = error.errors(include_url=False) if isinstance(error, ValidationError) else []
        bound = BOUNDS.get(found[0]["type"]) if len(found) == 1 else None
        what = bound.format(**found[0]["ctx"]) if bound else kind(hint)
        raise ValueError(f"must be {what}, not {show(value)}") from None


def settings_of(config: type, values: Mapping[str, Any], where: str = "", of: str = "") -> dict[str, Any]:
    """Validate settings against the fields of a dataclass, and return them.

    Args:
        config: the dataclass.
        values: values by field.
        where: where they come from, as the beginning of an error message.
        of: whose keys they are, as in "unknown key 'x' for method=coop".

    Raises:
        VlpromptError: a key is unknown, or a value does not fit its type.
    """
    hints, found = _hints(config), {}
    for key, value in values.items():
        if key not in hints:
            raise VlpromptError(f"{where}unknown key '{key}'{of}: {nearest(key, hints)}")
        if type(value) is int and hints[key] in (str, str | None):
            value = str(value)  # name=7, which YAML reads as a number
        try:
            found[key] = validated(value, hints[key])
        except ValueError as error:
            raise VlpromptError(f"{where}{key} {error}") from None
    return found


def read_as(cls: type[T], values: Any, where: str, known: Iterable[str] = ()) -> T:
    """Make a dataclass from the content of a JSON or YAML file.

    Args:
        cls: the dataclass, which is ``strict``.
        values: the file's content.
        where: the file's name, as the beginning of an error message.
        known: names of fields, of which the nearest are suggested for an unknown one.

    Raises:
        VlpromptError: a field is missing, unknown or of the wrong type.
    """
    hint: Any = cls
    try:
        made: T = adapter(hint).validate_json(json.dumps(values))
    except ValidationError as error:
        raise VlpromptError(f"{where}{_first_wrong(error, known)}") from None
    return made


def check_fields(cls: type, values: Mapping[str, Any], where: str) -> None:
    """Raise a ``VlpromptError``, beginning with ``where``, for the first field that is missing, unknown or ill-typed.

    Args:
        cls: a strict ``TypedDict`` whose fields are ``Annotated`` with a ``description`` of what each must be.
        values: values by field.
        where: the file's name and what is wrong with it, as the beginning of an error message.
    """
    try:
        adapter(cls).validate_python(values)
    except ValidationError as error:
        first = _first(error)
        name, *inside = first["loc"]
        if inside or first["type"] not in ("missing", *UNKNOWN):
            declared = get_args(_hints(cls)[str(name)])[-1]
            raise VlpromptError(f"{where}: '{name}' must be {declared.description}") from None
        raise VlpromptError(f"{where}{_first_wrong(error)}") from None


def kind(hint: Any) -> str:
    """Name a type for a user: ``int | None`` is "a whole number or null"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return kind(inner[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, UnionType):
        return " or ".join(map(kind, inner))
    for texts, name in OF_TEXTS.items():
        if hint == texts:
            return name
    return NAMES.get(origin or hint, str(hint))


@functools.lru_cache(maxsize=256)  # each method has its own class
def _hints(config: type) -> dict[str, Any]:
    return get_type_hints(config, include_extras=True)


def _first(error: ValidationError) -> Any:
    """The first error, but an unknown field comes before others, since it may be a misspelt one that is missing."""
    found = error.errors(include_url=False)
    return next((each for each in found if each["type"] in UNKNOWN), found[0])


def _first_wrong(error: ValidationError, known: Iterable[str] = ()) -> str:
    """The place of the first wrong field and what is wrong with it, as the end of a message."""
    first = _first(error)
    *above, name = [part for part in first["loc"] if part not in KINDS] or ["result"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f", {part}" for part in above)
    shown, message = show(first["input"]), first["msg"][0].lower() + first["msg"][1:]
    if first["type"] == "missing":
        return f"{where}: it lacks field '{name}'"
    if first["type"] in UNKNOWN:
        hint = f": {nearest(str(name), known)}" if known else ""
        return f"{where}: it has the unknown field '{name}'{hint}"
    if first["type"] == "value_error":
        return f"{where}: field '{name}' {message.removeprefix('value error, ')}: {shown}"
    return f"{where}: field '{name}' is not right: {message}, not {shown}"
