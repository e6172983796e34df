"""Typed settings: a ``Literal`` is checked with every release of OmegaConf, and the rest by OmegaConf."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from vlprompt.base.schema import assign, kind, structured, to_object
from vlprompt.learner import METHODS, make_config


@dataclass
class Settings:
    place: Literal["front", "end"] = "end"
    maybe: Literal["front", "end"] | None = None
    shots: int | Literal["all"] = 1
    places: list[Literal["front", "end"]] = field(default_factory=list)
    scale: float | Literal["auto"] = "auto"
    by_name: dict[str, Literal["front"]] = field(default_factory=dict)
    digit: Literal[1, "1"] = 1
    n_ctx: int | None = None


def test_defaults_are_those_of_the_dataclass() -> None:
    # case: the lowest versions that setup.cfg allows
    assert to_object(structured(Settings)) == Settings()


@pytest.mark.parametrize("method", METHODS.names())
def test_every_methods_settings_are_read(method: str) -> None:
    assert make_config(method, {}) == METHODS.get(method).Config()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("place", "front"),
        ("maybe", "front"),
        ("maybe", None),
        ("shots", 4),
        ("shots", "all"),
        ("places", ["front", "end"]),
        ("scale", 0.5),
        ("scale", 2),
        ("by_name", {"a": "front"}),
        ("digit", "1"),
        ("n_ctx", 4),
    ],
)
def test_values_of_the_type_are_taken(key: str, value: Any) -> None:
    schema = structured(Settings)
    assign(schema, key, value)
    assert to_object(schema) == Settings(**{key: value})
    assert type(getattr(to_object(schema), key)) is type(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("place", "middle"),
        ("place", None),
        ("maybe", "middle"),
        ("shots", "some"),
        ("shots", True),
        ("places", "front"),
        ("places", ["front", "middle"]),
        ("scale", "wide"),
        ("by_name", {"a": "end"}),
        ("by_name", "front"),
        ("digit", True),
        ("n_ctx", "many"),
    ],
)
def test_others_are_refused_and_leave_the_settings_as_they_were(key: str, value: Any) -> None:
    schema = structured(Settings)
    with pytest.raises(OmegaConfBaseException):
        assign(schema, key, value)
    assert to_object(schema) == Settings()


def test_a_key_that_is_no_field_is_told_from_a_wrong_value() -> None:
    with pytest.raises(ConfigKeyError, match="no field 'n_ctxt'"):
        assign(structured(Settings), "n_ctxt", 4)


def test_a_type_is_named_for_users() -> None:
    assert kind(Literal["front", "end"] | None) == "one of front, end or null"
    assert kind(int | None) == "a whole number or null"
