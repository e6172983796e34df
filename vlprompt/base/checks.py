"""Checks callers' arguments against declared types, so that errors are one sentence rather than a deep traceback."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Annotated, Any, ParamSpec, TypeVar

from pydantic import AfterValidator

from vlprompt.errors import VlpromptError

P = ParamSpec("P")
R = TypeVar("R")

NAMED = {
    "Tensor": "a tensor",
    "FrozenCLIP": "a frozen model, as load_clip gives it",
    "PromptLearner": "a learner, as create_learner or load_learner gives it",
    "DatasetSplits": "splits of a dataset, as load_split or splits_from_pairs gives them",
    "int": "a whole number",
    "str": "a text",
    "PathLike": "a path",
    "NoneType": "None",
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check a function's arguments against the classes in its signature, as a decorator.

    Whole numbers, paths, tensors, models and other classes are checked, and unions of these. Sequences, plain strings,
    literals, modules of any class and the like are left to the function, which knows more about them.

    >>> @checked
    ... def double(number: int) -> int:
    ...     return 2 * number
    >>> double("2")
    Traceback (most recent call last):
    vlprompt.errors.VlpromptError: double: number must be a whole number, not '2'
    """
    signature = inspect.signature(function)

    @functools.cache
    def kinds() -> dict[str, tuple[type, ...]]:
        found = {name: _classes(p.annotation, function) for name, p in signature.parameters.items()}
        return {name: classes for name, classes in found.items() if classes}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python's own message says what is missing or unexpected
        for name, classes in kinds().items():
            if name in given and not _is(given[name], classes):
                what = " or ".join(dict.fromkeys(_named(each) for each in classes))
                raise VlpromptError(f"{function.__name__}: {name} must be {what}, not {brief(given[name])}")
        return function(*args, **kwargs)

    return call


def _classes(annotation: Any, function: Callable[..., Any]) -> tuple[type, ...]:
    """The classes that an annotation allows; empty if annotations of this kind are not checked."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, inspect.unwrap(function).__globals__)
        except NameError:  # imported for type checkers only
            return ()
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    classes = typing.get_args(annotation) if union else (annotation,)
    classes = tuple(os.PathLike if typing.get_origin(each) is os.PathLike else each for each in classes)
    plain = all(isinstance(each, type) and typing.get_origin(each) is None for each in classes)
    left = {bool, float, types.NoneType, *([] if union else [str])}
    known = {Any, object, inspect.Parameter.empty}
    duck_typed = any(each in known or _is_any_of_torch(each) for each in classes) if plain else True
    return tuple(classes) if not duck_typed and set(classes) - left else ()


def _is_any_of_torch(kind: type) -> bool:
    """Whether a class is torch's ``Module`` or ``Dataset``, for which other objects are accepted too."""
    return kind.__module__.startswith("torch.") and kind.__name__ in ("Dataset", "Module")


def _is(value: Any, classes: tuple[type, ...]) -> bool:
    if isinstance(value, bool) and bool not in classes:
        return False
    return isinstance(value, classes) or (int in classes and isinstance(value, Integral))


def _named(kind: type) -> str:
    return NAMED.get(kind.__name__, f"a {kind.__name__}")


def is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def brief(value: Any) -> str:
    """A short description of a value for messages: its ``repr`` if it is plain, else its type and shape."""
    if value is None or isinstance(value, (str, bytes, int, float)):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:39]}…"
    shape = getattr(value, "shape", None)
    kind = type(value).__name__
    return f"{kind} {tuple(shape)}" if isinstance(shape, tuple) else kind


def at_least(name: str, value: Any, least: int) -> int:
    """Return ``value`` as an int if it is a whole number of at least ``least``; else raise ``VlpromptError``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise VlpromptError(f"{name} must be a whole number, not {brief(value)}")
    if value < least:
        raise VlpromptError(f"{name} must be at least {least}, not {value}")
    return int(value)


def index_of(name: str, value: Any, length: int) -> int:
    """Return an index into a list of ``length``, possibly negative, as an int; else raise ``VlpromptError``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not -length <= int(value) < length:
        raise VlpromptError(f"{name} must be a position from 0 to {length - 1}, not {brief(value)}")
    return int(value)


def listed(values: Any, what: str) -> tuple[Any, ...]:
    """Return an iterable's values as a tuple; raises ``VlpromptError`` for a text, a mapping, a set or None."""
    if isinstance(values, (str, bytes, Mapping, set, frozenset)) or not isinstance(values, Iterable):
        raise VlpromptError(f"{what} must be a list, not {brief(values)}")
    return tuple(values)


def check_seed(seed: Any) -> int:
    """Return a seed as an int; raises ``VlpromptError`` unless it is from 0 to 2**63 - 1."""
    if at_least("seed", seed, 0) >= 2**63:
        raise VlpromptError(f"seed must be below 2**63, not {brief(seed)}")
    return int(seed)


def is_template(text: Any) -> bool:
    """Whether a value is a text with exactly one ``{}``, where the class name is inserted."""
    return isinstance(text, str) and text.count("{}") == 1


def _with_one_place(text: str) -> str:
    if not is_template(text):
        raise ValueError("is a template without exactly one {}")
    return text


Template = Annotated[str, AfterValidator(_with_one_place)]  # for values from files


def check_templates(templates: Any) -> tuple[str, ...]:
    """Return one template or several as a tuple; raises ``VlpromptError`` unless each has exactly one ``{}``."""
    found = (templates,) if isinstance(templates, str) else listed(templates, "templates")
    wrong = [each for each in found if not is_template(each)]
    if wrong:
        raise VlpromptError(f"a template must hold {{}} once, where the class name goes, and not {brief(wrong[0])}")
    if not found:
        raise VlpromptError("the list of templates is empty")
    return found
