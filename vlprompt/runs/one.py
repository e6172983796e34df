"""One run from settings to result: it is prepared, trained, tested and written to its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from datasets_registry.catalog import register_dataset
from vlprompt.base.checks import checked
from vlprompt.base.environment import Clock
from vlprompt.base.layout import CHOICE, LEARNER, RESULT
from vlprompt.base.modes import default_modes
from vlprompt.base.reporter import Reporter
from vlprompt.base.settings import AUTO, RunConfig, TrainOptions
from vlprompt.base.threads import threads_for
from vlprompt.choosing.choice import Choice
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import as_splits, backbone_fingerprint
from vlprompt.evaluation.results import Result
from vlprompt.evaluation.scoring import score
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.held_out import say_selection
from vlprompt.runs.auto import choose_for, resolve_auto
from vlprompt.runs.calibration import calibrate_run, held_apart
from vlprompt.runs.folder import claim_folder, find_finished, lock_run, refuse_if_in_use, refuse_undecided
from vlprompt.runs.images import encode_tests, image_facts
from vlprompt.runs.learners import read_from_files
from vlprompt.runs.loggers import LoggedRun, Loggers, check_installed, open_loggers
from vlprompt.runs.parts import Shared, labels_of_pool
from vlprompt.runs.preparing import Prepared, announce, prepare
from vlprompt.runs.pseudo_labels import keep_pseudo_labels
from vlprompt.runs.result import data_facts, fingerprints, keep_result, write_searches
from vlprompt.runs.scoring import measure_all
from vlprompt.runs.settings import Resolved, resolve
from vlprompt.training.checkpoint import checkpoints, threads_of
from vlprompt.training.feed import Labelling
from vlprompt.training.feeding import effective_views, make_feed
from vlprompt.training.trainer import BestEpoch, Trainer, progress_text


@checked
def run(*, clip: FrozenCLIP | None = None, **settings: Any) -> Result:
    """Train a learner and test it as a protocol says; what ``python -m vlprompt.train`` does.

    The run's folder then contains ``config.yaml``, ``train.jsonl``, ``learner/`` and ``result.json``.

    Args:
        clip: a frozen model to use instead of loading ``backbone``.
        settings: as on the command line; see ``python -m vlprompt.train --help``. ``dataset`` may also be
            ``DatasetSplits``, a torch ``Dataset`` of (image, label) pairs that has ``classes``, or one of Hugging
            Face's; see ``vlprompt.data.as_splits``.

    Returns:
        The result, as in ``result.json``.

    Raises:
        VlpromptError: a setting, the data or the backbone is invalid; raised before training starts.

    >>> run(method="coop", dataset="emoji", shots=16, seed=1).averages["harmonic_mean"]  # doctest: +SKIP
    """
    if clip is not None:
        settings |= _settings_of(clip)
    if not isinstance(settings.get("dataset", ""), str):
        settings["dataset"] = register_dataset(as_splits(settings["dataset"]))
    return start(settings, clip)[1]


@default_modes()
def start(settings: Mapping[str, Any], clip: FrozenCLIP | None = None) -> tuple[Resolved, Result]:
    """Do a run, and return its complete settings and its result; method=auto chooses the method first.

    Args:
        settings: as for ``run``, with the name of a dataset.
        clip: a frozen model to use instead of loading ``backbone``.
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
    """Do a run whose settings are resolved, or continue it; a finished one is not done again.

    An interrupted run is neither continued nor discarded unless ``resume`` or ``restart`` says so.

    Args:
        resolved: the settings.
        clip: a frozen model to use instead of loading ``backbone``.
        shared: what earlier runs of this process have loaded.
        choice: how the method was chosen, for ``method=auto``.

    Raises:
        VlpromptError: a setting, the data or the backbone is invalid, or another process is doing this run.
    """
    shared = shared or Shared(clip)
    config, folder = resolved.config, resolved.folder
    reporter, clock = Reporter(config.quiet), Clock()
    finished = find_finished(resolved)
    if finished:
        reporter.say(f"already finished, nothing to resume: {folder / RESULT}")
        for checkpoint in checkpoints(folder):  # of a run that was killed after it had written its result
            checkpoint.unlink(missing_ok=True)
        return finished
    refuse_if_in_use(folder)
    refuse_undecided(folder, config.resume, config.restart)
    check_installed(config.logger)
    with clock("load"):
        run = prepare(resolved, shared, reporter)
    announce(run, reporter)
    with lock_run(folder):
        finished = find_finished(resolved)  # another process may have done the run meanwhile
        if finished:
            return finished
        claim_folder(resolved, reporter)
        if choice is not None:
            choice.write(folder / CHOICE)
        with (
            threads_of(folder, reporter.say, threads_for(run.clip.model, config.threads)),
            open_loggers(config.logger, LoggedRun(folder, asdict(config))) as loggers,
        ):
            result = _train_and_test(run, shared, choice, loggers, reporter, clock)
            loggers.result(result)
    return result


