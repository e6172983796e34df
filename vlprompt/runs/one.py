"""One run from settings to result: data, backbone, learner, training, tests."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datasets_registry.catalog import register_dataset
from vlprompt.base.checks import checked
from vlprompt.base.environment import Clock
from vlprompt.base.layout import CHOICE, DESCRIBED, LEARNER, RESULT, SETTINGS
from vlprompt.base.reporter import Reporter
from vlprompt.base.settings import AUTO, RunConfig
from vlprompt.base.threads import computing_with, threads_for
from vlprompt.choosing.choice import Choice
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import (
    DatasetSplits,
    as_splits,
    backbone_fingerprint,
)
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.protocols import PROTOCOLS, Part, Plan, check_suits, familiar
from vlprompt.evaluation.results import Result
from vlprompt.evaluation.scores import Evaluation
from vlprompt.evaluation.scoring import evaluate, score
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.held_out import Selection, make_selection, say_selection
from vlprompt.learner.registration import method_facts
from vlprompt.runs.auto import choose_for, resolve_auto
from vlprompt.runs.calibration import calibrate_run, check_calibration, held_apart
from vlprompt.runs.folder import (
    claim_folder,
    find_finished,
    load_own_learner,
    lock_run,
    refuse_if_in_use,
    refuse_undecided,
)
from vlprompt.runs.images import encode_tests, image_facts, usable_parts
from vlprompt.runs.learners import check_names, make_learner, names_of_cards, read_from_files
from vlprompt.runs.loggers import LoggedRun, Loggers, check_installed, open_loggers
from vlprompt.runs.parts import Shared, labels_of_pool, load_parts
from vlprompt.runs.preflight import check_run
from vlprompt.runs.pseudo_labels import keep_pseudo_labels
from vlprompt.runs.result import data_facts, fingerprints, keep_result, write_searches
from vlprompt.runs.settings import Resolved, resolve
from vlprompt.saving.description import description_hash
from vlprompt.training.checkpoint import checkpoints, threads_of
from vlprompt.training.feed import Labelling
from vlprompt.training.feeding import effective_views, make_feed
from vlprompt.training.recipes import adapt_depths
from vlprompt.training.trainer import BestEpoch, Trainer, TrainOptions, in_words


@checked
def run(*, clip: FrozenCLIP | None = None, **settings: Any) -> Result:
    """Train a learner and test it as a protocol says; what ``python -m vlprompt.train`` does.

    The run's folder then holds ``config.yaml``, ``train.jsonl``, ``learner/`` and ``result.json``.

    Args:
        clip: a frozen model in hand, instead of one loaded by ``backbone``.
        settings: as on the command line; see ``python -m vlprompt.train --help``. ``dataset`` may also be splits in
            hand, a torch ``Dataset`` of (image, label) pairs that has ``classes``, or one of Hugging Face's; see
            ``vlprompt.data.as_splits``.

    Raises:
        VlpromptError: a setting, the data or the backbone is not right; told before training starts.

    >>> run(method="coop", dataset="emoji", shots=16, seed=1).averages["harmonic_mean"]  # doctest: +SKIP
    """
    if clip is not None:
        settings |= _settings_of(clip)
    if not isinstance(settings.get("dataset", ""), str):
        settings["dataset"] = register_dataset(as_splits(settings["dataset"]))
    return start(settings, clip)[1]


def start(settings: Mapping[str, Any], clip: FrozenCLIP | None = None) -> tuple[Resolved, Result]:
    """Do a run, and return its complete settings too; method=auto chooses its method first.

    Args:
        settings: as ``run`` takes them, with the name of a dataset.
        clip: a frozen model in hand.
    """
    shared = Shared(clip)
    if settings.get("method") != AUTO:
        resolved = resolve(settings)
        return resolved, execute(resolved, clip, shared)
    resolved, choice = choose_for(resolve_auto(settings), shared)
    return resolved, execute(resolved, clip, shared, choice)


def execute(
    resolved: Resolved, clip: FrozenCLIP | None = None, shared: Shared | None = None, choice: Choice | None = None
) -> Result:
    """Do a run whose settings are resolved; ``resume`` goes on with it, or returns the result that it left.

    What an interrupted run left is neither gone on with nor dropped unless ``resume`` or ``restart`` says so.

    Args:
        resolved: the settings.
        clip: a frozen model in hand, instead of one loaded by ``backbone``.
        shared: what earlier runs of this process have loaded.
        choice: how the method was chosen, if it was.
    """
    shared = shared or Shared(clip)
    config, folder = resolved.config, resolved.folder
    reporter, clock = Reporter(config.quiet), Clock()
    finished = find_finished(resolved)
    if finished:
        reporter.say(f"already finished, nothing to resume: {folder / RESULT}")
        for left in checkpoints(folder):  # of a run that was killed when its result was there
            left.unlink(missing_ok=True)
        return finished
    refuse_if_in_use(folder)
    refuse_undecided(folder, config.resume, config.restart)
    check_installed(config.logger)
    protocol = PROTOCOLS.get(config.protocol)
    plan = protocol.plan(config.dataset, config.targets, config.held_out)
    with clock("load"):
        facts = method_facts(config.method, resolved.method_settings)
        plan = replace(plan, selection=make_selection(config.selection, config.method, facts))
        data, split = load_parts(plan, config, shared)
        check_run(config, folder, plan, data, facts)
        check_calibration(config, plan, data, facts)
        check_suits(config.protocol, plan, data, config.method, facts)
        clip = shared.clip_for(config)
        data = usable_parts(data, plan, config, clip, reporter)
        adapted = adapt_depths(resolved, clip)
        instead = adapted | names_of_cards(config, plan)
        learner = make_learner(resolved, clip, data[plan.train], instead)
        check_suits(config.protocol, plan, data, config.method, learner.facts)  # of what it stands on, too
        check_names(config, learner, data)
    _announce(resolved, adapted, clip, reporter)
    with lock_run(folder):
        finished = find_finished(resolved)  # another process may have been at it meanwhile
        if finished:
            return finished
        claim_folder(resolved, reporter)
        if choice is not None:
            choice.write(folder / CHOICE)
        with (
            threads_of(folder, reporter.say, threads_for(clip.model, config.threads)),
            open_loggers(config.logger, LoggedRun(folder, asdict(config))) as loggers,
        ):
            images = fingerprints(plan, data, config)
            if learner.facts.labels != "none":
                with clock("encode"):
                    encode_tests(data, plan, config, clip, reporter)
            learnt, labellings = fit(
                learner,
                data[plan.train],
                resolved,
                reporter,
                clock,
                loggers,
                images["train"],
                plan.selection,
                plan.later_names(data),
            )
            make = partial(make_learner, resolved, clip, data[plan.train], instead)
            calibrate_run(learner, held_apart(plan, data), resolved, make, reporter, clock)
            truth = labels_of_pool(data[plan.train], config, shared) if labellings else {}
            pseudo_labels = keep_pseudo_labels(folder, labellings, data[plan.train], truth, reporter)
            saw, searches = plan.seen(data), plan.selection.searches
            write_searches(folder, searches)
            known = {key: getattr(config, key) for key in ("dataset", "protocol", "shots", "seed")}
            learner.save_pretrained(folder / LEARNER, extra=known | say_selection(saw, searches))
            with clock("test"):
                measured = measure_all(learner, plan, data, config, reporter)
            told = {
                "data": data_facts(data[plan.train])
                | {"split": split, "images": images}
                | image_facts(data, plan)
                | ({"pseudo_labels": pseudo_labels} if pseudo_labels else {}),
                "adapted": adapted,
                "views": effective_views(learner, config),
                "seeded": is_seeded(learner, bool(learnt), config),
                "saw": saw,
                "searches": [search.summary() for search in searches],
                "choice": None if choice is None else asdict(choice),
            }
            result = keep_result(resolved, learner, measured, told, clock.seconds)
            loggers.result(result)
    return result


@dataclass(frozen=True)
class Reopened:
    """What a finished run was made of, once more.

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
        folder: of the run.
        stored: its result, read.
        reporter: is told of test images that have changed.
        changes: settings that may be others here, such as ``device`` and ``data_root``.

    Raises:
        VlpromptError: the settings are not those of the result, or the data is not there.
    """
    config = resolve({"config": folder / SETTINGS, **changes}).config
    plan = PROTOCOLS.get(config.protocol).plan(config.dataset, config.targets, config.held_out)
    if list(plan.tests) != [row.target for row in stored.rows]:
        raise VlpromptError(
            f"{folder / RESULT} has other tests than {SETTINGS} beside it asks for: {', '.join(plan.tests)}"
        )
    shared = Shared()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* training images")  # of uneven classes, which the run itself told
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
    """Score the learner that a run saved on the run's tests again, from its folder alone.

    Args:
        folder: of the run.
        stored: its result, read.
        reporter: tells how it gets on.
        opened: its data, where that was loaded before.
        changes: settings that may be others here, such as ``device`` and ``data_root``.

    Raises:
        VlpromptError: the learner is not the one of the result.
    """
    if stored.files.get(DESCRIBED) not in (None, description_hash(folder / LEARNER)):
        raise VlpromptError(f"{folder / DESCRIBED} is not what {RESULT} describes: it is another run's, or changed")
    opened = opened or reopen(folder, stored, reporter, **changes)
    learner = load_own_learner(folder, opened.clip)
    with computing_with(threads_for(opened.clip.model, opened.config.threads)):
        return list(measure_all(learner, opened.plan, opened.data, opened.config, reporter).values())


def _settings_of(clip: FrozenCLIP) -> dict[str, Any]:
    """The settings that load a model in hand again; one without a name goes by its weights' hash."""
    source = clip.source or {"name": f"{clip.name}@{clip.identity()['weights'][:8]}"}
    loading = {
        "backbone": source["name"],
        "pretrained": source.get("pretrained"),
        "checkpoint": source.get("checkpoint"),
    }
    return loading | {"precision": clip.precision, "device": str(clip.device)}


