"""A method's settings and training options: defaults, recipes, and what the user gives instead."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from vlprompt.base.parts import parse_part
from vlprompt.base.schema import settings_of
from vlprompt.base.settings import LearnOptions, RunConfig
from vlprompt.base.settings_text import check_plain, read_settings, show
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data.transforms import TRAIN_KINDS
from vlprompt.errors import VlpromptError, nearest
from vlprompt.learner.aggregation import AGGREGATORS
from vlprompt.learner.constraints import make_constraint
from vlprompt.learner.contexts import parse_context
from vlprompt.learner.creation import check_descriptions, check_teacher, check_training
from vlprompt.learner.editing import parse_edits
from vlprompt.learner.gradients import GRADIENT_RULES
from vlprompt.learner.objectives import parse_objectives
from vlprompt.learner.registration import METHODS, method_facts
from vlprompt.training.optimizers import OPTIMIZERS
from vlprompt.training.options import make_schedule
from vlprompt.training.shipped_recipes import CONFIGS, list_recipes, read_defaults

PROVENANCE = ("source", "published")
RUN_ALONE = {f.name for f in fields(RunConfig)} - {f.name for f in fields(LearnOptions)}
Cases = dict[str, dict[Any, dict[str, Any]]]
Options = TypeVar("Options", bound=LearnOptions)


@dataclass(frozen=True)
class Recipe:
    """Published hyper-parameters and their origin.

    A file with ``extends: method/protocol`` starts from that shipped recipe's values, cases and source, and replaces
    some of them.

    Attributes:
        name: ``method/protocol``, or the path of a user's file.
        source: released code, paper, third party or ours, with details; empty in a user's own file.
        published: the published figure that belongs to the recipe, with its conditions.
        values: settings.
        by: settings that depend on others, as in ``{"shots": {1: {"epochs": 50}}}``; a case may have its own ``by``.
            Lists are distinguished only as ``some`` or ``none``. Parts such as ``adamw(eps=1e-4)`` are matched as a
            whole, or else by name.
    """

    name: str
    source: str = ""
    published: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    by: Cases = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, name: str, extending: tuple[str, ...] = ()) -> Recipe:
        """Read a YAML file and the recipe it extends; ``extending`` are the names of recipes that extend this one."""
        values = read_settings(path, shipped=path.is_relative_to(CONFIGS))
        if "extends" in values:
            base = _extended(values.pop("extends"), path, (*extending, name))
            values = _merged({"source": base.source, **base.values, "by": base.by}, values)
        provenance = {key: str(values.pop(key, "")) for key in PROVENANCE}
        by = values.pop("by", {})
        check_cases(by, f"{path}: by")
        return cls(name, **provenance, by=by, values=values)


def load_recipe(method: str, protocol: str) -> Recipe | None:
    """Return a method's shipped recipe for a protocol, or else for base-to-new; None if there is neither."""
    for stem in (protocol, "base_to_new"):
        path = CONFIGS / method / f"{stem}.yaml"
        if path.is_file():
            return deepcopy(_shipped(path, f"{method}/{stem}", path.stat().st_mtime_ns))
    return None


@lru_cache(maxsize=256)
def _shipped(path: Path, name: str, changed: int) -> Recipe:
    """Read a shipped recipe, once for all runs of a sweep; ``changed`` is the file's modification time."""
    return Recipe.read(path, name)


@dataclass(frozen=True)
class Learning:
    """How a method learns: complete settings, and where they come from.

    Attributes:
        config: training options and the method's settings.
        recipe: source of the values that the user did not give; None if the method has no recipe.
        user_keys: keys of the settings that the user gave.
    """

    config: LearnOptions
    recipe: Recipe | None
    user_keys: frozenset[str]

    @property
    def method_settings(self) -> dict[str, Any]:
        """The method's own settings, as ``create_learner`` takes them."""
        names = [f.name for f in fields(METHODS.get(self.config.method).Config)]
        return {key: value for key, value in asdict(self.config).items() if key in names}


