"""The table at the end of a sweep: one number per method and test, by the rules of the report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.evaluation.results import Result
from vlprompt.learner.facts import NOTES, Predicts, mark_of, marked
from vlprompt.learner.registration import method_facts
from vlprompt.report.cells import Cell, Rule, Tested, combine, h_of_averages
from vlprompt.report.tables import Column, Line, Section, Table, incomplete, say_spread
from vlprompt.runs.sweep import Matrix, Task, usable_result

# how a protocol's tests become one number, by the kind of its average
RULES: dict[str | None, tuple[str, Rule]] = {
    "harmonic_mean": ("harmonic mean of the two tests, each averaged over seeds first", h_of_averages),
    "mean_of_targets": ("mean of the targets, each averaged over seeds first", statistics.fmean),
    None: ("accuracy averaged over seeds", statistics.fmean),
}

Results = dict[int, Result | None]  # by seed; None for a run without a result


def closing_table(matrix: Matrix) -> Table:
    """Return a table of methods by what they were run on; each cell is the protocol's average as in the report.

    Args:
        matrix: the runs of a sweep; numbers of unfinished ones are marked.
    """
    cells: dict[tuple[str, Predicts, str, str], dict[str, Results]] = {}
    starts: dict[
        tuple[str, Predicts, str, str], dict[str, None]
    ] = {}  # marks of what their starting points were trained on, over all runs
    protocols: dict[str, str] = {}  # of each column
    kinds: dict[Predicts, None] = {}
    for task in matrix.tasks:
        config, column = task.resolved.config, _column(task)
        protocols[column] = config.protocol
        facts = method_facts(config.method, task.resolved.method_settings)
        kind = facts.predicts
        kinds[kind] = None
        row, result = (config.method, kind, mark_of(facts.fidelity), config.backbone), usable_result(task)
        cells.setdefault(row, {}).setdefault(column, {})[config.seed] = result
        starts.setdefault(row, {})[result.start_mark if result else ""] = None
    lines = tuple(
        Line(
            f"{marked(method, kind, mark, *starts[method, kind, mark, backbone])}, {backbone}",
            tuple(_cell(column, protocol, results.get(column, {})) for column, protocol in protocols.items()),
        )
        for (method, kind, mark, backbone), results in cells.items()
    )
    columns = tuple(Column(column, ranked=False) for column in protocols)
    table = Table("mean over seeds", "sweep", _caption(protocols), columns, (Section("", lines),))
    table.notes = [*(NOTES[kind] for kind in kinds if NOTES[kind]), *incomplete(table)]
    table.caption += say_spread(table)
    return table


def _column(task: Task) -> str:
    config = task.resolved.config
    shots = "all" if config.shots == "all" else f"{config.shots}-shot"
    return " ".join(filter(None, [config.dataset, config.held_out, shots, config.protocol]))


def _caption(protocols: Mapping[str, str]) -> str:
    rules = [f"{name}: {RULES[PROTOCOLS.get(name).average][0]}" for name in dict.fromkeys(protocols.values())]
    return f"top-1 accuracy (%); {'; '.join(rules)}."


def _cell(column: str, protocol: str, by_seed: Results) -> Cell:
    finished = {seed: result for seed, result in by_seed.items() if result}
    if not finished:
        return Cell(text="-")
    _, rule = RULES[PROTOCOLS.get(protocol).average]
    parts = [_tested(column, target, finished) for target in _targets(next(iter(finished.values())))]
    return combine(parts, rule, list(by_seed))


def _targets(result: Result) -> Sequence[str]:
    """The tests that are averaged: all but the source, unless it is the only one."""
    targets = [row.target for row in result.rows]
    return [target for target in targets if target != "source"] or targets


def _tested(column: str, target: str, results: Mapping[int, Result]) -> Tested:
    rows = {seed: next(row for row in result.rows if row.target == target) for seed, result in results.items()}
    accuracies = {seed: row.accuracy for seed, row in rows.items()}
    n_images = next(iter(rows.values())).n_images
    fixed = not any(result.has_seeds for result in results.values())
    return Tested(f"{column}, {target}", accuracies, n_images, (), fixed)
