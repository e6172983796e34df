"""The files of a finished run: predictions and result, with hashes that show that they belong together."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vlprompt.base.environment import git_commit, peak_memory, versions
from vlprompt.base.files import atomic_write, sha256_file
from vlprompt.base.layout import DESCRIBED, LEARNER, PREDICTIONS, RESULT, SEARCH, SETTINGS
from vlprompt.base.settings import RunConfig
from vlprompt.data import DatasetSplits, images_fingerprint
from vlprompt.evaluation.averages import average_rows
from vlprompt.evaluation.protocols import PROTOCOLS, Part, Plan
from vlprompt.evaluation.results import Result
from vlprompt.evaluation.rows import Row
from vlprompt.evaluation.saved_predictions import write_predictions
from vlprompt.evaluation.scores import Evaluation
from vlprompt.evaluation.scoring import limited
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.held_out import FIXED, Search
from vlprompt.runs.settings import Resolved
from vlprompt.saving.description import description_hash
from vlprompt.training.checkpoint import checkpoints


def keep_result(
    resolved: Resolved,
    learner: PromptLearner,
    measured: Mapping[str, Evaluation],
    facts: dict[str, Any],
    times: dict[str, float],
) -> Result:
    """Write the predictions and then, last of all files, the result of a run whose learner is saved.

    Args:
        resolved: the settings.
        learner: the one that was tested.
        measured: its tests, by target.
        facts: ``data``, ``adapted``, ``views``, ``seeded``, ``saw``, ``searches`` and ``choice`` of the result.
        times: seconds of each stage.
    """
    config, folder, clip = resolved.config, resolved.folder, learner.clip
    rows = [each.row for each in measured.values()]
    described = description_hash(folder / LEARNER)
    assert described is not None  # it was saved just now
    predictions = write_predictions(folder, {name: each.predictions for name, each in measured.items()})
    result = Result(
        id=resolved.id,
        **{
            key: getattr(config, key)
            for key in ("method", "dataset", "protocol", "shots", "seed", "selection", "limit")
        },
        rows=rows,
        averages=_averages(PROTOCOLS.get(config.protocol).average, rows),
        backbone=clip.identity() | {"precision": clip.precision},
        config=asdict(config),
        beneath=learner.built_on.identity if learner.built_on else None,
        recipe=_provenance(resolved),
        n_parameters=sum(p.numel() for p in learner.trainable_parameters()),
        times=times,
        peak_memory_mb=peak_memory(clip.device),
        versions=versions() | {"threads": str(torch.get_num_threads())},
        git_commit=git_commit(),
        fidelity=learner.facts.fidelity,
        start=learner.start,
        calibration=_calibration(learner),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        files={
            SETTINGS: sha256_file(folder / SETTINGS),
            DESCRIBED: described,
            PREDICTIONS: predictions,
        },
        **facts,
    )
    result.write(folder / RESULT)
    for checkpoint in checkpoints(folder):
        checkpoint.unlink()  # the learner is saved, and a finished run has nothing to resume
    return result


def _calibration(learner: PromptLearner) -> dict[str, Any] | None:
    """The learner's temperature and threshold, without the curve that they were read from."""
    calibration = learner.calibration
    return None if calibration is None else {key: value for key, value in asdict(calibration).items() if key != "curve"}


def write_searches(folder: Path, searches: Sequence[Search]) -> None:
    """Write every point of each search as JSON lines; without a search, remove the file of an earlier run."""
    if not searches:
        (folder / SEARCH).unlink(missing_ok=True)
        return
    lines = [json.dumps({"on": each.on, **point}) for each in searches for point in each.points]
    with atomic_write(folder / SEARCH) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def fingerprints(plan: Plan, data: Mapping[Part, DatasetSplits], config: RunConfig) -> dict[str, Any]:
    """Hashes of the images that are trained on (``train``) and of each test (``tests``, by target)."""
    source = data[plan.train]
    trained_on = [*source.train, *source.pool, *(source.val if config.selection != FIXED else ())]
    tests = {name: (data[part], limited(data[part].test, config.limit)) for name, part in plan.tests.items()}
    return {
        "train": images_fingerprint(source, trained_on),
        "tests": {name: images_fingerprint(*images) for name, images in tests.items()},
    }


def _averages(rule: str | None, rows: list[Row]) -> dict[str, float]:
    """The protocol's average over the rows, for the learner and, with the prefix ``zero_shot_``, for zero-shot CLIP."""
    learnt = average_rows(rule, {row.target: row.accuracy for row in rows})
    frozen = average_rows(rule, {row.target: row.zero_shot for row in rows})
    return learnt | {f"zero_shot_{name}": value for name, value in frozen.items()}


def data_facts(source: DatasetSplits) -> dict[str, Any]:
    """Source and version of the split, and a hash of the few-shot subset that was trained on."""
    subset = replace(source, test=()).fingerprint()
    return {"source": source.source, "version": source.version, "few_shot": subset}


def _provenance(resolved: Resolved) -> dict[str, str] | None:
    """Name, source and published figure of the recipe."""
    recipe = resolved.recipe
    return {"name": recipe.name, "source": recipe.source, "published": recipe.published} if recipe else None
