"""Inspection of a finished run, image by image: its predictions for test images, and flaws of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from vlprompt.analysis.data_findings import TEST, DataFindings, inspect_data
from vlprompt.analysis.inspection import Inspection
from vlprompt.base.checks import checked
from vlprompt.base.layout import PREDICTIONS, RESULT
from vlprompt.base.reporter import Reporter
from vlprompt.base.threads import computing_with, threads_for
from vlprompt.data import DatasetSplits
from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.results import Result, read_result
from vlprompt.evaluation.rows import Row
from vlprompt.evaluation.saved_predictions import Predictions, read_predictions
from vlprompt.evaluation.scoring import limited
from vlprompt.runs.scoring import Reopened, reevaluate, reopen


@checked
def inspect_run(
    folder: str | Path,
    *,
    targets: Sequence[str] | None = None,
    check_data: bool = True,
    reporter: Reporter | None = None,
    **changes: Any,
) -> list[Inspection]:
    """Inspect a finished run image by image; its folder is not changed.

    The run's saved predictions are used; if there are none, its learner predicts again.

    Args:
        folder: the run's folder.
        targets: tests of its protocol, such as ``new``; None means all.
        check_data: also look for label errors and near-duplicates among the test and training images.
        reporter: shows progress.
        changes: settings that may differ from the run's, such as ``device`` and ``data_root``.

    Returns:
        One inspection per test.

    Raises:
        VlpromptError: there is no such run or test, or its test images have changed or are missing.

    >>> [inspection] = inspect_run("runs/my-run")  # doctest: +SKIP
    >>> inspection.mistakes(3)  # doctest: +SKIP
    [17, 4, 201]
    """
    folder, reporter = Path(folder).expanduser(), reporter or Reporter(quiet=True)
    stored = read_result(folder / RESULT)
    known = [row.target for row in stored.rows]
    for name in targets or ():
        if name not in known:
            raise VlpromptError(f"{folder} has no test '{name}': {nearest(str(name), known)}")
    opened = reopen(folder, stored, reporter, **changes)
    parts = {row.target: _tested(row, opened) for row in stored.rows if not targets or row.target in targets}
    predictions = _predictions(folder, stored, opened, reporter)
    inspections = []
    for row in stored.rows:
        if row.target in parts:
            inspection = _inspection(stored, row, parts[row.target], predictions[row.target])
            findings = _findings(row, parts[row.target], opened, reporter) if check_data else None
            inspections.append(replace(inspection, facts=_facts(folder, stored), findings=findings))
    return inspections


def _tested(row: Row, opened: Reopened) -> DatasetSplits:
    """The dataset of a test, with only the images that were scored.

    Raises:
        VlpromptError: they are not the images that the run was tested on.
    """
    splits = opened.data[opened.plan.tests[row.target]]
    if replace(splits, train=(), val=()).fingerprint() != row.split:
        raise VlpromptError(
            f"the test images of {row.dataset} are not the {row.n_images:,} that the run was tested on ({row.target}): "
            "put them back, or run it again (vlprompt report needs no images)"
        )
    return replace(splits, test=limited(splits.test, opened.config.limit))


def _predictions(folder: Path, stored: Result, opened: Reopened, reporter: Reporter) -> dict[str, Predictions]:
    """The predictions of each test, by target: those that were saved, or new ones of the run's learner."""
    if (folder / PREDICTIONS).exists():
        return read_predictions(folder)
    reporter.say(f"{folder} contains no predictions, so the learner predicts again")
    return {each.row.target: each.predictions for each in reevaluate(folder, stored, reporter, opened)}


def _inspection(stored: Result, row: Row, splits: DatasetSplits, predictions: Predictions) -> Inspection:
    """The inspection of one test, without facts and findings."""
    items = splits.test

    def open_image(index: int) -> Image.Image:
        return splits.open_image(items[index])

    return Inspection(
        f"{stored.called} on {row.dataset}: {row.target}",
        splits.class_names,
        [item.path for item in items],
        predictions,
        row.predicts,
        open_image,
        min_probability=row.answered["min_probability"] if row.answered else None,
    )


def _findings(row: Row, splits: DatasetSplits, opened: Reopened, reporter: Reporter) -> DataFindings | None:
    """Flaws of a test's images, and of the training images if they are of the same classes."""
    source = opened.data[opened.plan.train]
    parts = {TEST: splits.test}
    if source.class_names == splits.class_names and source.name == splits.name:
        parts = {"train": source.train, **parts}
    with computing_with(threads_for(opened.clip.model, opened.config.threads)):
        return inspect_data(opened.clip, splits, parts, workers=opened.config.workers, reporter=reporter)


def _facts(folder: Path, stored: Result) -> dict[str, str]:
    """What an inspection's page says about the run."""
    backbone = " ".join(str(v) for key in ("architecture", "pretrained") if (v := stored.backbone.get(key)))
    return {
        "run": str(folder),
        "method": stored.marked_method,
        "backbone": backbone,
        "shots": str(stored.shots),
        "seed": str(stored.seed),
        "of": stored.created[:10],
    }
