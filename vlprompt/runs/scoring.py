"""The tests of a run: scored when its learner is trained, and scored again later from its folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_registry.listed import in_memory, outlives_process
from vlprompt.base.layout import DESCRIBED, LEARNER, RESULT, SETTINGS
from vlprompt.base.reporter import Reporter
from vlprompt.base.settings import RunConfig
from vlprompt.base.threads import computing_with, threads_for
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import DatasetSplits
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.protocols import PROTOCOLS, Part, Plan, familiar
from vlprompt.evaluation.results import Result
from vlprompt.evaluation.scores import Evaluation
from vlprompt.evaluation.scoring import evaluate
from vlprompt.learner.contract import PromptLearner
from vlprompt.runs.folder import load_own_learner
from vlprompt.runs.images import usable_parts
from vlprompt.runs.parts import Shared, load_parts
from vlprompt.runs.result import fingerprints
from vlprompt.runs.settings import resolve
from vlprompt.saving.description import description_hash


def measure_all(
    learner: PromptLearner, plan: Plan, data: Mapping[Part, DatasetSplits], config: RunConfig, reporter: Reporter
) -> dict[str, Evaluation]:
    """Score the learner and zero-shot CLIP on each test of a plan, and return the evaluations by target."""
    options = {"spread": config.format_spread, "limit": config.limit, "workers": config.workers, "seed": config.seed}
    return {
        name: evaluate(
            learner,
            data[part],
            target=name,
            reporter=reporter,
            familiar=familiar(plan.train, part, data),
            **options,
        )
        for name, part in plan.tests.items()
    }


@dataclass(frozen=True)
class Reopened:
    """The data and the frozen model of a finished run, loaded again.

    Attributes:
        config: its settings.
        plan: what it trained on and tested.
        data: the images of each part of the plan, the training part after its few-shot draw.
        clip: the frozen model.
    """

    config: RunConfig
    plan: Plan
    data: Mapping[Part, DatasetSplits]
    clip: FrozenCLIP


def reopen(folder: Path, stored: Result, reporter: Reporter, **changes: Any) -> Reopened:
    """Load the data and the frozen model of a run from its folder.

    Args:
        folder: the run's folder.
        stored: its result.
        reporter: reports test images that have changed.
        changes: settings that may differ from the run's, such as ``device`` and ``data_root``.

    Raises:
        VlpromptError: the settings are not those of the result, or the data is missing.
    """
    config = resolve({"config": folder / SETTINGS, **changes}).config
    plan = PROTOCOLS.get(config.protocol).plan(config.dataset, config.targets, config.held_out)
    if list(plan.tests) != [row.target for row in stored.rows]:
        raise VlpromptError(
            f"{folder / RESULT} has other tests than {SETTINGS} beside it asks for: {', '.join(plan.tests)}"
        )
    if not outlives_process(config.dataset) and config.dataset not in in_memory:
        raise VlpromptError(
            f"{folder} was run on {config.dataset}, a dataset in the memory of a Python process: register it again "
            "and continue in Python, for example with vlprompt.evaluate_learner"
        )
    shared = Shared()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* training images")  # of uneven classes: the run has warned
        data, _ = load_parts(plan, config, shared)
    clip = shared.clip_for(config)
    data = usable_parts(data, plan, config, clip, reporter)
    for name, found in fingerprints(plan, data, config)["tests"].items():
        if stored.data.get("images", {}).get("tests", {}).get(name, found) != found:
            reporter.say(f"the test images of {name} are no longer those of the run")
    return Reopened(config, plan, data, clip)


def reevaluate(
    folder: Path, stored: Result, reporter: Reporter, opened: Reopened | None = None, **changes: Any
) -> list[Evaluation]:
    """Score a run's saved learner on the run's tests again, from its folder alone.

    Args:
        folder: the run's folder.
        stored: its result.
        reporter: shows progress.
        opened: its data, if that is loaded already.
        changes: settings that may differ from the run's, such as ``device`` and ``data_root``.

    Raises:
        VlpromptError: the learner is not the one of the result.
    """
    if stored.files.get(DESCRIBED) not in (None, description_hash(folder / LEARNER)):
        raise VlpromptError(f"{folder / DESCRIBED} is not what {RESULT} describes: it is another run's, or changed")
    opened = opened or reopen(folder, stored, reporter, **changes)
    learner = load_own_learner(folder, opened.clip)
    with computing_with(threads_for(opened.clip.model, opened.config.threads)):
        return list(measure_all(learner, opened.plan, opened.data, opened.config, reporter).values())
