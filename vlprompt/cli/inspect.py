"""Show which images a run misclassifies and with what confidence, and which labels of a dataset look wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlprompt.base.layout import RESULT
from vlprompt.base.reporter import Reporter, make_console
from vlprompt.cli._shared import (
    backbone_settings,
    check_keys,
    command,
    flag_setting,
    names_setting,
    number_setting,
    parse,
    split_setting,
)
from vlprompt.clip.catalog import TINY
from vlprompt.errors import VlpromptError

USAGE = """vlprompt inspect run=DIR [targets=[…]] [check_data=true|false] [images=24] [output=FOLDER] [device=auto]
                 [data_root=DIR] [--quiet]
vlprompt inspect data=NAME [limit=N] [images=24] [output=FOLDER] [backbone=NAME [pretrained=TAG | checkpoint=FILE]]
                 [device=auto] [data_root=DIR] [split=published] [follow_links=true] [--quiet]

The first form examines a finished run image by image, without changing its folder. It writes a self-contained page,
inspect.html, with the accuracy and its confidence interval, the most confident mistakes, the confusion matrix,
calibration and each class's gain over zero-shot; a contact sheet of the mistakes, mistakes.png; and every table as CSV.
With check_data=true it also looks for labels that seem wrong and for duplicates among training and test images.

The second form looks for both in a dataset (folder:PATH and csv:PATH included), across its train, val and test images,
using the features of a frozen model, vlprompt-tiny by default. `limit` takes at most that many images of each part.
`output` defaults to inspect/NAME."""
SHARED_KEYS = ("images", "output", "device", "data_root")
RUN_KEYS = ("run", "targets", "check_data", *SHARED_KEYS)
DATA_KEYS = (
    *("data", "limit", "backbone", "pretrained", "checkpoint", "split", "follow_links"),
    *SHARED_KEYS,
)
FREQUENT = 5  # how many confusions are printed


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Write the page of a run or of a dataset."""
    arguments = parse(argv)
    settings = arguments.settings
    check_keys(settings, (*RUN_KEYS, *DATA_KEYS))
    if "run" in settings and "data" in settings:
        raise VlpromptError("run= and data= inspect different things: give one of them")
    if "run" not in settings and "data" not in settings:
        raise VlpromptError(
            "say what to inspect: run=DIR for a finished run, or data=NAME for a dataset such as folder:PATH"
        )
    form, keys = ("run", RUN_KEYS) if "run" in settings else ("data", DATA_KEYS)
    for key in settings:
        if key not in keys:
            raise VlpromptError(f"{key} does not go with {form}=: {form}= takes {', '.join(keys)}")
    number_setting(settings, "images")
    reporter = Reporter("--quiet" in arguments.flags)
    return _run(settings, reporter) if form == "run" else _data(settings, reporter)


def _run(settings: Mapping[str, Any], reporter: Reporter) -> int:
    folder = Path(str(settings["run"])).expanduser()
    if not (folder / RESULT).is_file():  # before torch is imported, which takes seconds
        raise VlpromptError(f"no result at {folder / RESULT}: the run has not finished, or the path is wrong")
    output = _output(settings, folder.resolve().name)
    from vlprompt.report.inspection import save_inspections
    from vlprompt.runs.inspecting import inspect_run

    targets = settings.get("targets")
    if targets is not None:
        targets = names_setting(targets if isinstance(targets, list) else [targets], "targets")
    changes = {key: settings[key] for key in ("device", "data_root") if key in settings}
    check = flag_setting({"check_data": True} | dict(settings), "check_data")
    inspections = inspect_run(folder, targets=targets, check_data=check, reporter=reporter, **changes)
    page = save_inspections(inspections, output, settings.get("images"))
    console = make_console()
    for each in inspections:
        _print(console, f"{each.title}: {each.headline()}")
        for c in each.confusions(FREQUENT):
            names = each.class_names
            _print(
                console,
                f"  {names[c.label]} taken for {names[c.predicted]}: {c.images:,} ({c.share:.0f}% of the class)",
            )
        for line in each.findings.lines() if each.findings else ():
            _print(console, f"  {line}")
    reporter.say(f"page  {page}")
    return 0


def _data(settings: Mapping[str, Any], reporter: Reporter) -> int:
    output = _output(settings, str(settings["data"]))
    from datasets_registry.catalog import is_own, load_split
    from vlprompt.analysis.data_findings import inspect_data
    from vlprompt.base.threads import computing_with, threads_for
    from vlprompt.clip.loading import load_clip
    from vlprompt.data import check_items
    from vlprompt.data.readable import leave_out_unreadable
    from vlprompt.data.splits import PARTS
    from vlprompt.evaluation.scoring import limited
    from vlprompt.report.inspection import save_findings

    name, limit = str(settings["data"]), number_setting(settings, "limit")
    links = flag_setting(settings, "follow_links")
    splits = load_split(name, settings.get("data_root"), split=split_setting(settings), follow_links=links)
    splits = splits.with_parts({part: limited(getattr(splits, part), limit) for part in PARTS})
    if is_own(name):
        splits = leave_out_unreadable(splits, list(PARTS), "skip")
    else:
        check_items(splits, [item for part in PARTS for item in getattr(splits, part)])
    clip = load_clip(
        *backbone_settings({"backbone": TINY} | dict(settings)), device=str(settings.get("device", "auto"))
    )
    with computing_with(threads_for(clip.model)):
        findings = inspect_data(clip, splits, reporter=reporter)
    if findings is None:
        raise VlpromptError(f"{name} has fewer than two images, so there is nothing to compare")
    facts = {"backbone": clip.name, "images": f"{len(findings.names):,}", "classes": f"{len(findings.class_names):,}"}
    page = save_findings(name, facts, findings, output, settings.get("images"))
    for line in findings.lines():
        _print(make_console(), line)
    reporter.say(f"page  {page}")
    return 0


def _output(settings: Mapping[str, Any], name: str) -> Path:
    """The folder of the page and its table: what was given, or one with the name's letters in it.

    Raises:
        VlpromptError: a file is given.
    """
    if settings.get("output") is None:
        return Path("inspect", re.sub(r"[^\w.-]+", "-", name).strip("-.")[-80:] or "page")
    folder = Path(str(settings["output"])).expanduser()
    if folder.is_file() or (folder.suffix in (".html", ".csv") and not folder.is_dir()):
        raise VlpromptError(f"output={folder} is a file: give a folder, in which the pages and tables are written")
    return folder


def _print(console: Any, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)