def _train_and_test(
    run: Prepared, shared: Shared, choice: Choice | None, loggers: Loggers, reporter: Reporter, clock: Clock
) -> Result:
    """Train the learner, save it, test it and write the result; the caller holds the folder's lock."""
    resolved, plan, data, learner = run.resolved, run.plan, run.data, run.learner
    config, folder = resolved.config, resolved.folder
    images = fingerprints(plan, data, config)
    if learner.facts.labels != "none":
        with clock("encode"):
            encode_tests(data, plan, config, run.clip, reporter)
    history, labellings = fit(run, images["train"], loggers, reporter, clock)
    calibrate_run(learner, held_apart(plan, data), resolved, run.make, reporter, clock)
    truth = labels_of_pool(run.source, config, shared) if labellings else {}
    pseudo_labels = keep_pseudo_labels(folder, labellings, run.source, truth, reporter)
    saw, searches = plan.seen(data), plan.selection.searches
    write_searches(folder, searches)
    trained_on = {key: getattr(config, key) for key in ("dataset", "protocol", "shots", "seed")}
    learner.save_pretrained(folder / LEARNER, extra=trained_on | say_selection(saw, searches))
    with clock("test"):
        evaluations = measure_all(learner, plan, data, config, reporter)
    facts = {
        "data": data_facts(run.source)
        | {"split": run.split, "images": images}
        | image_facts(data, plan)
        | ({"pseudo_labels": pseudo_labels} if pseudo_labels else {}),
        "adapted": run.adapted,
        "views": effective_views(learner, config),
        "seeded": is_seeded(learner, bool(history), config),
        "saw": saw,
        "searches": [search.summary() for search in searches],
        "choice": None if choice is None else asdict(choice),
    }
    return keep_result(resolved, learner, evaluations, facts, clock.seconds)


def fit(
    run: Prepared, images: str, loggers: Loggers, reporter: Reporter, clock: Clock
) -> tuple[list[dict[str, Any]], list[Labelling]]:
    """Train the learner of a run.

    Args:
        run: the run.
        images: hash of the training images; a checkpoint of other images is refused.
        loggers: receive each epoch.
        reporter: shows progress.
        clock: times encoding and training.

    Returns:
        One record per epoch, and the pseudo-labels that the method gave to a pool.
    """
    config, learner, selection, best = run.resolved.config, run.learner, run.plan.selection, None
    if selection.epoch:
        chosen_on = replace(run.source, test=run.source.test if selection.epoch == "test" else run.source.val)
        best = BestEpoch(lambda: score(learner, chosen_on, workers=config.workers).accuracy)
    with reporter.bar("epoch", lines=5) as update:

        def on_epoch(stage: str, options: TrainOptions, record: dict[str, Any]) -> None:
            update(record["epoch"] + 1, options.epochs, (f"{stage}: " if stage else "") + progress_text(record))
            loggers.epoch(record)

        def on_steps(stage: str, options: TrainOptions, done: float, means: Mapping[str, float]) -> None:
            update(done, options.epochs, (f"{stage}: " if stage else "") + progress_text(means))

        checkpointing = {
            "seed": config.seed,
            "folder": run.resolved.folder,
            "resume": config.resume,
            "identity": _identity(run, images),
        }
        trainer = Trainer(config, checkpointing | {"selection": best}, on_epoch, clock, on_steps=on_steps)
        feed = make_feed(learner, run.source, run.resolved, reporter, clock, selection, run.plan.later_names(run.data))
        history = trainer.fit(learner, feed)
    if history and selection.epoch:
        selection.saw.add(selection.epoch)
    return history, feed.labellings


def _identity(run: Prepared, images: str) -> dict[str, str]:
    """What a checkpoint must have in common with a run that continues it."""
    learner = run.learner
    others = {"taught by": learner.taught_by, "on": learner.built_on}
    saved = "".join(f" {how} {other.identity['sha256']}" for how, other in others.items() if other is not None)
    start = f" from {learner.start['sha256']}" if learner.start else ""
    files = read_from_files(run.resolved.config, learner)
    return {
        "settings": run.resolved.id + saved + start + (f" with {files}" if files else ""),
        "backbone": backbone_fingerprint(learner.clip, run.source.class_names),
        "data": images,
    }


def is_seeded(learner: PromptLearner, trained: bool, config: RunConfig) -> bool:
    """Whether another seed could give other numbers, through training, a few-shot draw or the order of a stream.

    Zero-shot CLIP needs no labelled images, so the draw does not affect it.
    """
    return trained or learner.facts.predicts == "online" or (learner.facts.labels != "none" and config.shots != "all")


def _settings_of(clip: FrozenCLIP) -> dict[str, Any]:
    """The settings that identify a given model; one without a name is named by the hash of its weights."""
    source = clip.source or {"name": f"{clip.name}@{clip.identity()['weights'][:8]}"}
    loading = {
        "backbone": source["name"],
        "pretrained": source.get("pretrained"),
        "checkpoint": source.get("checkpoint"),
    }
    return loading | {"precision": clip.precision, "device": str(clip.device)}
