"""Marks of numbers in the layout of papers: second best, gain over a method, significant difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vlprompt.evaluation.saved_predictions import read_predictions
from vlprompt.evaluation.significance import draw_rule, holm, p_value, paired_draws
from vlprompt.report.cells import Cell, Rule
from vlprompt.report.groups import ZERO_SHOT, Group, Key
from vlprompt.report.names import display_method
from vlprompt.report.tables import Line, Section


def with_second(section: Section, higher: bool) -> Section:
    """Mark the second best number of each column that has a best one."""
    lines = [list(line.cells) for line in section.lines]
    for i in range(len(lines[0]) if lines else 0):
        column = [cells[i] for cells in lines if cells[i].value is not None and not cells[i].missing]
        rest = [round(cell.number, 2) for cell in column if not cell.best]
        if rest and any(cell.best for cell in column):
            second = (max if higher else min)(rest)
            for cells in lines:
                cell = cells[i]
                if cell.value is not None and not cell.missing and not cell.best and round(cell.value, 2) == second:
                    cells[i] = replace(cell, second=True)
    marked = (Line(line.label, tuple(cells)) for line, cells in zip(section.lines, lines, strict=True))
    return Section(section.heading, tuple(marked))


def with_gains(section: Section, method: str, shown: Sequence[bool]) -> Section:
    """Add the gain over a method to every other row.

    Args:
        section: a section of the table.
        method: the reference.
        shown: for each column, whether gains are shown.
    """
    base = next((line for line in section.lines if line.label == display_method(method)), None)
    if base is None:
        return section

    def against(cell: Cell, other: Cell, show: bool) -> Cell:
        known = show and cell.value is not None and other.value is not None
        return replace(cell, gain=cell.number - other.number) if known else cell

    lines = (
        line if line is base else Line(line.label, tuple(map(against, line.cells, base.cells, shown)))
        for line in section.lines
    )
    return Section(section.heading, tuple(lines))


def with_marks(
    group: Group,
    columns: Sequence[tuple[tuple[Key, ...], Rule]],
    lines: list[tuple[str, list[Cell]]],
    reference: str,
) -> list[tuple[str, list[Cell]]]:
    """Mark the cells that differ significantly from those of a reference method, on the same images and seeds.

    Args:
        group: a group of results.
        columns: for each column of the table, its tests and its rule.
        lines: label and cells of each method.
        reference: label of the reference method.
    """
    p_values: dict[tuple[str, int], float] = {}
    for label, cells in lines:
        if label == reference or group.predicts(label) != group.predicts(reference):
            continue
        draws = {key: _draws(group, label, reference, key) for key in {k for keys, _ in columns for k in keys}}
        for i, (keys, rule) in enumerate(columns):
            pairs = [draws[key] for key in keys]
            present = [pair for pair in pairs if pair is not None]
            if cells[i].value is not None and len(present) == len(pairs):
                ours, theirs = (draw_rule(rule, [pair[side] for pair in present]) for side in (0, 1))
                p_values[label, i] = p_value(ours - theirs)
    differs = dict(zip(p_values, holm([*p_values.values()]), strict=True))
    return [
        (label, [replace(cell, mark="∗") if differs.get((label, i)) else cell for i, cell in enumerate(cells)])
        for label, cells in lines
    ]


def _draws(group: Group, label: str, other: str, key: Key) -> tuple[np.ndarray, np.ndarray] | None:
    """Bootstrap draws of two methods' accuracies on a test, over the seeds of both; None without a common seed."""
    ours, theirs = _right(group, label, key), _right(group, other, key)
    if label == ZERO_SHOT:  # the same in every run
        ours = dict.fromkeys(theirs, next(iter(ours.values()))) if ours else {}
    if other == ZERO_SHOT:
        theirs = dict.fromkeys(ours, next(iter(theirs.values()))) if theirs else {}
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    return paired_draws(np.stack([ours[seed] for seed in seeds]), np.stack([theirs[seed] for seed in seeds]))


def _right(group: Group, label: str, key: Key) -> dict[int, np.ndarray]:
    """Whether each image (N,) was classified correctly, by seed."""
    right = {}
    tests = group.values.get(label, {}).get(key, ()) or (
        [t for cells in group.values.values() for t in cells.get(key, ())] if label == ZERO_SHOT else ()
    )
    for test in tests:
        predictions = read_predictions(test.run.path.parent)[test.row.target]
        predicted = predictions.zero_shot if label == ZERO_SHOT else predictions.predicted
        right[test.seed] = (predicted == predictions.label).numpy()
    return right
