"""What a run needs before it trains: its data, the frozen model and an untrained learner, all checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from vlprompt.base.reporter import Reporter
from vlprompt.base.threads import threads_for
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import DatasetSplits
from vlprompt.evaluation.protocols import PROTOCOLS, Part, Plan, check_suits
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.held_out import make_selection
from vlprompt.learner.registration import method_facts
from vlprompt.runs.calibration import check_calibration
from vlprompt.runs.images import usable_parts
from vlprompt.runs.learners import check_names, make_learner, names_of_cards
from vlprompt.runs.parts import Shared, load_parts
from vlprompt.runs.preflight import check_run
from vlprompt.runs.settings import Resolved
from vlprompt.training.recipes import adapt_depths


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train.

    Attributes:
        resolved: its settings.
        plan: what it trains on, tests, and may choose hyper-parameters on.
        data: the images of each part of the plan, the training part after its few-shot draw.
        split: hash of the whole split that the training images were drawn from.
        clip: the frozen model.
        learner: not trained yet.
        make: makes another such learner.
        adapted: depths that are smaller than the recipe's, since the backbone has no more layers.
    """

    resolved: Resolved
    plan: Plan
    data: dict[Part, DatasetSplits]
    split: str
    clip: FrozenCLIP
    learner: PromptLearner
    make: Callable[[], PromptLearner]
    adapted: dict[str, int]

    @property
    def source(self) -> DatasetSplits:
        """The dataset that is trained on."""
        return self.data[self.plan.train]


def prepare(resolved: Resolved, shared: Shared, reporter: Reporter) -> Prepared:
    """Load what a run needs and check it, the cheap checks first.

    Args:
        resolved: the settings.
        shared: what earlier runs of this process have loaded.
        reporter: reports progress, and images that are left out.

    Raises:
        VlpromptError: the data, the backbone and the settings do not go together.
    """
    config = resolved.config
    facts = method_facts(config.method, resolved.method_settings)
    selection = make_selection(config.selection, config.method, facts)
    plan = PROTOCOLS.get(config.protocol).plan(config.dataset, config.targets, config.held_out)
    plan = replace(plan, selection=selection)
    data, split = load_parts(plan, config, shared)
    check_run(config, resolved.folder, plan, data, facts)
    check_calibration(config, plan, data, facts)
    check_suits(config.protocol, plan, data, config.method, facts)
    clip = shared.clip_for(config)
    data = usable_parts(data, plan, config, clip, reporter)
    adapted = adapt_depths(resolved, clip)
    make = partial(make_learner, resolved, clip, data[plan.train], adapted | names_of_cards(config, plan))
    learner = make()
    check_suits(config.protocol, plan, data, config.method, learner.facts)  # a saved learner below it may change them
    check_names(config, learner, data)
    return Prepared(resolved, plan, data, split, clip, learner, make, adapted)


def announce(run: Prepared, reporter: Reporter) -> None:
    """Report which recipe is used, and how it was adapted to the backbone."""
    resolved, clip = run.resolved, run.clip
    if resolved.recipe:
        origin = f" ({resolved.recipe.source})" if resolved.recipe.source else ""
        reporter.say(f"recipe {resolved.recipe.name}{origin}")
    else:
        reporter.say(f"no recipe for {resolved.config.method}: the general defaults are used")
    for key, value in run.adapted.items():
        usual = getattr(resolved.config, key)
        reporter.say(f"{key}={value} instead of the recipe's {usual}, since {clip.name} has no more layers")
    if resolved.config.threads is None and threads_for(clip.model) < torch.get_num_threads():
        reporter.say(f"using one thread: {clip.name} is too small to benefit from more (threads=N overrides this)")