def _announce(resolved: Resolved, adapted: dict[str, int], clip: FrozenCLIP, reporter: Reporter) -> None:
    """Say which recipe is used, and what of it the backbone cannot take."""
    if resolved.recipe:
        origin = f" ({resolved.recipe.source})" if resolved.recipe.source else ""
        reporter.say(f"recipe {resolved.recipe.name}{origin}")
    else:
        reporter.say(f"no recipe for {resolved.config.method}: the general defaults are used")
    for key, value in adapted.items():
        asked = getattr(resolved.config, key)
        reporter.say(f"{key}={value} instead of the recipe's {asked}, since {clip.name} has no more layers")
    if resolved.config.threads is None and threads_for(clip.model) < torch.get_num_threads():
        reporter.say(f"using one thread: {clip.name} is too small to benefit from more (threads=N overrides this)")


def is_seeded(learner: PromptLearner, trained: bool, config: RunConfig) -> bool:
    """Whether another seed could give other numbers: by what is trained, a few-shot draw, or the order of a stream.

    Zero-shot CLIP, which needs no labelled images, does not look at what was drawn.
    """
    return trained or learner.facts.predicts == "online" or (learner.facts.labels != "none" and config.shots != "all")


def fit(
    learner: PromptLearner,
    source: DatasetSplits,
    resolved: Resolved,
    reporter: Reporter,
    clock: Clock,
    loggers: Loggers,
    images: str = "",
    selection: Selection | None = None,
    later_names: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], list[Labelling]]:
    """Train a learner on the images of ``source``, and return the history and what it took a pool for.

    ``images`` tells those from changed ones under the same names, ``selection`` what may be chosen on, and
    ``later_names`` what classes are tested that are not learnt from.
    """
    config = resolved.config
    backbone = backbone_fingerprint(learner.clip, source.class_names)
    selection, best = selection or Selection(), None
    if selection.epoch:
        chosen_on = replace(source, test=source.test if selection.epoch == "test" else source.val)
        best = BestEpoch(lambda: score(learner, chosen_on, workers=config.workers).accuracy)
    with reporter.bar("epoch", lines=5) as update:

        def tell(stage: str, options: TrainOptions, record: dict[str, Any]) -> None:
            name = f"{stage}: " if stage else ""
            update(record["epoch"] + 1, options.epochs, name + in_words(record))
            loggers.epoch(record)

        def tell_steps(stage: str, options: TrainOptions, done: float, means: Mapping[str, float]) -> None:
            name = f"{stage}: " if stage else ""
            update(done, options.epochs, name + in_words(means))

        others = {"taught by": learner.taught_by, "on": learner.beneath}
        taught = "".join(f" {how} {other.identity['sha256']}" for how, other in others.items() if other is not None)
        begun = f" from {learner.start['sha256']}" if learner.start else ""
        files = read_from_files(config, learner)
        with_files = f" with {files}" if files else ""
        identity = {"settings": resolved.id + taught + begun + with_files, "backbone": backbone, "data": images}
        keeping = {"seed": config.seed, "folder": resolved.folder, "resume": config.resume, "identity": identity}
        trainer = Trainer(config, keeping | {"selection": best}, tell, clock, on_steps=tell_steps)
        feed = make_feed(learner, source, resolved, reporter, clock, selection, later_names)
        history = trainer.fit(learner, feed)
    if history and selection.epoch:
        selection.saw.add(selection.epoch)
    return history, feed.labellings


def measure_all(
    learner: PromptLearner, plan: Plan, data: Mapping[Part, DatasetSplits], config: RunConfig, reporter: Reporter
) -> dict[str, Evaluation]:
    """Score the learner and the zero-shot classifier on each test of a plan, among its own classes."""
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