def resolve_learning(
    method: str, settings: Mapping[str, Any], *, protocol: str = "few_shot", **conditions: Any
) -> Learning:
    """Return how a method learns from given images, without a named dataset, a backbone's name or a run's folder.

    Args:
        method: one of ``list_methods()``.
        settings: fields of ``LearnOptions`` and of the method's ``Config``, which replace the recipe's.
        protocol: protocol whose recipe is used.
        conditions: other settings that a recipe's cases may depend on, ``backbone`` and ``dataset``.

    Raises:
        VlpromptError: a key or the method is unknown, or a value has the wrong type or range.
    """
    METHODS.info(method)
    for key, value in settings.items():
        check_plain(key, value)
    recipe = load_recipe(method, protocol)
    if recipe:  # without settings that only a run has, such as its dataset
        values = {key: value for key, value in recipe.values.items() if key not in RUN_ALONE}
        recipe = replace(recipe, values=values)
    known = {f.name for f in fields(LearnOptions)}
    defaults = {key: value for key, value in read_defaults().items() if key in known} | {"method": method}
    conditions = {"backbone": None, "dataset": None, "selection": None} | conditions
    config = fill(LearnOptions, defaults, recipe, settings, conditions)
    check_learning(config)
    return Learning(config, recipe, frozenset(settings))


def fill(
    options: type[Options],
    defaults: Mapping[str, Any],
    recipe: Recipe | None,
    given: Mapping[str, Any],
    conditions: Mapping[str, Any] | None = None,
) -> Options:
    """Return options with the method's settings, from defaults, a recipe, and what the user gives, in this order.

    Args:
        options: class of the options, to which the fields of the method's ``Config`` are added.
        defaults: default values, including ``method``.
        recipe: its values, and its cases for the resulting settings.
        given: values that the user gives.
        conditions: other settings that a recipe's cases may depend on.
    """
    plain: type = options  # mypy takes classes of unhashable objects for unhashable
    made: type[Options] = _with_settings_of(plain, METHODS.get(str(defaults["method"])).Config)
    config: Options = made(**settings_of(made, defaults, "defaults.yaml: "))
    vars(config).update(_validated(config, recipe.values, f"{recipe.name}: ") if recipe else {})
    vars(config).update(_validated(config, given))
    if recipe:
        _set_cases(config, recipe.by, given, conditions or {}, f"{recipe.name}: ")
    return config


@lru_cache(maxsize=256)
def _with_settings_of(options: type, settings: type) -> type:
    """A dataclass with the fields of both classes."""
    return make_dataclass(f"{settings.__module__.rpartition('.')[2]}_config", [], bases=(options, settings))


def check_learning(config: LearnOptions, unnumbered: str = "all") -> None:
    """Raise a ``VlpromptError`` for the first value that is unknown, or not possible with this method.

    Args:
        config: training options and the method's settings.
        unnumbered: text that ``shots`` may be instead of a number.
    """
    settings: Any = config  # the method's settings are not in the type
    parse_objectives(settings.objective)
    if settings.gradient_rule is not None:
        parse_part(settings.gradient_rule, GRADIENT_RULES)
    if settings.aggregator is not None:
        parse_part(settings.aggregator, AGGREGATORS)
    parse_context(settings.context)
    make_constraint(settings.after_step)
    parse_edits(settings.edits)
    check_training(config.method, config)
    check_descriptions(config.method, config)
    check_teacher(config.method, config)
    lack = METHODS.get(config.method).lacks(config)
    if lack:
        raise VlpromptError(f"method={config.method} {lack}")
    for key, word in (("shots", unnumbered), ("views", "fresh")):
        value = getattr(config, key)
        if value != word and (isinstance(value, str) or value < 1):
            raise VlpromptError(f"{key} must be a number of at least 1, or {word}, not {value!r}")
    make_schedule(config)
    parse_part(config.optimizer, OPTIMIZERS)
    if config.transform not in TRAIN_KINDS:
        raise VlpromptError(f"unknown transform '{config.transform}': {nearest(config.transform, TRAIN_KINDS)}")


