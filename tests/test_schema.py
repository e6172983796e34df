"""Typed settings: a value is taken as its type says, or refused, and never converted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from vlprompt import VlpromptError
from vlprompt.base.schema import kind, settings_of
from vlprompt.learner import METHODS, make_config


@dataclass
class Settings:
    place: Literal["front", "end"] = "end"
    maybe: Literal["front", "end"] | None = None
    shots: int | Literal["all"] = 1
    places: list[Literal["front", "end"]] = field(default_factory=list)
    scale: float | Literal["auto"] = "auto"
    by_name: dict[str, Literal["front"]] = field(default_factory=dict)
    n_ctx: int | None = None
    flag: bool = False
    name: str = ""
    rate: Annotated[float, Field(ge=0, lt=1)] = 0.5
    seed: Annotated[int, Field(le=2**32)] | None = None
    anything: Any = None


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
        ("by_name", {"a": "front"}),
        ("n_ctx", 4),
        ("flag", True),
        ("name", "010"),
        ("rate", 0.25),
        ("seed", 2**32),
        ("anything", {"a": [1, 0.5, None, "x", True]}),
    ],
)
def test_values_of_the_type_are_taken(key: str, value: Any) -> None:
    taken = settings_of(Settings, {key: value})
    assert taken == {key: value}
    assert type(taken[key]) is type(value)


def test_a_whole_number_stands_for_a_float_a_tuple_for_a_list_and_a_path_for_a_text() -> None:
    given = ["front"]
    taken = settings_of(Settings, {"scale": 2, "places": ("front",), "name": Path("a/b"), "anything": given})
    assert taken == {"scale": 2.0, "places": ["front"], "name": "a/b", "anything": given}
    assert isinstance(taken["scale"], float)
    assert taken["anything"] is not given


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("place", "middle", "one of front, end"),
        ("place", None, "one of front, end"),
        ("maybe", "middle", "one of front, end or null"),
        ("shots", "some", "a whole number or one of all"),
        ("shots", True, "a whole number or one of all"),
        ("places", "front", "a list"),
        ("places", ["front", "middle"], "a list"),
        ("scale", "wide", "a number or one of auto"),
        ("by_name", {"a": "end"}, "a group"),
        ("by_name", "front", "a group"),
        ("n_ctx", "many", "a whole number or null"),
        ("n_ctx", "010", "a whole number or null"),
        ("n_ctx", "4", "a whole number or null"),
        ("n_ctx", 4.0, "a whole number or null"),
        ("n_ctx", True, "a whole number or null"),
        ("flag", 1, "true or false"),
        ("flag", "yes", "true or false"),
        ("name", 7.5, "a text"),
        ("name", b"x", "a text"),
        ("rate", -0.5, "at least 0"),
        ("rate", 1, "below 1"),
        ("rate", float("nan"), "a number"),
        ("rate", float("inf"), "a number"),
        ("seed", 2**32 + 1, "at most 4,294,967,296"),
        ("anything", {1, 2}, "a plain value"),
    ],
)
def test_others_are_refused(key: str, value: Any, sentence: str) -> None:
    with pytest.raises(VlpromptError, match=f"^mine: {key} must be {sentence}.*, not ") as raised:
        settings_of(Settings, {key: value}, "mine: ")
    assert "\n" not in str(raised.value)


def test_a_key_that_is_no_field_is_told_with_the_nearest() -> None:
    with pytest.raises(VlpromptError, match=r"^a {}\.yaml: unknown key 'n_ctxt' of it: did you mean n_ctx\?$"):
        settings_of(Settings, {"n_ctxt": 4}, "a {}.yaml: ", " of it")


def test_a_type_is_named_for_users() -> None:
    assert kind(Literal["front", "end"] | None) == "one of front, end or null"
    assert kind(Annotated[int, Field(ge=1)] | None) == "a whole number or null"
