"""``calibrate=`` and ``coverage=`` of a run: measured on validation images or by cross-fitting, never on its tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vlprompt.base.environment import Clock
from vlprompt.base.reporter import Reporter
from vlprompt.base.settings import RunConfig
from vlprompt.data import DatasetSplits
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.calibration import calibrate, refuse_facts
from vlprompt.evaluation.protocols import Part, Plan
from vlprompt.learner.calibration import NO_CALIBRATION, TEMPERATURE, say_calibration
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.facts import Facts
from vlprompt.runs.settings import Resolved
from vlprompt.training.cross_fitting import Make, folds, held_out_logits
from vlprompt.training.feed import ImageFeed
from vlprompt.training.feeding import make_feed
from vlprompt.training.trainer import Trainer


def asks_to_calibrate(config: RunConfig) -> bool:
    """Whether the settings ask for a temperature or a threshold, which are found on held-out images."""
    return config.calibrate != NO_CALIBRATION or config.coverage is not None


def check_calibration(config: RunConfig, plan: Plan, data: Mapping[Part, DatasetSplits], facts: Facts) -> None:
    """Raise a ``VlpromptError``, before any work, if the run asks for a calibration that it cannot have."""
    if not asks_to_calibrate(config):
        return
    setting = f"calibrate={config.calibrate}" if config.calibrate != NO_CALIBRATION else f"coverage={config.coverage:g}"
    if plan.labelled == "none":
        raise VlpromptError(f"{setting} needs labelled images, and protocol={config.protocol} has none")
    refuse_facts(setting, config.method, facts)
    source = held_apart(plan, data)
    if source.tasks:
        raise VlpromptError(
            f"{setting} needs a single set of classes, and {source.name} has several that are tested separately"
        )
    if not source.val:
        folds(source.train, config.seed)


def held_apart(plan: Plan, data: Mapping[Part, DatasetSplits]) -> DatasetSplits:
    """The dataset that is trained on, without its validation images if some of them are tested, as ImageNet's are."""
    source = data[plan.train]
    tested = {
        item.path for part in plan.tests.values() if part.dataset == plan.train.dataset for item in data[part].test
    }
    return replace(source, val=()) if any(item.path in tested for item in source.val) else source


def calibrate_run(
    learner: PromptLearner, source: DatasetSplits, resolved: Resolved, make: Make, reporter: Reporter, clock: Clock
) -> None:
    """Set ``learner.calibration``, if the settings ask for it.

    Args:
        learner: trained.
        source: what ``held_apart`` returned.
        resolved: the run's settings.
        make: makes untrained copies of the learner.
        reporter: reports the result.
        clock: times the trainings.
    """
    config = resolved.config
    if not asks_to_calibrate(config):
        return
    quiet = Reporter(quiet=True)

    def fit(other: PromptLearner, feed: ImageFeed) -> None:
        Trainer(config, {"seed": config.seed}, clock=clock).fit(other, feed)

    feed = make_feed(learner, source, resolved, quiet, clock)
    on, logits, labels = held_out_logits(learner, feed, make, fit, config.seed)
    learner.calibration = calibrate(
        logits, labels, on, temperature=config.calibrate == TEMPERATURE, coverage=config.coverage
    )
    reporter.say(say_calibration(learner.calibration))
