"""Run all combinations of methods, datasets, protocols, shots, seeds and backbones; resumable."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vlprompt.base.plugins import use
from vlprompt.base.reporter import Reporter, make_console
from vlprompt.base.settings_text import read_settings
from vlprompt.cli._arguments import PLUGIN
from vlprompt.cli._early import refuse_unknown
from vlprompt.cli._executors import RUNS, check_executor, make_executor
from vlprompt.cli._shared import command, flag_setting, parse

if TYPE_CHECKING:
    from vlprompt.runs.sweep import Matrix, Outcome

USAGE = """vlprompt sweep methods=[…] [datasets=[…]] [protocols=[…]] [held_outs=[…]] [shots=[…]] [seeds=[1,2,3]]
               [backbones=[…]] [KEY=VALUE …] [spec=FILE] [plan=true] [executor=local|processes|ray] [--quiet]

Runs every combination. KEY=VALUE is any setting of `python -m vlprompt.train` and applies to all runs. A dataset may
be the name of a collection (mini11, coop11). FILE is YAML with the same keys, and can give some of the runs settings of
their own with by: {method: {zs_lp: {epochs: 30}}}. `plan=true` prints the list of runs and stops.
Runs that have a result are not repeated, so the same command continues an interrupted sweep and retries failed runs.
With restart=true, the run that was interrupted starts over. The final table follows the report's rules: means over
seeds with their deviation and interval, harmonic means of averages. The exit status is 1 if any run failed.

executor=processes processes=N [devices=[cuda:0,cuda:1]]   N processes on this machine
executor=ray [address=auto] [cpus=1] [gpus=0.25]           a Ray cluster; cpus and gpus are per run"""


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Expand the matrix, do its runs and print a table."""
    arguments = parse(argv)
    settings = dict(arguments.settings)
    if "spec" in settings:
        settings = read_spec(Path(str(settings.pop("spec"))).expanduser()) | settings
    only_plan = flag_setting(settings, "plan")
    settings.pop("plan", None)
    check_executor(settings, RUNS)
    methods = settings.get("methods", [])
    refuse_unknown(methods if isinstance(methods, list) else [methods])
    from vlprompt.runs.sweep import expand, sweep

    executor = make_executor(settings)
    matrix, reporter = expand(settings), Reporter("--quiet" in arguments.flags)
    for label, sentence in matrix.refused:
        reporter.say(f"refused  {label}: {sentence}")
    if only_plan:
        show_plan(matrix)
        return 0
    done, total = 0, len(matrix.tasks)

    def tell(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if outcome.status != "kept":
            seconds = f"  ({outcome.seconds:.0f} s)" if outcome.status == "done" else ""
            reporter.say(f"[{done}/{total}] {outcome.label}  {outcome.status}: {outcome.message}{seconds}")

    try:
        outcomes = sweep(settings, executor, tell)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; to continue: vlprompt sweep {shlex.join(arguments.again(restart=None))}"
        ) from None
    return conclude(matrix, outcomes, reporter)


def read_spec(path: Path) -> dict[str, Any]:
    """Read the keys of a sweep from a YAML file, and import the plugins that it names."""
    settings = read_settings(path, "keys of a sweep")
    plugins = settings.pop(PLUGIN, [])
    use(plugins if isinstance(plugins, list) else str(plugins))
    return settings


def show_plan(matrix: Matrix) -> None:
    """Print the runs and which of them are done."""
    from vlprompt.runs.sweep import known_outcome

    table = Table("run", "state", "folder")
    for task in matrix.tasks:
        known = known_outcome(task)
        state = "open" if known is None else "done" if known.status == "kept" else known.message
        table.add_row(task.label, state, str(task.resolved.folder))
    make_console().print(table)


def conclude(matrix: Matrix, outcomes: Sequence[Outcome], reporter: Reporter) -> int:
    """Print the table of means over seeds and the runs that failed; return the exit status."""
    from vlprompt.cli._closing import closing_table
    from vlprompt.report.render import print_terminal

    console = make_console()
    print_terminal([closing_table(matrix)], console)
    counts = {s: sum(o.status == s for o in outcomes) for s in ("done", "kept", "failed", "elsewhere")}
    reporter.say(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    for outcome in outcomes:
        if outcome.status == "failed":
            console.print(f"failed  {outcome.label}: {outcome.message}", markup=False, soft_wrap=True)
    if matrix.tasks:
        reporter.say(f"tables   vlprompt report {shlex.quote(matrix.tasks[0].resolved.config.output)}")
    return 1 if counts["failed"] else 0
