"""Score a saved learner: on the tests of its own run, or on any dataset and class names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.base.files import atomic_write
from vlprompt.base.layout import RESULT
from vlprompt.base.reporter import Reporter, make_console
from vlprompt.cli._shared import (
    check_keys,
    command,
    file_setting,
    flag_setting,
    load_named_learner,
    names_setting,
    number_setting,
    parse,
    split_setting,
)
from vlprompt.errors import VlpromptError, nearest

if TYPE_CHECKING:
    from vlprompt.evaluation.scores import Evaluation

USAGE = """vlprompt evaluate run=DIR [device=auto] [data_root=DIR] [tolerance=0] [save_predictions=FILE] [--quiet]
vlprompt evaluate learner=DIR dataset=NAME [half=all|base|new] [class_names=FILE] [templates=SET] [format_spread=SET]
                  [ensemble=PART] [limit=N] [seed=1] [data_root=DIR] [split=published] [on_unreadable=skip|stop]
                  [follow_links=true] [region=crop|blank|crop_blank] [backbone=NAME [pretrained=TAG | checkpoint=FILE]]
                  [device=auto] [save_predictions=FILE] [output=FILE]

The first form loads the learner of a finished run, scores it on that run's tests again and prints both numbers. The
exit status is 1 if an accuracy differs by more than `tolerance` percentage points. On the machine of the run the
difference is 0; elsewhere, rounding may flip an image that is on the decision boundary.

The second form scores a learner (the folder of a run, one written by save_pretrained, or hf://user/name) on the test
images of any dataset, including folder:PATH and csv:PATH. `class_names` replaces the dataset's names: a list, or a file
with one name per line in label order. `seed` sets the order in which images reach a method that adapts online.
`format_spread` scores zero-shot with each template of a set separately. `ensemble` changes how much of the frozen model
is mixed in, as in ensemble="logits(weight=0.3)"; ensemble=null mixes in none. `output` saves all metrics as JSON, and
`save_predictions` the prediction for each image as .csv or .parquet."""
RUN_KEYS = ("run", "device", "data_root", "tolerance", "save_predictions")
LEARNER_KEYS = (
    "learner",
    "backbone",
    "pretrained",
    "checkpoint",
    "dataset",
    "half",
    "class_names",
    "templates",
    "format_spread",
    "ensemble",
    "limit",
    "seed",
    "data_root",
    "split",
    "on_unreadable",
    "follow_links",
    "region",
    "device",
    "save_predictions",
    "output",
)


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Score a saved learner."""
    arguments = parse(argv, texts=["class_names"])
    settings, reporter = arguments.settings, Reporter("--quiet" in arguments.flags)
    check_keys(settings, RUN_KEYS if "run" in settings else ("run", *LEARNER_KEYS))
    predictions = file_setting(settings, "save_predictions")
    if predictions:
        from vlprompt.evaluation.image_tables import check_predictions_file

        check_predictions_file(predictions)
    if "run" in settings:
        return evaluate_run(settings, reporter)
    if not {"learner", "dataset"} <= settings.keys():
        raise VlpromptError(
            "say which run (vlprompt evaluate run=DIR, the folder that holds result.json) or which learner and dataset "
            "(vlprompt evaluate learner=DIR dataset=NAME)"
        )
    return evaluate_anywhere(settings, reporter)


def evaluate_run(settings: dict[str, Any], reporter: Reporter) -> int:
    """Score a run's learner on the run's tests again; 1 if its numbers differ from the result file's."""
    from vlprompt.evaluation.results import read_result
    from vlprompt.evaluation.tables import comparison_table
    from vlprompt.runs.scoring import reevaluate
    from vlprompt.saving.hub import refuse_address

    tolerance = settings.get("tolerance", 0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance >= 0:
        raise VlpromptError(f"tolerance must be a number of percentage points, not {tolerance!r}")
    refuse_address(settings["run"], "learner=hf://user/name dataset=NAME scores a learner of the Hub's")
    folder = Path(str(settings["run"])).expanduser()
    stored = read_result(folder / RESULT)
    changes = {key: settings[key] for key in ("device", "data_root") if key in settings}
    evaluations = reevaluate(folder, stored, reporter, **changes)
    rows = [each.row for each in evaluations]
    console = make_console()
    console.print(comparison_table(stored, rows))
    keep_predictions(evaluations, settings, reporter)
    off = [r.target for r, s in zip(rows, stored.rows, strict=True) if abs(r.accuracy - s.accuracy) > tolerance]
    if off:
        console.print(f"differs from {folder / RESULT}: {', '.join(off)}", markup=False, soft_wrap=True)
        return 1
    return 0


def evaluate_anywhere(settings: dict[str, Any], reporter: Reporter) -> int:
    """Score a learner on a dataset's test images and print all metrics."""
    from datasets_registry.catalog import is_own, load_split
    from vlprompt.data.readable import ACTIONS, leave_out_unreadable
    from vlprompt.data.regions import showing_regions
    from vlprompt.evaluation.scoring import evaluate
    from vlprompt.evaluation.tables import metrics_table

    limit, output = number_setting(settings, "limit"), file_setting(settings, "output")
    seed = number_setting(settings, "seed", least=0)
    unreadable = str(settings.get("on_unreadable", "skip"))
    if unreadable not in ACTIONS:
        raise VlpromptError(f"unknown on_unreadable '{unreadable}': {nearest(unreadable, ACTIONS)}")
    name, links = str(settings["dataset"]), flag_setting(settings, "follow_links")
    splits = load_split(name, settings.get("data_root"), split=split_setting(settings), follow_links=links)
    if settings.get("region") is not None:
        splits = showing_regions(splits, str(settings["region"]))
    half = settings.get("half", "all")
    if half not in ("all", "base", "new"):
        raise VlpromptError(f"half must be all, base or new, not {half!r}")
    splits = splits.select(half)
    names = None if settings.get("class_names") is None else names_setting(settings["class_names"], "class_names")
    learner = load_named_learner(settings)
    if is_own(name):
        splits = leave_out_unreadable(splits, ["test"], unreadable, masks="mask" in learner.facts.inputs)
    if "ensemble" in settings:
        learner.set_ensemble(settings["ensemble"])
    evaluation = evaluate(
        learner,
        splits,
        target=half,
        class_names=names,
        templates=settings.get("templates"),
        spread=settings.get("format_spread"),
        limit=limit,
        reporter=reporter,
        seed=1 if seed is None else seed,
    )
    make_console().print(metrics_table(learner.method, evaluation.row, learner.facts.fidelity))
    keep_predictions([evaluation], settings, reporter)
    if output:
        with atomic_write(output) as temporary:
            temporary.write_text(json.dumps(asdict(evaluation.row), indent=1) + "\n", encoding="utf-8")
    return 0


def keep_predictions(evaluations: Sequence[Evaluation], settings: dict[str, Any], reporter: Reporter) -> None:
    """Write ``save_predictions=FILE``, if it is asked for."""
    path = file_setting(settings, "save_predictions")
    if path:
        from vlprompt.evaluation.image_tables import save_predictions

        save_predictions(evaluations, path)
        reporter.say(f"predictions  {path}")
