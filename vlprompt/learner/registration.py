"""The registry of methods: their classes, facts and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vlprompt.base.registry import Registry
from vlprompt.base.schema import settings_of
from vlprompt.base.settings import RunConfig
from vlprompt.base.settings_text import check_plain
from vlprompt.errors import VlpromptError, nearest
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.facts import Facts

L = TypeVar("L", bound=PromptLearner)
METHODS: Registry[type[PromptLearner]] = Registry("method", shipped="methods")
# hooks of version 0.1 that would be passed over in silence, and what took their place
FORMER_HOOKS = {
    "new_classes": "facts_of",
    "cacheable_images": "facts_of",
    "outputs": "encode_text(self, v) and score",
    "published_names": "the table `published`",
    "training_state": "buffers",
}


def register(
    name: str, *, paper: str, like: type[PromptLearner] | None = None, **facts: Any
) -> Callable[[type[L]], type[L]]:
    """Register a method, as a class decorator.

    Args:
        name: the name by which ``create_learner(name, …)`` finds it.
        paper: arXiv id or citation.
        like: a registered method whose facts to start from.
        facts: fields of its ``Facts`` that differ from the defaults or from ``like``, such as ``trains`` (any of
            ``text``, ``vision`` and ``head``; empty for methods that are not trained). ``head`` is true by default for
            a class with a ``score`` of its own.

    Raises:
        VlpromptError: the name is taken, a fact is unknown, a setting has the name of a setting that every run has, the
            class overrides a method that no longer exists, its ``Config`` does not extend its parent's, or it overrides
            ``encode_images`` and does not say whether image features can be cached.
    """
    known = [f.name for f in dataclasses.fields(Facts)]
    for key in facts:
        if key not in known:
            raise VlpromptError(f"method '{name}' is registered with the unknown fact '{key}': {nearest(key, known)}")
    given: dict[str, Any] = {key: frozenset(each) if key == "trains" else each for key, each in facts.items()}
    registered = dataclasses.replace(Facts(paper) if like is None else like.registered, paper=paper, **given)
    taken = {f.name for f in dataclasses.fields(RunConfig)}

    def file(cls: type[L]) -> type[L]:
        _check_settings_class(name, cls)
        clash = next((f.name for f in dataclasses.fields(cls.Config) if f.name in taken), None)
        if clash:
            raise VlpromptError(f"method '{name}' has a setting '{clash}', which every run has: give it another name")
        for hook, instead in FORMER_HOOKS.items():
            if hook in vars(cls):
                raise VlpromptError(f"method '{name}' overrides {hook}, which is no longer called: use {instead}")
        if registered.cacheable_images and "cacheable_images" not in given and _owner(cls, "encode_images") is None:
            raise VlpromptError(
                f"method '{name}' has an encode_images of its own: register it with cacheable_images=False (facts_of "
                "may make it true for settings that leave the image tower alone)"
            )
        head = registered.head if like or "head" in given else _head_of(cls)
        cls.method, cls.registered = name, dataclasses.replace(registered, head=head)
        METHODS.register(name)(cls)
        return cls

    return file


def _check_settings_class(name: str, cls: type[PromptLearner]) -> None:
    """Refuse a ``Config`` without the settings that the methods of a parent class read."""
    for parent in cls.__mro__[1:]:
        settings = getattr(parent, "Config", object)
        if not issubclass(cls.Config, settings):
            raise VlpromptError(
                f"method '{name}' extends {parent.__name__}, so its Config must extend {parent.__name__}.Config"
            )


def _owner(cls: type[PromptLearner], hook: str) -> type[PromptLearner] | None:
    """The registered parent, or ``PromptLearner``, whose hook a class has; None if it is the class's own."""
    for parent in cls.__mro__[1:]:
        known = parent is PromptLearner or "method" in vars(parent)
        if known and issubclass(parent, PromptLearner) and getattr(parent, hook) is getattr(cls, hook):
            return parent
    return None


def _head_of(cls: type[PromptLearner]) -> bool:
    """Whether its logits are more than similarities, so that class features are not the whole classifier."""
    owner = _owner(cls, "score")
    return owner is None or (owner is not PromptLearner and owner.registered.head)


def list_methods(pattern: str = "*") -> list[str]:
    """Return the names of the registered methods that match a shell-style pattern."""
    return METHODS.names(pattern)


def method_of_file(name: str, where: str) -> type[PromptLearner]:
    """The method that a file names.

    Raises:
        VlpromptError: it is not registered, with the way to register one's own.
    """
    try:
        return METHODS.get(name)
    except VlpromptError as error:
        raise VlpromptError(
            f"{where}: {error} (a method of your own: import its module first, plugin=MODULE on the command line)"
        ) from error


def method_info(name: str) -> dict[str, Any]:
    """Return the summary, facts, settings and defaults of a method, as it is with its default settings."""
    entry = METHODS.info(name)
    defaults = entry.value.Config()
    facts = dataclasses.asdict(entry.value.facts_of(defaults))
    facts["trains"] = tuple(sorted(facts["trains"]))
    return {"name": name, "summary": entry.summary, **facts, "config": dataclasses.asdict(defaults)}


def method_facts(name: str, settings: Mapping[str, Any]) -> Facts:
    """Return the facts of a learner with these settings, before a backbone is loaded."""
    return METHODS.get(name).facts_with(make_config(name, settings))


def make_config(method: str, settings: Mapping[str, Any]) -> PromptLearner.Config:
    """Make a method's ``Config``; an unknown key or a value of the wrong type raises ``VlpromptError``."""
    for key, value in settings.items():
        check_plain(key, value)
    cls = METHODS.get(method).Config
    return cls(**settings_of(cls, settings, f"{method}: "))
