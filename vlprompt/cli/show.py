"""Summarize a run: its non-default settings, its result, its files, and commands to continue with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlprompt.base.reporter import make_console
from vlprompt.cli._shared import check_keys, command, parse
from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from vlprompt.evaluation.results import Result
    from vlprompt.runs.summary import Summary

USAGE = """vlprompt show run=DIR

DIR is the folder of a run, finished or not; `vlprompt show DIR` does the same. The confidence intervals (95%, Wilson)
account for the number of test images only. Another few-shot draw changes a number as well: `vlprompt report` gives the
variation over seeds."""
KEYS = ("run",)
SHOWN = 60  # characters of a setting


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Print the summary of a run."""
    arguments = parse(argv, words=1)
    check_keys(arguments.settings, KEYS)
    named = [*arguments.words, *(str(value) for value in arguments.settings.values())]
    if len(named) != 1:
        raise VlpromptError("say which run: vlprompt show run=DIR, the folder that holds config.yaml")
    from vlprompt.runs.summary import summarise_run

    console = make_console()
    for line in lines(summarise_run(Path(named[0]).expanduser())):
        console.print(line, markup=False, soft_wrap=True)
    return 0


def lines(summary: Summary) -> Iterator[object]:
    """What is printed: texts, and the table of the result."""
    from vlprompt.cli.train import next_commands
    from vlprompt.evaluation.tables import explain, result_table

    config, result, recipe = summary.resolved.config, summary.result, summary.usual.recipe
    if result:
        yield result_table(result)
        yield f"95% intervals over test images: {intervals(result)}"
        if result.method != "zero_shot":
            yield explain(result)
    else:
        shots = {"all": "all training images", "none": "no labels", "1": "1 shot"}.get(
            str(config.shots), f"{config.shots} shots"
        )
        yield f"{config.method} on {config.dataset}: {config.protocol}, {shots}, seed {config.seed}, {config.backbone}"
    yield f"\n{'state':<9} {summary.state}"
    changed = [f"{key}={shortened(value)} ({shortened(usual)})" for key, value, usual in summary.changed]
    defaults = f"{recipe.name} ({recipe.source})" if recipe else "the general defaults"
    yield f"{'recipe':<9} {defaults}"
    yield f"{'settings':<9} {', '.join(changed)}" if changed else f"{'settings':<9} all as there"
    for sentence in summary.cautions:
        yield f"{'note':<9} {sentence}"
    for path in summary.files:
        yield f"{'file':<9} {path}"
    if result:
        yield from (f"{name:<9} {command}" for name, command in next_commands(summary.resolved))
    elif summary.resume_command:
        yield f"{'go on':<9} {summary.resume_command}"


def intervals(result: Result) -> str:
    """The 95% interval of each test's accuracy, in percent."""
    from vlprompt.evaluation.statistics import interval_over_images

    ends = [interval_over_images(round(row.accuracy * row.n_images / 100), row.n_images) for row in result.rows]
    return ", ".join(
        f"{row.target} {low:.1f} to {high:.1f}" for row, (low, high) in zip(result.rows, ends, strict=True)
    )


def shortened(value: object) -> str:
    """A setting as on the command line, with its middle left out if it is long."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"
