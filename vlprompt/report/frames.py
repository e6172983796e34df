"""``load_results``: the results of many runs as one pandas table, for analyses that no report covers."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.averages import sides_of
from vlprompt.evaluation.frames import (
    H,
    Line,
    data_frame,
    join_columns,
    line_of_run,
    lines_of_tests,
    provenance_columns,
    zero_shot_name,
)
from vlprompt.evaluation.results import find_results
from vlprompt.report.cells import METRICS, Rule, Tested, combine, first, h_of_averages, tested
from vlprompt.report.groups import ZERO_SHOT, Group, Key, collect

if TYPE_CHECKING:
    import pandas

PER = ("run", "test", "method")
ONE_RUN = (
    "recipe",
    "recipe_source",
    "parameters",
    "train_seconds",
    "id",
    "created",
)  # columns that differ between runs of a method


def load_results(
    folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = "runs",
    *,
    per: Literal["run", "test", "method"] = "run",
) -> pandas.DataFrame:
    """Read the results under folders into a pandas ``DataFrame``.

    Accuracies are in percent. Every row has ``method``, ``dataset`` (trained on), ``protocol`` and ``shots``;
    ``marks``, if its number is not comparable with others (``transductive``, ``online``, ``reconstruction``,
    ``start saw …``); ``saw``, images that influenced the learner besides its training images; ``selection``,
    ``backbone``, ``pretrained`` and ``precision``. Rows of runs and tests also have ``seed``; rows of runs have
    ``recipe``, ``recipe_source``, ``parameters`` (learnt), ``train_seconds``, ``id``, ``created`` and ``file``.

    Args:
        folders: one or several folders that contain runs at any depth, or result files.
        per: what a row stands for. ``run``: a run, with ``accuracy`` (the protocol's mean if there are several tests,
            with a column for each), or, where the field reports a harmonic mean, ``base``, ``new`` (or ``seen``,
            ``unseen``) and ``H``; and ``zero_shot``, or ``zero_shot_base`` and so on. ``test``: a test of a run, as in
            ``Result.to_frame``. ``method``: a method on a dataset with a number of shots; the columns of a run, as
            means over ``seeds`` runs with population standard deviations (``std``, ``base_std``, …), by the rules of
            ``vlprompt report``: ``H`` is that of the averages, ``label`` distinguishes variants of a method, and
            ``missing`` lists what is missing.

    Raises:
        VlpromptError: pandas is not installed, a folder does not exist or has no results, or a file is not a result.

    >>> frame = load_results("runs")  # doctest: +SKIP
    >>> frame.pivot_table("H", "method", "dataset")  # doctest: +SKIP
    """
    if per not in PER:
        raise VlpromptError(f"a row cannot be per {per!r}: {nearest(str(per), PER)}")
    data_frame(())  # raises if pandas is not installed
    paths = [folders] if isinstance(folders, (str, os.PathLike)) else list(folders)
    results = find_results(os.path.expanduser(path) for path in paths)
    if not results:
        searched = ", ".join(map(str, paths))
        raise VlpromptError(f"there are no results in {searched}: give the folder of the runs, or result files")
    if per == "method":
        return data_frame(line for group in collect(results) for line in _means(group))
    lines = ([line_of_run(result)] if per == "run" else lines_of_tests(result) for _, result in results)
    return data_frame(
        line | {"file": str(path)} for (path, _), some in zip(results, lines, strict=True) for line in some
    )


def _means(group: Group) -> Iterator[Line]:
    """Yield a line for each method, dataset and number of shots of a group."""
    for label, cells in group.values.items():
        by_dataset: dict[tuple[str, object], list[Key]] = {}
        for key in cells:
            by_dataset.setdefault((key[0], key[2]), []).append(key)
        for (dataset, shots), keys in by_dataset.items():
            result = cells[keys[0]][0].run.result
            provenance = {name: value for name, value in provenance_columns(result).items() if name not in ONE_RUN}
            run: Line = {"method": result.called, "label": label, "dataset": dataset, "protocol": group.protocol}
            run["shots"] = result.shots if shots is None else shots
            yield join_columns(run, _numbers(group, label, keys), provenance)


def _numbers(group: Group, label: str, keys: Sequence[Key]) -> Line:
    """Means over seeds with their deviations, and the numbers of zero-shot CLIP."""
    learnt, frozen = (
        {key[1]: tested(group, each, key, METRICS["accuracy"]) for key in keys} for each in (label, ZERO_SHOT)
    )
    line: Line = {}
    missing: list[str] = []
    rules = _rules(list(learnt))
    for name, (rule, targets) in rules.items():
        cell = combine([learnt[target] for target in targets], rule, group.seeds)
        line |= {name: cell.value, "std" if name == "accuracy" else f"{name}_std": cell.std}
        line["seeds"] = min(len(cell.seeds), line.get("seeds", len(cell.seeds)))
        missing += [cell.missing] if cell.missing and cell.missing not in missing else []
    with_zero_shot = [name for name in rules if name == "accuracy" or H in rules]
    line |= {zero_shot_name(name): _frozen(frozen, *rules[name]) for name in with_zero_shot}
    return line | {"missing": "; ".join(missing)}


def _rules(targets: Sequence[str]) -> Mapping[str, tuple[Rule, Sequence[str]]]:
    """The columns of some tests: by name, a rule and the tests that it combines."""
    each: dict[str, tuple[Rule, Sequence[str]]] = {target: (first, [target]) for target in targets}
    sides = sides_of(targets)
    if sides:
        return each | {H: (h_of_averages, sides)}
    if len(targets) == 1:
        return {"accuracy": (first, targets)}
    return {"accuracy": (statistics.fmean, [target for target in targets if target != "source"]), **each}


def _frozen(tests: Mapping[str, Tested | None], rule: Rule, targets: Sequence[str]) -> float | None:
    return combine([tests[target] for target in targets], rule, ()).value
