"""What callers hand in, held to what functions declare: one sentence in place of a traceback from deep inside."""

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
    """Hold a function's arguments to the classes that its signature declares.

    What is checked are whole numbers, paths, tensors, models and other classes, and unions of these. Sequences, lone
    strings, literals, any module and the like are left to the function, which knows more of them.

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
            return function(*args, **kwargs)  # Python says best what is missing or too much
        for name, classes in kinds().items():
            if name in given and not _is(given[name], classes):
                what = " or ".join(dict.fromkeys(_named(each) for each in classes))
                raise VlpromptError(f"{function.__name__}: {name} must be {what}, not {brief(given[name])}")
        return function(*args, **kwargs)

    return call


def _classes(annotation: Any, function: Callable[..., Any]) -> tuple[type, ...]:
    """The classes that an annotation allows; none if it is of a kind that is not checked."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, inspect.unwrap(function).__globals__)
        except NameError:  # imported for type checkers alone
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
    """Whether a class is torch's of all modules or datasets, as which others come too; torch need not be imported."""
    return kind.__module__.startswith("torch.") and kind.__name__ in ("Dataset", "Module")


def _is(value: Any, classes: tuple[type, ...]) -> bool:
    if isinstance(value, bool) and bool not in classes:
        return False
    return isinstance(value, classes) or (int in classes and isinstance(value, Integral))


def _named(kind: type) -> str:
    return NAMED.get(kind.__name__, f"a {kind.__name__}")


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch's, which nothing is before torch is imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def brief(value: Any) -> str:
    """What a value is, in a few words: itself if it is short, else its type and shape."""
    if value is None or isinstance(value, (str, bytes, int, float)):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:39]}…"
    shape = getattr(value, "shape", None)
    kind = type(value).__name__
    return f"{kind} {tuple(shape)}" if isinstance(shape, tuple) else kind


def at_least(name: str, value: Any, least: int) -> int:
    """Return a whole number that is no less than ``least``, or raise a ``VlpromptError``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise VlpromptError(f"{name} must be a whole number, not {brief(value)}")
    if value < least:
        raise VlpromptError(f"{name} must be at least {least}, not {value}")
    return int(value)


def index_of(name: str, value: Any, length: int) -> int:
    """Return a place in a list of ``length``, which may count from its end, or raise a ``VlpromptError``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not -length <= int(value) < length:
        raise VlpromptError(f"{name} must be a position from 0 to {length - 1}, not {brief(value)}")
    return int(value)


def listed(values: Any, what: str) -> tuple[Any, ...]:
    """Return several values as a tuple; raises ``VlpromptError`` for a single one, a set or None."""
    if isinstance(values, (str, bytes, Mapping, set, frozenset)) or not isinstance(values, Iterable):
        raise VlpromptError(f"{what} must be a list, not {brief(values)}")
    return tuple(values)


def check_seed(seed: Any) -> int:
    """Return a seed if torch's generators take it."""
    if at_least("seed", seed, 0) >= 2**63:
        raise VlpromptError(f"seed must be below 2**63, not {brief(seed)}")
    return int(seed)


def is_template(text: Any) -> bool:
    """Whether a value is a text with ``{}`` once, where the class name goes."""
    return isinstance(text, str) and text.count("{}") == 1


def _with_one_place(text: str) -> str:
    if not is_template(text):
        raise ValueError("is a template without exactly one {}")
    return text


Template = Annotated[str, AfterValidator(_with_one_place)]  # for what is read from files


def check_templates(templates: Any) -> tuple[str, ...]:
    """Return templates as a tuple: texts with ``{}`` once, or raise a ``VlpromptError``."""
    found = (templates,) if isinstance(templates, str) else listed(templates, "templates")
    wrong = [each for each in found if not is_template(each)]
    if wrong:
        raise VlpromptError(f"a template must hold {{}} once, where the class name goes, and not {brief(wrong[0])}")
    if not found:
        raise VlpromptError("the list of templates is empty")
    return found
