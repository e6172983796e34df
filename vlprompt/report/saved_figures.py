"""Writing every figure of groups of results to files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from vlprompt.base.files import atomic_write
from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.report.cells import check_metric
from vlprompt.report.class_gains import robin_hoods
from vlprompt.report.figures import accuracy_coverage, base_new, confusion, few_shot_curves, reliability, robin_hood
from vlprompt.report.groups import STUDY, Group
from vlprompt.report.paper_figures import FEWEST, critical_difference, dataset_scores, radar
from vlprompt.report.summaries import mean_selective, pooled_reliability

FORMATS = ("pdf", "png", "svg")


def save_figures(
    groups: Sequence[Group], folder: Path, format: str = "pdf", metric: str = "accuracy"
) -> Iterator[Path]:
    """Write every figure that groups of results allow, and yield the files as they are written.

    Args:
        groups: as ``collect`` returns them.
        folder: created if it does not exist.
        format: ``pdf``, ``png`` or ``svg``.
        metric: one of ``METRICS``.

    Raises:
        VlpromptError: the format or the metric is unknown.
    """
    if format not in FORMATS:
        raise VlpromptError(f"unknown figure_format '{format}': {nearest(format, FORMATS)}")
    check_metric(metric)
    used: set[str] = set()
    for group in groups:
        for name, figure in _figures_of(group, metric):
            stem = _file_name(name, used)
            with atomic_write(folder / f"{stem}.{format}") as temporary:
                figure.savefig(temporary, format=format, dpi=200)
            yield folder / f"{stem}.{format}"


def _figures_of(group: Group, metric: str) -> Iterator[tuple[str, Figure]]:
    if group.protocol == STUDY:
        yield f"{group.title}-curves", few_shot_curves(group, metric)
    if PROTOCOLS.get(group.protocol).average == "harmonic_mean":
        yield f"{group.title}-base-new", base_new(group, metric)
    if len(dataset_scores(group, metric)[0]) >= FEWEST and len(dataset_scores(group, metric)[1]) > 1:
        yield f"{group.title}-radar", radar(group, metric)
        yield f"{group.title}-critical-difference", critical_difference(group, metric)
    if any(pooled_reliability(group, label) for label in group.values):
        yield f"{group.title}-reliability", reliability(group)
    if any(mean_selective(group, label) for label in group.values):
        yield f"{group.title}-coverage", accuracy_coverage(group)
    for key in group.telling_keys:
        name = "-".join(str(part) for part in key if part is not None)
        if any(test.row.per_class for cells in group.values.values() for test in cells.get(key, ())):
            yield f"{group.title}-confusion-{name}", confusion(group, key)
        if robin_hoods(group, key):
            yield f"{group.title}-who-gains-{name}", robin_hood(group, key)


def _file_name(name: str, used: set[str]) -> str:
    """A name without characters that file systems refuse, numbered if it is already in ``used``; it is added there."""
    stem = re.sub(r"[^\w.+]+", "-", name).strip("-.")
    number = next(n for n in range(1, len(used) + 2) if (stem if n == 1 else f"{stem}-{n}") not in used)
    unique = stem if number == 1 else f"{stem}-{number}"
    used.add(unique)
    return unique
