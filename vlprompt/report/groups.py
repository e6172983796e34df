"""Groups of comparable results, which may share a table: of one protocol, backbone, split and so on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from vlprompt.base.settings import INCIDENTAL, RunConfig
from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.averages import spread_over_draws
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.evaluation.results import Result
from vlprompt.evaluation.rows import Row
from vlprompt.learner.facts import MARKS, NOTES, RECONSTRUCTION, Predicts, mark_of
from vlprompt.learner.held_out import say_seen

BY_SOURCE = ("cross_dataset", "domain_generalization", "multitask")  # a table of theirs has one training set
STUDY = "few_shot"  # a table of it has columns for several numbers of shots
ZERO_SHOT = "zero_shot"
BUILT_ON = "text"  # the setting that names a saved learner to build on
OWN = "own file"  # the source of a split that the user has put in the place of the published one
Key = tuple[str, str, Any]  # dataset, target, shots (None unless the table has several)

# settings that do not distinguish variants of a method, since they are columns or the same in the whole group
SHARED = (
    *("method", "dataset", "protocol", "held_out", "shots", "seed", "targets", "format_spread"),
    *("backbone", "pretrained", "checkpoint", "precision", "split", "selection", "limit", "templates", "region"),
    *INCIDENTAL,
)


@dataclass(frozen=True)
class Run:
    """A result and the file that it was read from."""

    path: Path
    result: Result


@dataclass(frozen=True)
class Measured:
    """A test of a run: the run, and the row of its result."""

    run: Run
    row: Row

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.run.result.seed


@dataclass
class Group:
    """Results that may share a table.

    Attributes:
        protocol: of all results.
        conditions: what all results have in common, by name, for the caption.
        values: by label (a method, with settings that distinguish its variants, and marks), then by dataset, target and
            shots, the tests in the order of seeds.
        notes: remarks on the results, such as on copies that were left out.
    """

    protocol: str
    conditions: dict[str, Any]
    values: dict[str, dict[Key, list[Measured]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def keys(self) -> list[Key]:
        """All tests, in the order of datasets and shots, and of targets as in the runs."""
        keys = dict.fromkeys(key for cells in self.values.values() for key in cells)
        return sorted(keys, key=lambda key: (key[0], shots_order(key[2])))

    @property
    def telling_keys(self) -> list[Key]:
        """The tests with the largest number of shots."""
        keys = self.keys
        most = max((key[2] for key in keys), key=shots_order, default=None)
        return [key for key in keys if key[2] == most]

    @property
    def shown_conditions(self) -> dict[str, Any]:
        """The conditions without the backbone's identity, which is a dictionary."""
        return {key: value for key, value in self.conditions.items() if key != "identity"}

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """All seeds of runs on which the seed has an effect."""
        tests = (test for cells in self.values.values() for seeds in cells.values() for test in seeds)
        return tuple(sorted({test.seed for test in tests if test.run.result.has_seeds}))

    def predicts(self, label: str) -> Predicts:
        """Whether a method of this group predicts images alone, online or jointly."""
        tests = next(iter(self.values.get(label, {}).values()), [])
        return tests[0].run.result.predicts if tests else "alone"

    @property
    def title(self) -> str:
        """The protocol, with its training set and number of shots, in a few words."""
        source = self.conditions.get("source")
        shots = self.conditions.get("shots")
        parts = [self.protocol.replace("_", " "), f"from {source}" if source else "", say_shots(shots) if shots else ""]
        return ", ".join(part for part in parts if part)


def shots_order(shots: int | str | None) -> float:
    """A sort key for numbers of shots: ``all`` and None come last."""
    return shots if isinstance(shots, int) else math.inf


def say_shots(shots: int | str) -> str:
    """A number of shots in words."""
    words: dict[int | str, str] = {"all": "all images", "none": "no labels"}
    return words.get(shots) or f"{shots} shot{'s' if shots != 1 else ''}"


def backbone_name(result: Result) -> str:
    """The model and its weights' tag, such as ``ViT-B-16 openai``."""
    names = (result.backbone.get(key) for key in ("architecture", "pretrained"))
    return " ".join(str(name) for name in names if name)


