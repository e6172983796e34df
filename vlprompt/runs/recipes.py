"""What can be set, and from where: ``configs/defaults.yaml``, then a recipe, then what the user says."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import re
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlprompt.base.devices import DTYPES
from vlprompt.base.files import is_relative_inside
from vlprompt.base.parts import parse_part
from vlprompt.base.schema import assign, hint_of, kind, structured, to_object
from vlprompt.base.settings import GRID, INCIDENTAL, LATER, RunConfig, TrainOptions
from vlprompt.base.settings_text import check_plain, read_settings, show
from vlprompt.data.readable import ACTIONS
from vlprompt.data.transforms import TRAIN_KINDS
from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.learner.creation import check_descriptions, check_teacher
from vlprompt.learner.registration import METHODS
from vlprompt.learner.selection import FIXED, OTHER_NAMES, SELECTIONS
from vlprompt.runs.loggers import parse_loggers
from vlprompt.training.optimizers import OPTIMIZERS
from vlprompt.training.options import make_schedule

PACKAGE = Path(__file__).resolve().parents[1]
# inside the package when installed from a wheel, beside it in a checkout
CONFIGS = next((p for p in (PACKAGE / "configs", PACKAGE.parent / "configs") if p.is_dir()), PACKAGE / "configs")
NO_SHOTS = "none"  # of a protocol that takes no labels
PROVENANCE = ("source", "published")
Cases = dict[str, dict[Any, dict[str, Any]]]
LEAST = {
    "seed": 0,
    "epochs": 1,
    "steps": 1,
    "batch_size": 1,
    "weight_decay": 0,
    "warmup_epochs": 0,
    "warmup_lr": 0,
    "checkpoint_seconds": 0,
    "workers": 0,
    "limit": 1,
}
MOST = {
    "seed": 2**32 - 1,  # what NumPy and scikit-learn take
    "epochs": 10**6,
    "warmup_epochs": 10**6,
    "batch_size": 10**6,
    "workers": 1024,
}
MANY = ("templates", "targets", "format_spread")  # a text or a list of texts
PLACES = (
    *("dataset", "data_root", "held_out", "backbone", "pretrained", "checkpoint", "teacher"),
    *("output", "name", "config"),
)
MAX_NAME = 200  # characters of a folder's name; file systems take 255 bytes


@dataclass(frozen=True)
class Recipe:
    """Published hyper-parameters, and who published them.

    A file may say ``extends: method/protocol``: it then has that shipped recipe's values, cases and source, with its
    own in their place.

    Attributes:
        name: ``method/protocol``, or the path of a user's file.
        source: released code, paper, third party or ours, with the place; empty in a user's own file.
        published: the figure that the recipe belongs to, with its conditions.
        values: settings.
        by: settings for certain values of others, ``{"shots": {1: {"epochs": 50}}}``; a case may have its own ``by``.
    """

    name: str
    source: str = ""
    published: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    by: Cases = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, name: str, extending: tuple[str, ...] = ()) -> Recipe:
        """Read a YAML file, and what it extends; ``extending`` names the recipes that extend this one."""
        values = read_settings(path)
        if "extends" in values:
            base = _extended(values.pop("extends"), path, (*extending, name))
            values = _merged({"source": base.source, **base.values, "by": base.by}, values)
        provenance = {key: str(values.pop(key, "")) for key in PROVENANCE}
        by = values.pop("by", {})
        _check_cases(by, f"{path}: by")
        return cls(name, **provenance, by=by, values=values)


@dataclass(frozen=True)
class Resolved:
    """A run's complete settings.

    Attributes:
        config: a ``RunConfig`` that has the method's settings too.
        recipe: where the values came from that the user did not give; None if the method has no recipe.
        given: keys that the user gave.
    """

    config: RunConfig
    recipe: Recipe | None
    given: frozenset[str]

    @property
    def method_settings(self) -> dict[str, Any]:
        """The settings of the method alone, as ``create_learner`` takes them."""
        names = [f.name for f in fields(METHODS.get(self.config.method).Config)]
        return {key: value for key, value in asdict(self.config).items() if key in names}

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name all settings which bear on the result."""
        settings = asdict(self.config).items()
        unused = (GRID,) if self.config.selection == FIXED else ()
        telling = {k: v for k, v in settings if k not in (*INCIDENTAL, *unused) and not (k in LATER and v == LATER[k])}
        return hashlib.sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        c = self.config
        if c.name:
            return Path(c.output).expanduser() / c.name
        dataset = re.sub(r"[^\w.-]+", "-", c.dataset).strip("-.")[-MAX_NAME // 3 :].strip("-.")  # bytes of UTF-8
        shots = {"all": "all-images", NO_SHOTS: "no-labels"}.get(c.shots, f"{c.shots}shot")
        return Path(c.output).expanduser() / dataset / c.method / f"{c.protocol}-{shots}-seed{c.seed}-{self.id[:8]}"

    def to_yaml(self) -> str:
        """The settings as YAML that ``config=FILE`` takes."""
        return OmegaConf.to_yaml(OmegaConf.create(asdict(self.config)))


def list_recipes() -> list[str]:
    """Names ``method/protocol`` of the shipped recipes."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("*/*.yaml"))


def _extended(name: Any, path: Path, extending: tuple[str, ...]) -> Recipe:
    """Read the shipped recipe that a file extends."""
    if name not in list_recipes():
        raise VlpromptError(f"{path} extends the unknown recipe {show(name)}: {nearest(str(name), list_recipes())}")
    if name in extending:
        raise VlpromptError(f"{path} extends itself: {' extends '.join((*extending, name))}")
    return Recipe.read(CONFIGS / f"{name}.yaml", name, extending)


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """One recipe's values with another's in their place, cases of ``by`` key by key."""
    both = {key: _merged(base[key], own[key]) for key in base.keys() & own.keys() if _are_groups(base[key], own[key])}
    return {**base, **own, **both}


def _are_groups(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def load_recipe(method: str, protocol: str) -> Recipe | None:
    """Return the shipped recipe of a method, its base-to-new one where the protocol has none of its own, or None."""
    for stem in (protocol, "base_to_new"):
        path = CONFIGS / method / f"{stem}.yaml"
        if path.is_file():
            return Recipe.read(path, f"{method}/{stem}")
    return None


def usual_protocol(method: str, default: str) -> str:
    """The protocol of a method where nothing is said: the default, or the first that it has a recipe for instead."""
    own = [path.stem for path in (CONFIGS / method).glob("*.yaml")]
    return default if default in own or not own else next(name for name in PROTOCOLS.order() if name in own)


def config_class(method: str) -> type[RunConfig]:
    """Return ``RunConfig`` extended by the settings of a method."""
    return make_dataclass(f"{method}_config", [], bases=(RunConfig, METHODS.get(method).Config))


def resolve(settings: Mapping[str, Any] | None = None) -> Resolved:
    """Merge defaults, recipe and ``settings``, and check every key and value.

    Raises:
        VlpromptError: an unknown key, method or protocol, with the nearest names; a value of the wrong kind or range.
    """
    given = {key: _plain(value) for key, value in (settings or {}).items()}
    for key, value in given.items():
        check_plain(key, value)
        if key in PLACES and isinstance(value, str) and not value.strip():
            raise VlpromptError(f"{key} is empty: say which, or leave it out")
    defaults = read_settings(CONFIGS / "defaults.yaml")
    file = given.get("config")
    recipe = None if file is None else Recipe.read(Path(str(file)).expanduser(), str(file))
    chosen = {**defaults, **(recipe.values if recipe else {}), **given}
    method, protocol = str(chosen["method"]), str(chosen["protocol"])
    METHODS.info(method)
    if "protocol" not in {**(recipe.values if recipe else {}), **given}:
        protocol = usual_protocol(method, protocol)
    PROTOCOLS.info(protocol)
    recipe = recipe or load_recipe(method, protocol)

    schema = structured(config_class(method))
    _assign(schema, defaults, "defaults.yaml: ")
    schema.method, schema.protocol = method, protocol
    if recipe:
        _assign(schema, recipe.values, f"{recipe.name}: ")
    _assign(schema, given)
    if recipe:
        _assign_cases(schema, recipe.by, given, f"{recipe.name}: ")
    config = to_object(schema)
    if PROTOCOLS.get(protocol).labelled == "none" and "shots" not in given:
        config.shots = NO_SHOTS
    config.selection = OTHER_NAMES.get(config.selection, config.selection)
    check_values(config)
    return Resolved(config, recipe, frozenset(given))


def check_values(config: RunConfig) -> None:
    """Raise one sentence for the first value that is out of its range."""
    parse_loggers(config.logger)
    check_descriptions(config.method, config)
    check_teacher(config.method, config)
    for key, least in LEAST.items():
        value = getattr(config, key)
        if value is not None and not (math.isfinite(value) and value >= least):
            raise VlpromptError(f"{key} must be at least {least}, not {value}")
    for key, most in MOST.items():
        if getattr(config, key) > most:
            raise VlpromptError(f"{key} must be at most {most:,}, not {getattr(config, key):,}")
    if not (math.isfinite(config.lr) and config.lr > 0):
        raise VlpromptError(f"lr must be above 0, not {config.lr}")
    if not 0 <= config.momentum < 1:
        raise VlpromptError(f"momentum must be at least 0 and below 1, not {config.momentum}")
    if PROTOCOLS.get(config.protocol).labelled == "none" and config.shots != NO_SHOTS:
        raise VlpromptError(f"shots={config.shots} has no meaning in protocol={config.protocol}, which takes no labels")
    shots = "all" if PROTOCOLS.get(config.protocol).labelled == "shots" else NO_SHOTS
    for key, word in (("shots", shots), ("views", "fresh")):
        value = getattr(config, key)
        if value != word and (isinstance(value, str) or value < 1):
            raise VlpromptError(f"{key} must be a number of at least 1, or {word}, not {value!r}")
    for key in MANY:
        _check_texts(key, getattr(config, key))
    if config.name is not None and (not is_relative_inside(config.name) or len(config.name) > MAX_NAME):
        raise VlpromptError(
            f"name must be a folder in {config.output}, of at most {MAX_NAME} characters, not {show(config.name)}"
        )
    if config.clip_grad is not None and not config.clip_grad > 0:
        raise VlpromptError(f"clip_grad must be above 0, not {config.clip_grad}")
    make_schedule(config)
    parse_part(config.optimizer, OPTIMIZERS)
    for key, known in (
        ("precision", DTYPES),
        ("transform", TRAIN_KINDS),
        ("selection", SELECTIONS),
        ("on_unreadable", ACTIONS),
    ):
        if getattr(config, key) not in known:
            raise VlpromptError(f"unknown {key} '{getattr(config, key)}': {nearest(getattr(config, key), known)}")


def describe_keys(resolved: Resolved) -> list[tuple[str, Any, str]]:
    """Return key, value and meaning of all that can be set, the method's own keys last."""
    meanings: dict[str, str] = {}
    for cls in reversed(type(resolved.config).__mro__):
        meanings |= _documented(cls)
    training = [f.name for f in fields(TrainOptions)]
    running = [f.name for f in fields(RunConfig) if f.name not in training]
    keys = [*running, *training, *sorted(resolved.method_settings)]
    return [(key, getattr(resolved.config, key), meanings.get(key, "")) for key in keys]


def _documented(cls: type) -> dict[str, str]:
    """Read the ``Attributes:`` section of a class's docstring."""
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    _, _, section = doc.partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {key: re.sub(r"\s+", " ", text).replace("``", "`") for keys, text in entries for key in keys.split(", ")}


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _assign(schema: DictConfig, values: Mapping[str, Any], where: str = "") -> None:
    """Set values on a typed configuration; a key or value that does not fit is one sentence."""
    known = list(schema)  # `key in schema` says no to keys that have no value yet
    for key, value in values.items():
        if key not in known:
            raise VlpromptError(f"{where}unknown key '{key}' for method={schema.method}: {nearest(key, known)}")
        try:
            assign(schema, key, value)
        except OmegaConfBaseException:
            raise VlpromptError(f"{where}{key} must be {kind(hint_of(schema, key))}, not {show(value)}") from None


def _assign_cases(schema: DictConfig, cases: Cases, given: Mapping[str, Any], where: str) -> None:
    """Set what a recipe has for the present values of other settings, but for keys that the user gave."""
    for key, by_value in cases.items():
        if key not in list(schema):
            raise VlpromptError(f"{where}unknown key '{key}' below by: {nearest(key, list(schema))}")
        present = schema[key]
        matching = dict(by_value.get(present, {})) if isinstance(present, Hashable) else {}
        inner = matching.pop("by", {})
        _assign(schema, {k: v for k, v in matching.items() if k not in given}, where)
        _assign_cases(schema, inner, given, where)


def _check_cases(cases: Any, where: str) -> None:
    """Raise one sentence unless ``by`` has the form ``{setting: {value: {setting: value}}}``, at any depth."""
    by_values = list(cases.values()) if isinstance(cases, dict) else [cases]
    for by_value in by_values:
        for settings in by_value.values() if isinstance(by_value, dict) else [by_value]:
            if not (isinstance(cases, dict) and isinstance(by_value, dict) and isinstance(settings, dict)):
                raise VlpromptError(f"{where} must have the form {{shots: {{1: {{epochs: 50}}}}}}, not {show(cases)}")
            _check_cases(settings.get("by", {}), where)


def _check_texts(key: str, value: Any) -> None:
    """Raise one sentence unless a value is None, a text or a list of texts."""
    texts = value if isinstance(value, (list, tuple)) else [value]
    if value is not None and not all(isinstance(text, str) for text in texts):
        raise VlpromptError(f"{key} must be a text or a list of texts, not {show(value)}")
