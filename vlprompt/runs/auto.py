"""method=auto: from the settings of a run to those of the same run with a chosen method."""

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

PROTOCOL = "few_shot"  # in it, all classes that are tested have training images
STAND_IN = "zero_shot"  # it has only the settings that every run has
OWN = [f.name for f in fields(ChoiceOptions)]
COMMON = [f.name for f in fields(RunConfig) if f.name != "auto"]


@dataclass(frozen=True)
class Automatic:
    """Checked settings of method=auto.

    Attributes:
        common: the settings that every run has, as the user gave them.
        options: settings of the choice.
        requested: the run with ``method=auto``; the run with the chosen method has the same folder.
    """

    common: dict[str, Any]
    options: ChoiceOptions
    requested: Resolved


def resolve_auto(settings: Mapping[str, Any]) -> Automatic:
    """Check the settings of a run whose method is to be chosen.

    Raises:
        VlpromptError: a setting is unknown or invalid, or cannot be combined with method=auto.
    """
    for key in settings:
        if key not in OWN and key not in COMMON:
            raise VlpromptError(
                f"method={AUTO} has no setting '{key}' ({nearest(key, [*COMMON, *OWN])}); a method's own goes to a "
                "candidate, as in candidates=[zero_shot,coop(n_ctx=4)]"
            )
    options = choice_options({key: value for key, value in settings.items() if key in OWN})
    common = {key: value for key, value in settings.items() if key in COMMON and key != "method"}
    for key in ("config", "unlabelled", "pool_classes"):
        if common.get(key) is not None:
            raise VlpromptError(f"{key} is not used by method={AUTO}, which chooses among methods: leave it out")
    if common.setdefault("protocol", PROTOCOL) != PROTOCOL:
        raise VlpromptError(
            f"method={AUTO} chooses on images of all classes that are tested, so its protocol is {PROTOCOL}, not "
            f"{common['protocol']}"
        )
    selection = common.get("selection", FIXED)
    if OTHER_NAMES.get(selection, selection) != FIXED:
        raise VlpromptError(f"method={AUTO} chooses on training images alone, so selection={selection} is not for it")
    common.setdefault("shots", "all")
    stand_in = resolve({**common, "method": STAND_IN})
    config = copy.copy(stand_in.config)
    config.method, config.auto = AUTO, json.dumps(asdict(options))
    return Automatic(common, options, Resolved(config, None, stand_in.user_keys))


def choose_for(auto: Automatic, shared: Shared) -> tuple[Resolved, Choice]:
    """Choose the method of a run; a run that is resumed keeps the one that was chosen before.

    Args:
        auto: the settings.
        shared: what earlier runs of this process have loaded.

    Returns:
        The settings of the run with the chosen method, and the choice.
    """
    config, chosen_before = auto.requested.config, auto.requested.folder / CHOICE
    reporter = Reporter(config.quiet)
    if config.resume and chosen_before.exists():
        choice = Choice.read(chosen_before)
    else:
        choice = _choose(auto, shared, reporter)
    resolved = _resolved(auto, choice.method, choice.settings)
    name = auto.requested.folder.relative_to(Path(config.output).expanduser())
    resolved.config.name, resolved.config.auto = name.as_posix(), str(auto.options.budget)
    return resolved, choice


def _resolved(auto: Automatic, method: str, settings: Mapping[str, Any]) -> Resolved:
    """The settings of a run with a candidate; those that the user gave for every run override the candidate's."""
    return resolve({**settings, **auto.common, "method": method})


def _choose(auto: Automatic, shared: Shared, reporter: Reporter) -> Choice:
    """Load the training images and cross-validate the candidates on them."""
    config, folder = auto.requested.config, auto.requested.folder
    check_place(folder)
    refuse_if_in_use(folder)
    refuse_undecided(folder, config.resume, config.restart)
    plan = PROTOCOLS.get(PROTOCOL).plan(config.dataset, config.targets, config.held_out)
    data, _ = load_parts(plan, config, shared)
    clip = shared.clip_for(config)
    data = usable_parts({plan.train: data[plan.train]}, plan, config, clip, reporter)
    source = data[plan.train]
    names = names_of_cards(config, plan)
    quiet = Reporter(quiet=True)
    candidates_on = Source(
        source.train,
        source.class_names,
        learning=lambda method, settings: _resolved(auto, method, settings),
        learner=lambda learning: make_learner(learning, clip, source, adapt_depths(learning, clip) | names),
        feed=lambda learner, learning: make_feed(learner, source, learning, quiet),
    )
    with computing_with(threads_for(clip.model, config.threads)):
        return choose(candidates_on, auto.options, config.seed, reporter)


def describe_auto() -> list[tuple[str, Any, str]]:
    """Key, value and meaning of every setting of method=auto, its own settings last."""
    auto = resolve_auto({"method": AUTO})
    keys = [each for each in describe_keys(resolve({**auto.common, "method": STAND_IN})) if each[0] in COMMON]
    meanings, values = documented(ChoiceOptions), asdict(auto.options)
    return [(key, AUTO if key == "method" else value, meaning) for key, value, meaning in keys] + [
        (key, values[key], meanings[key]) for key in OWN
    ]