def adapt_depths(learning: Learning, clip: FrozenCLIP) -> dict[str, int]:
    """Return a recipe's depths that exceed the backbone's number of layers, reduced to it.

    Depths that the user gave are not reduced, so that they cause an error.
    """
    return fitting_depths(learning.config.method, learning.method_settings, learning.user_keys, clip)


def fitting_depths(method: str, settings: Mapping[str, Any], given: Iterable[str], clip: FrozenCLIP) -> dict[str, int]:
    """Return the depths in a method's settings, except given ones, that exceed the backbone's, reduced to it."""
    layers = {"text": clip.text.layers, "vision": clip.visual.layers}
    adapted = {}
    trains = method_facts(method, settings).trains
    for key, towers in (
        ("depth", ("text",) if "vision_depth" in settings else trains),
        ("vision_depth", ("vision",)),
    ):
        most = min((layers[tower] for tower in towers if tower in layers), default=0)
        # towers without layers take no prompts, for which the learner has a better message
        if key in settings and key not in given and 0 < most < settings[key]:
            adapted[key] = most
    return adapted


def _extended(name: Any, path: Path, extending: tuple[str, ...]) -> Recipe:
    """Read the shipped recipe that a file extends, or raise ``VlpromptError`` if it is unknown or extends itself."""
    if name not in list_recipes():
        raise VlpromptError(f"{path} extends the unknown recipe {show(name)}: {nearest(str(name), list_recipes())}")
    if name in extending:
        raise VlpromptError(f"{path} extends itself: {' extends '.join((*extending, name))}")
    return Recipe.read(CONFIGS / f"{name}.yaml", name, extending)


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values updated by another's; groups such as ``by`` are merged key by key."""
    both = {key: _merged(base[key], own[key]) for key in base.keys() & own.keys() if _are_groups(base[key], own[key])}
    return {**base, **own, **both}


def _are_groups(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _validated(config: LearnOptions, values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Validate settings against the fields of a configuration; raises ``VlpromptError``."""
    return settings_of(type(config), values, where, f" for method={config.method}")


def _set_cases(
    config: LearnOptions, cases: Cases, given: Mapping[str, Any], conditions: Mapping[str, Any], where: str
) -> None:
    """Apply a recipe's cases for the present values of other settings, except to keys that the user gave."""
    for key, by_value in cases.items():
        known = {**vars(config), **conditions}
        if key not in known:
            raise VlpromptError(f"{where}unknown key '{key}' below by: {nearest(key, known)}")
        value = ("some" if known[key] else "none") if isinstance(known[key], list) else known[key]
        if isinstance(value, str) and value not in by_value:
            value = value.partition("(")[0]
        matching = dict(by_value.get(value, {})) if isinstance(value, Hashable) else {}
        inner = matching.pop("by", {})
        vars(config).update(_validated(config, {k: v for k, v in matching.items() if k not in given}, where))
        _set_cases(config, inner, given, conditions, where)


def check_cases(cases: Any, where: str) -> None:
    """Raise a ``VlpromptError`` unless ``by`` has the form ``{setting: {value: {setting: value}}}``, at any depth."""
    by_values = list(cases.values()) if isinstance(cases, dict) else [cases]
    for by_value in by_values:
        for settings in by_value.values() if isinstance(by_value, dict) else [by_value]:
            if not (isinstance(cases, dict) and isinstance(by_value, dict) and isinstance(settings, dict)):
                raise VlpromptError(f"{where} must have the form {{shots: {{1: {{epochs: 50}}}}}}, not {show(cases)}")
            check_cases(settings.get("by", {}), where)