def collect(
    results: Iterable[tuple[Path, Result]], methods: Sequence[str] | None = None, protocol: str | None = None
) -> list[Group]:
    """Divide results into groups; results with different backbones, splits, shots, limits and so on never mix.

    Args:
        results: from ``vlprompt.evaluation.results.find_results``.
        methods: include only these, in this order; None includes all.
        protocol: include only this one; None includes all.

    Raises:
        VlpromptError: no results are left.
    """
    results = list(results)
    if not results:
        raise VlpromptError("there are no result files: run `vlprompt sweep` first, or give the folder of the runs")
    if protocol is not None:
        PROTOCOLS.info(protocol)
    known = {result.method for _, result in results}
    for method in methods or ():
        if method not in known:
            raise VlpromptError(f"there are no results of method '{method}': {nearest(method, known)}")
    kept = [
        Run(path, result)
        for path, result in results
        if (not methods or result.method in methods) and (protocol is None or result.protocol == protocol)
    ]
    if not kept:
        raise VlpromptError(
            f"none of the {len(results)} results is of protocol={protocol}: there are results of "
            f"{', '.join(sorted({result.protocol for _, result in results}))}"
        )
    buckets: dict[str, list[Run]] = {}
    for run in kept:
        buckets.setdefault(json.dumps(_conditions(run.result), sort_keys=True, default=str), []).append(run)
    groups = [_group(part, methods or ()) for bucket in buckets.values() for part in _by_split(bucket)]
    order = [*PROTOCOLS.names(), *(g.protocol for g in groups)]
    return sorted(groups, key=lambda group: (order.index(group.protocol), *_natural(group.conditions)))


def _natural(conditions: dict[str, Any]) -> tuple[Any, ...]:
    """A key that sorts groups by backbone, source and number of shots."""
    shots = conditions.get("shots")
    return conditions["backbone"], conditions.get("source") or "", isinstance(shots, str), shots or 0, str(conditions)


def _conditions(result: Result) -> dict[str, Any]:
    """What all results of a table must have in common."""
    config = result.config
    return {
        "protocol": result.protocol,
        "backbone": backbone_name(result),
        "identity": result.backbone,
        "shots": None if result.protocol == STUDY else result.shots,
        "source": result.dataset if result.protocol in BY_SOURCE else None,
        "held_out": None if config.get("held_out") is None else "each domain in turn",
        "selection": result.selection,
        "limit": result.limit,
        "templates": config.get("templates"),
        "region": config.get("region"),
        "split": config.get("split"),
        "own_split": True if result.data.get("source") == OWN else None,
    }


def _by_split(runs: Sequence[Run]) -> list[list[Run]]:
    """Divide runs into parts in which each test has one split."""
    parts: list[tuple[dict[tuple[str, str], str], list[Run]]] = []
    for run in runs:
        own_splits = {(run.result.dataset, row.target): row.split for row in run.result.rows}
        for splits, members in parts:
            if all(splits.get(key, split) == split for key, split in own_splits.items()):
                splits.update(own_splits)
                members.append(run)
                break
        else:
            parts.append((own_splits, [run]))
    return [members for _, members in parts]


def _group(runs: Sequence[Run], order: Sequence[str]) -> Group:
    """Make a group of comparable runs, with methods in the given order."""
    conditions = {key: value for key, value in _conditions(runs[0].result).items() if value is not None}
    group = Group(conditions.pop("protocol"), conditions)
    by_method: dict[tuple[str, Predicts], list[Run]] = {}
    for run in runs:
        by_method.setdefault((run.result.called, run.result.predicts), []).append(run)
    first = {called: runs[0].result.method for (called, _), runs in by_method.items()}
    ranks = {method: rank for rank, method in enumerate(order)}
    for method, predicts in sorted(by_method, key=lambda m: (m[0] != ZERO_SHOT, ranks.get(first[m[0]], 0), m)):
        for label, members in _variants(method, by_method[method, predicts]):
            label = _marked(label, members)
            group.values[label] = _cells(label, members, group)
    group.notes += [note for predicts, note in NOTES.items() if note and predicts in {each for _, each in by_method}]
    group.notes += filter(None, map(_say_draws, runs))
    group.notes += [RECONSTRUCTION] if any(run.result.fidelity == "reconstruction" for run in runs) else []
    versions = sorted({run.result.versions.get("vlprompt", "?") for run in runs})
    if len(versions) > 1:
        group.notes.append(f"results of vlprompt {' and '.join(versions)} stand together here")
    return group


