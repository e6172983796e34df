"""A run whose method is chosen: method=auto, from settings to those of the run that it becomes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vlprompt.base.layout import CHOICE
from vlprompt.base.reporter import Reporter
from vlprompt.base.settings import AUTO, ChoiceOptions, RunConfig
from vlprompt.base.threads import computing_with, threads_for
from vlprompt.choosing.choice import Choice
from vlprompt.choosing.options import choice_options
from vlprompt.choosing.search import Source, choose
from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.learner.held_out import FIXED, OTHER_NAMES
from vlprompt.runs.folder import refuse_if_in_use, refuse_undecided
from vlprompt.runs.images import usable_parts
from vlprompt.runs.learners import make_learner, names_of_cards
from vlprompt.runs.parts import Shared, load_parts
from vlprompt.runs.preflight import check_place
from vlprompt.runs.settings import Resolved, describe_keys, documented, resolve
from vlprompt.training.feeding import make_feed
from vlprompt.training.recipes import adapt_depths

PROTOCOL = "few_shot"  # the one in which all classes that are tested have training images
STAND_IN = "zero_shot"  # whose settings are those that every run has
OWN = [f.name for f in fields(ChoiceOptions)]
COMMON = [f.name for f in fields(RunConfig) if f.name != "auto"]


@dataclass(frozen=True)
class Automatic:
    """Settings of method=auto, read.

    Attributes:
        given: those that any run takes, as they were given.
        options: of the choice.
        asked: the run as it was asked for, whose method is ``auto``; its folder is that of the run that it becomes.
    """

    given: dict[str, Any]
    options: ChoiceOptions
    asked: Resolved


def resolve_auto(settings: Mapping[str, Any]) -> Automatic:
    """Read the settings of a run whose method is to be chosen.

    Raises:
        VlpromptError: a setting is unknown or of the wrong kind, or has no meaning where a method is chosen.
    """
    for key in settings:
        if key not in OWN and key not in COMMON:
            raise VlpromptError(
                f"method={AUTO} has no setting '{key}' ({nearest(key, [*COMMON, *OWN])}); a method's own goes to a "
                "candidate, as in candidates=[zero_shot,coop(n_ctx=4)]"
            )
    options = choice_options({key: value for key, value in settings.items() if key in OWN})
    given = {key: value for key, value in settings.items() if key in COMMON and key != "method"}
    for key in ("config", "unlabelled", "pool_classes"):
        if given.get(key) is not None:
            raise VlpromptError(f"{key} is not used by method={AUTO}, which chooses among methods: leave it out")
    if given.setdefault("protocol", PROTOCOL) != PROTOCOL:
        raise VlpromptError(
            f"method={AUTO} chooses on images of all classes that are tested, so its protocol is {PROTOCOL}, not "
            f"{given['protocol']}"
        )
    selection = given.get("selection", FIXED)
    if OTHER_NAMES.get(selection, selection) != FIXED:
        raise VlpromptError(f"method={AUTO} chooses on training images alone, so selection={selection} is not for it")
    given.setdefault("shots", "all")
    asked = resolve({**given, "method": STAND_IN})
    config = copy.copy(asked.config)
    config.method, config.auto = AUTO, json.dumps(asdict(options))
    return Automatic(given, options, Resolved(config, None, asked.given))


def choose_for(auto: Automatic, shared: Shared) -> tuple[Resolved, Choice]:
    """Choose the method of a run, or take what an earlier start of it chose where it is resumed.

    Returns:
        The settings of the run that it becomes, and the choice.
    """
    config, kept = auto.asked.config, auto.asked.folder / CHOICE
    reporter = Reporter(config.quiet)
    if config.resume and kept.exists():
        choice = Choice.read(kept)
    else:
        choice = _choose(auto, shared, reporter)
    resolved = _resolved(auto, choice.method, choice.settings)
    place = auto.asked.folder.relative_to(Path(config.output).expanduser())
    resolved.config.name, resolved.config.auto = place.as_posix(), str(auto.options.budget)
    return resolved, choice


def _resolved(auto: Automatic, method: str, settings: Mapping[str, Any]) -> Resolved:
    """A candidate's settings as a run's; what the user gave for all stands before what the candidate has."""
    return resolve({**settings, **auto.given, "method": method})


def _choose(auto: Automatic, shared: Shared, reporter: Reporter) -> Choice:
    config = auto.asked.config
    check_place(auto.asked.folder)
    refuse_if_in_use(auto.asked.folder)
    refuse_undecided(auto.asked.folder, config.resume, config.restart)
    plan = PROTOCOLS.get(PROTOCOL).plan(config.dataset, config.targets, config.held_out)
    data, _ = load_parts(plan, config, shared)
    clip = shared.clip_for(config)
    data = usable_parts({plan.train: data[plan.train]}, plan, config, clip, reporter)
    source = data[plan.train]
    names = names_of_cards(config, plan)
    quiet = Reporter(quiet=True)
    found = Source(
        source.train,
        source.class_names,
        learning=lambda method, settings: _resolved(auto, method, settings),
        learner=lambda learning: make_learner(learning, clip, source, adapt_depths(learning, clip) | names),
        feed=lambda learner, learning: make_feed(learner, source, learning, quiet),
    )
    with computing_with(threads_for(clip.model, config.threads)):
        return choose(found, auto.options, config.seed, reporter)


def describe_auto() -> list[tuple[str, Any, str]]:
    """Key, value and meaning of all that method=auto can be told, its own keys last."""
    auto = resolve_auto({"method": AUTO})
    keys = [each for each in describe_keys(resolve({**auto.given, "method": STAND_IN})) if each[0] in COMMON]
    meanings, values = documented(ChoiceOptions), asdict(auto.options)
    return [(key, AUTO if key == "method" else value, told) for key, value, told in keys] + [
        (key, values[key], meanings[key]) for key in OWN
    ]
