"""The settings of a run: from ``configs/defaults.yaml``, then a recipe, then the user."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vlprompt.base.devices import DTYPES
from vlprompt.base.files import is_relative_inside
from vlprompt.base.settings import GRID, INCIDENTAL, LATER, RunConfig, TrainOptions
from vlprompt.base.settings_text import check_plain, show
from vlprompt.data.readable import ACTIONS
from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.learner.calibration import CALIBRATIONS
from vlprompt.learner.held_out import FIXED, OTHER_NAMES, SELECTIONS
from vlprompt.learner.registration import METHODS, method_of_file
from vlprompt.runs.loggers import parse_loggers
from vlprompt.training.recipes import Learning, Recipe, check_learning, fill, load_recipe
from vlprompt.training.shipped_recipes import CONFIGS, read_defaults
from vlprompt.training.shipped_recipes import list_recipes as list_recipes  # a name of version 0.1's vlprompt.recipes

NO_SHOTS = "none"  # shots= of a protocol without labels
MANY = ("templates", "targets", "format_spread", "pool_classes")  # a text or a list of texts
PLACES = (
    *("dataset", "data_root", "held_out", "unlabelled", "backbone", "pretrained", "checkpoint", "teacher", "text"),
    *("output", "name", "config"),
)
MAX_NAME = 200  # characters of a folder's name; file systems take 255 bytes


@dataclass(frozen=True)
class Resolved(Learning):
    """A run's complete settings: how its method learns, and everything else."""

    config: RunConfig

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits: a hash of all settings that affect the result.

        Settings that a later version added are left out at their default, so that earlier ids stay the same.
        """
        unused = {*INCIDENTAL, GRID} if self.config.selection == FIXED else {*INCIDENTAL}
        settings = {k: v for k, v in asdict(self.config).items() if k not in unused}
        hashed = {k: v for k, v in settings.items() if k not in LATER or v != LATER[k]}
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        c = self.config
        if c.name:
            return Path(c.output).expanduser() / c.name
        dataset = re.sub(r"[^\w.-]+", "-", c.dataset).strip("-.")[-MAX_NAME // 3 :].strip("-.")  # bytes of UTF-8
        shots = {"all": "all-images", NO_SHOTS: "no-labels"}.get(str(c.shots), f"{c.shots}shot")
        return Path(c.output).expanduser() / dataset / c.method / f"{c.protocol}-{shots}-seed{c.seed}-{self.id[:8]}"

    def to_yaml(self) -> str:
        """The settings as YAML that ``config=FILE`` takes."""
        from omegaconf import OmegaConf  # imported here, since it takes a tenth of a second

        # whoever starts a run from its own file must decide anew whether to resume it
        return OmegaConf.to_yaml(OmegaConf.create(asdict(self.config) | {"resume": False, "restart": False}))


def usual_protocol(method: str, default: str) -> str:
    """The protocol of a method if none is given: the default, unless it only has recipes for others."""
    protocols = [path.stem for path in (CONFIGS / method).glob("*.yaml")]
    if default in protocols or not protocols:
        return default
    return next(name for name in PROTOCOLS.order() if name in protocols)


def resolve(settings: Mapping[str, Any] | None = None) -> Resolved:
    """Merge defaults, recipe and ``settings``, and check every key and value.

    Raises:
        VlpromptError: an unknown key, method or protocol, with the nearest names; a value of the wrong kind or range.
    """
    given = {key: _plain(value) for key, value in (settings or {}).items()}
    if given.get("auto") is not None:
        raise VlpromptError("auto is set by method=auto: leave it out")
    for key, value in given.items():
        check_plain(key, value)
        if key in PLACES and isinstance(value, str) and not value.strip():
            raise VlpromptError(f"{key} is empty: say which, or leave it out")
    defaults = read_defaults()
    file = given.get("config")
    recipe = None if file is None else Recipe.read(Path(str(file)).expanduser(), str(file))
    chosen = {**defaults, **(recipe.values if recipe else {}), **given}
    method, protocol = str(chosen["method"]), str(chosen["protocol"])
    if recipe is None or "method" in given:
        METHODS.info(method)
    else:
        method_of_file(method, str(file))
    if "protocol" not in {**(recipe.values if recipe else {}), **given}:
        protocol = usual_protocol(method, protocol)
    PROTOCOLS.info(protocol)
    recipe = recipe or load_recipe(method, protocol)
    usual = {} if PROTOCOLS.get(protocol).shots is None else {"shots": PROTOCOLS.get(protocol).shots}
    config = fill(RunConfig, {**defaults, **usual, "method": method, "protocol": protocol}, recipe, given)
    if PROTOCOLS.get(protocol).labelled == "none" and "shots" not in given:
        config.shots = NO_SHOTS
    if given.get("restart") and "resume" not in given:
        config.resume = False  # config files of earlier versions may contain resume: true
    config.selection = OTHER_NAMES.get(config.selection, config.selection)
    check_values(config)
    return Resolved(config, recipe, frozenset(given))


def check_values(config: RunConfig) -> None:
    """Raise a ``VlpromptError`` for the first value that is invalid, or has no effect with this protocol."""
    parse_loggers(config.logger)
    labelled = PROTOCOLS.get(config.protocol).labelled
    if labelled == "none" and config.shots != NO_SHOTS:
        raise VlpromptError(f"shots={config.shots} is not used by protocol={config.protocol}, which uses no labels")
    pool = PROTOCOLS.get(config.protocol).pool
    if config.unlabelled is not None and pool == "none":
        raise VlpromptError(
            f"protocol={config.protocol} does not use unlabelled images: unlabelled={config.unlabelled} is for "
            "semi_supervised, transductive_zero_shot and unsupervised"
        )
    if config.unlabelled is not None and config.region is not None:
        raise VlpromptError(
            f"region={config.region} needs images with masks, and unlabelled={config.unlabelled} has none: leave "
            "one out"
        )
    if config.pool_classes is not None and pool == "none":
        raise VlpromptError(f"pool_classes is not used by protocol={config.protocol}, which has no pool")
    if config.class_split != LATER["class_split"] and pool != "unseen":
        raise VlpromptError(f"class_split={config.class_split} is used by protocol=transductive_zero_shot only")
    if not 0 <= config.class_split < 2**32:
        raise VlpromptError(f"class_split must be from 0 to {2**32 - 1:,}, not {config.class_split}")
    check_learning(config, "all" if labelled == "shots" else NO_SHOTS)
    if config.resume and config.restart:
        raise VlpromptError("resume continues a run, and restart starts it over: give one of them")
    for key in MANY:
        _check_texts(key, getattr(config, key))
    if config.name is not None and (not is_relative_inside(config.name) or len(config.name) > MAX_NAME):
        raise VlpromptError(
            f"name must be a folder in {config.output}, of at most {MAX_NAME} characters, not {show(config.name)}"
        )
    choices = {"precision": DTYPES, "selection": SELECTIONS, "on_unreadable": ACTIONS, "calibrate": CALIBRATIONS}
    for key, known in choices.items():
        if getattr(config, key) not in known:
            raise VlpromptError(f"unknown {key} '{getattr(config, key)}': {nearest(getattr(config, key), known)}")


NONE = re.compile(r"\bNone\b")  # which the shell and YAML call null


def describe_keys(resolved: Resolved) -> list[tuple[str, Any, str]]:
    """Return key, value and meaning of every setting, the method's own last."""
    meanings: dict[str, str] = {}
    for cls in reversed(type(resolved.config).__mro__):
        meanings |= documented(cls)
    training = [f.name for f in fields(TrainOptions)]
    running = [f.name for f in fields(RunConfig) if f.name not in training]
    keys = [*running, *training, *sorted(resolved.method_settings)]
    return [(key, getattr(resolved.config, key), NONE.sub("null", meanings.get(key, ""))) for key in keys]


def documented(cls: type) -> dict[str, str]:
    """Read the ``Attributes:`` section of a class's docstring."""
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    _, _, section = doc.partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {key: re.sub(r"\s+", " ", text).replace("``", "`") for keys, text in entries for key in keys.split(", ")}


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _check_texts(key: str, value: Any) -> None:
    """Raise a ``VlpromptError`` unless a value is None, a text or a list of texts."""
    texts = value if isinstance(value, (list, tuple)) else [value]
    if value is not None and not all(isinstance(text, str) for text in texts):
        raise VlpromptError(f"{key} must be a text or a list of texts, not {show(value)}")
