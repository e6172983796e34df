"""What callers hand in, held to what functions declare: one sentence in place of a traceback from deep inside."""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import torch
from pydantic import AfterValidator
from torch import Tensor, nn
from torch.utils.data import Dataset

from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from vlprompt.clip.frozen import FrozenCLIP
    from vlprompt.learner.facts import Facts

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
                raise VlpromptError(f"{function.__name__}: {name} must be {what}, not {told(given[name])}")
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
    duck_typed = {Any, object, Dataset, nn.Module, inspect.Parameter.empty}.intersection(classes) if plain else True
    return tuple(classes) if not duck_typed and set(classes) - left else ()


def _is(value: Any, classes: tuple[type, ...]) -> bool:
    if isinstance(value, bool) and bool not in classes:
        return False
    return isinstance(value, classes) or (int in classes and isinstance(value, Integral))


def _named(kind: type) -> str:
    return NAMED.get(kind.__name__, f"a {kind.__name__}")


def told(value: Any) -> str:
    """What a value is, in a few words: itself if it is short, else its type and shape."""
    if value is None or isinstance(value, (str, bytes, int, float)):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:39]}…"
    shape = getattr(value, "shape", None)
    kind = type(value).__name__
    return f"{kind} {tuple(shape)}" if isinstance(shape, tuple) else kind


def at_least(name: str, value: Any, least: int) -> int:
    """Return a whole number that is no less than ``least``, or raise one sentence."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise VlpromptError(f"{name} must be a whole number, not {told(value)}")
    if value < least:
        raise VlpromptError(f"{name} must be at least {least}, not {value}")
    return int(value)


def index_of(name: str, value: Any, length: int) -> int:
    """Return a place in a list of ``length``, which may count from its end, or raise one sentence."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not -length <= int(value) < length:
        raise VlpromptError(f"{name} must be a place from 0 to {length - 1}, not {told(value)}")
    return int(value)


def listed(values: Any, what: str) -> tuple[Any, ...]:
    """Return several values in their order, or raise one sentence for what has none: a single one, a set, None."""
    if isinstance(values, (str, bytes, Mapping, set, frozenset)) or not isinstance(values, Iterable):
        raise VlpromptError(f"{what} must be a list, not {told(values)}")
    return tuple(values)


def check_seed(seed: Any) -> int:
    """Return a seed if torch's generators take it."""
    if at_least("seed", seed, 0) >= 2**63:
        raise VlpromptError(f"seed must be below 2**63, not {told(seed)}")
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
    """Return templates as a tuple: texts with ``{}`` once, or raise one sentence."""
    found = (templates,) if isinstance(templates, str) else listed(templates, "templates")
    wrong = [each for each in found if not is_template(each)]
    if wrong:
        raise VlpromptError(f"a template must hold {{}} once, where the class name goes, and not {told(wrong[0])}")
    if not found:
        raise VlpromptError("the list of templates is empty")
    return found


# Tensors that a learner is asked about


def check_images(images: Any, size: int) -> Tensor:
    """Return images if they are (B, 3, S, S) as the backbone takes them; one sentence for what is not.

    Args:
        images: float numbers, on any device.
        size: S, the side of the backbone's images.
    """
    if not isinstance(images, Tensor):
        raise VlpromptError(
            f"images must be a tensor (B, 3, {size}, {size}), not {told(images)}: torch.stack what clip.preprocess "
            "makes of each, or give images as they are to predict_images"
        )
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
        one = ": write images[None] for a single one" if images.ndim == 3 else ", as clip.preprocess makes them"
        raise VlpromptError(f"images must be (B, 3, {size}, {size}), not {tuple(images.shape)}{one}")
    return _check_numbers(images, "images", "clip.preprocess makes such of bytes")


def check_features(features: Any, width: int) -> Tensor:
    """Return image features (B, D) as fp32; one sentence for what is none.

    Args:
        features: float numbers, on any device.
        width: D, the joint width of the backbone.
    """
    if not isinstance(features, Tensor):
        raise VlpromptError(f"image features must be a tensor (B, {width}), not {told(features)}")
    if features.ndim != 2 or features.shape[1] != width:
        raise VlpromptError(f"image features must be (B, {width}), not {tuple(features.shape)}")
    return _check_numbers(features, "image features", "the backbone gives such").float()


def _check_numbers(values: Tensor, what: str, hint: str) -> Tensor:
    """Refuse what is no dense float tensor, and outside of training and tracing what is not finite."""
    if not values.is_floating_point() or values.layout != torch.strided:
        raise VlpromptError(f"{what} must be dense float numbers, not {values.dtype} of {values.layout}: {hint}")
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]  # its own annotations forget it
    traced = torch.compiler.is_compiling() or tracing or type(values) is not Tensor
    if not (torch.is_grad_enabled() or traced) and not bool(torch.isfinite(values).all()):
        raise VlpromptError(f"{what} hold numbers that are not finite")
    return values


def as_batch(batch: Any, facts: Facts, clip: FrozenCLIP, features: bool) -> Mapping[str, Tensor]:
    """Return a batch, or images (B, 3, S, S) as one; one sentence for what is neither, or lacks the images.

    Args:
        batch: what was given.
        facts: of the learner.
        clip: its frozen model.
        features: whether features may stand in place of images.
    """
    if not isinstance(batch, Mapping):
        return {"image": check_images(batch, clip.image_size)}
    if features and batch.get("image_features") is not None:
        return {**batch, "image_features": check_features(batch["image_features"], clip.embed_dim)}
    if "image" in facts.inputs and "image" not in batch:
        need = "image or image_features" if features else "image"
        raise VlpromptError(f"a batch needs {need}, and this one has {', '.join(map(str, batch)) or 'nothing'}")
    return batch


def check_batch(batch: Any, n_classes: int, facts: Facts) -> dict[str, Tensor]:
    """Return a training batch with whole labels (B,) from 0 to C - 1, or raise one sentence.

    Args:
        batch: tensors by name.
        n_classes: C.
        facts: of the learner, which say whether labels are needed.
    """
    if not isinstance(batch, Mapping) or not all(isinstance(value, Tensor) for value in batch.values()):
        raise VlpromptError(f"a batch must be tensors by name, such as image and label, not {told(batch)}")
    if "label" not in batch:
        if facts.labels == "needed":
            raise VlpromptError(f"a batch to learn from needs label, and this one has {', '.join(batch) or 'nothing'}")
        return dict(batch)
    images = next((batch[key] for key in ("image_features", "image") if key in batch), batch["label"])
    return dict(batch) | {"label": check_labels(batch["label"], len(images), n_classes)}


def check_labels(label: Tensor, n_images: int, n_classes: int) -> Tensor:
    """Return labels (B,) as int64 if they are from 0 to C - 1, one an image, or raise one sentence."""
    if label.ndim != 1 or len(label) != n_images or label.is_floating_point() or label.is_complex():
        raise VlpromptError(
            f"labels must be whole numbers ({n_images},), one an image, not {label.dtype} {tuple(label.shape)}"
        )
    # labels on an accelerator came from a feature bank or through here: looking at them again would wait for it
    if label.device.type == "cpu" and len(label) and not 0 <= int(label.min()) <= int(label.max()) < n_classes:
        raise VlpromptError(f"labels must be from 0 to {n_classes - 1}, not {int(label.min())} to {int(label.max())}")
    return label.long()