def _say_draws(run: Run) -> str:
    """A note on a run whose predictions depend on draws of noise; empty for others."""
    result, spread = run.result, spread_over_draws(run.result.rows)
    return f"{result.method} on {result.dataset}, seed {result.seed}, {spread}" if spread else ""


def _marked(label: str, runs: Sequence[Run]) -> str:
    """Add marks to a label for what limits its comparability, such as ``gda (saw whole val and test)``.

    Other marks are ``zlap (transductive)`` and ``gram (reconstruction)``.
    """
    first = runs[0].result
    marks = [
        MARKS[first.predicts],
        mark_of(first.fidelity),
        first.start_mark,
        say_seen([source for run in runs for source in run.result.saw or ()]),
    ]
    text = ", ".join(filter(None, marks))
    if not text:
        return label
    return f"{label[:-1]}, {text})" if label.endswith(")") else f"{label} ({text})"


def _cells(label: str, runs: Sequence[Run], group: Group) -> dict[Key, list[Measured]]:
    """The tests of a method by dataset, target and shots, one per seed; of copies, the newest is used."""
    cells: dict[Key, dict[int, Measured]] = {}
    copies = 0
    for run in sorted(runs, key=lambda run: run.result.created):
        for row in run.result.rows:
            seeds = cells.setdefault(_key(run.result, row), {})
            copies += run.result.seed in seeds
            seeds[run.result.seed] = Measured(run, row)
    if copies:
        group.notes.append(f"{label}: of {copies} tests that were done again with the same settings, the newest count")
    return {key: [seeds[seed] for seed in sorted(seeds)] for key, seeds in cells.items()}


def _key(result: Result, row: Row) -> Key:
    return result.dataset, row.target, result.shots if result.protocol == STUDY else None


def _variants(method: str, runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Divide the runs of a method by settings that differ between runs with the same dataset and shots.

    Between datasets and numbers of shots, settings may differ, as they do in the published recipes.
    """
    if method == ZERO_SHOT:  # plain zero-shot CLIP, which every run measures, and variants of it
        return _parted(method, runs, ("template", "descriptions"), unset=None)
    shared = set(SHARED)
    if not any(run.result.has_seeds for run in runs):  # nothing is trained, so training settings have no effect
        shared |= {f.name for f in fields(RunConfig)}
    cells: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        r = run.result
        cells.setdefault((r.dataset, r.config.get("held_out"), r.shots), []).append(run)
    differing: dict[str, None] = {}
    for members in cells.values():
        for key in sorted({key for run in members for key in run.result.config}.difference(shared)):
            if _differs(key, members):
                differing[key] = None
    return _parted(method, runs, differing, unset=...)


def _differs(key: str, runs: Sequence[Run]) -> bool:
    """Whether a setting distinguishes runs; a saved learner to build on may differ between seeds."""
    values: dict[int, set[str]] = {}
    for run in runs:
        if key in run.result.config:
            seed = run.result.seed if key == BUILT_ON and run.result.beneath else -1
            values.setdefault(seed, set()).add(repr(run.result.config[key]))
    return any(len(each) > 1 for each in values.values())


def _parted(method: str, runs: Sequence[Run], keys: Iterable[str], unset: Any) -> list[tuple[str, list[Run]]]:
    """Divide runs by some settings, which are shown in the labels unless their value is ``unset``."""
    parts: dict[str, list[Run]] = {}
    for run in runs:
        config = run.result.config
        setting = ", ".join(f"{key}={config.get(key)}" for key in keys if config.get(key) is not unset)
        parts.setdefault(f"{method} ({setting})" if setting else method, []).append(run)
    return sorted(parts.items())
