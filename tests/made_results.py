"""Result files without runs: what tests of the report read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlprompt.base.layout import RESULT
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.evaluation.results import Predictions, Result, Row, average_rows, write_predictions
from vlprompt.report.cells import Cell
from vlprompt.report.tables import Table

TINY = {"architecture": "vlprompt-tiny", "pretrained": None, "weights": "f9e7", "precision": "fp32"}
VIT = {"architecture": "ViT-B-16", "pretrained": "openai", "weights": "ab12", "precision": "fp16"}
IMAGES = 100  # of each made test
BINS = 15


def make_row(target: str, dataset: str, accuracy: float, zero_shot: float, classes: Sequence[str] = ()) -> Row:
    """A test with a whole number of right images where ``classes`` share the images evenly."""
    row = Row(
        target, dataset, len(classes) or 10, IMAGES, accuracy, accuracy, zero_shot, zero_shot, f"{dataset} {target}"
    )
    if not classes:
        return row
    each = IMAGES // len(classes)
    counts = {"class": list(classes), "images": [each] * len(classes)}
    for name, percent in (("correct", accuracy), ("zero_shot_correct", zero_shot)):
        counts[name] = [round(each * percent / 100)] * len(classes)
    reliability = {"images": [0] * BINS, "confidence": [0.0] * BINS, "accuracy": [0.0] * BINS}
    for name, value in (("images", IMAGES), ("confidence", 0.9), ("accuracy", accuracy / 100)):
        reliability[name][-2] = value
    ece, zero_shot_ece = abs(90 - accuracy), abs(90 - zero_shot)
    return replace(row, per_class=counts, reliability=reliability, ece=ece, zero_shot_ece=zero_shot_ece)


def make_result(
    scores: Mapping[str, float],
    *,
    method: str = "coop",
    dataset: str = "emoji",
    protocol: str = "base_to_new",
    shots: int | str = 16,
    seed: int = 1,
    zero_shot: float | Mapping[str, float] = 40.0,
    classes: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Result:
    """A result with an accuracy for each of its tests.

    Args:
        scores: accuracy in percent by target.
        method, dataset, protocol, shots, seed: of the run.
        zero_shot: accuracy of the frozen model, the same for all targets or by target.
        classes: names of each test's classes, for results that count by class.
        config: settings beside the usual ones.
        changes: any other field of ``Result``.
    """
    frozen = zero_shot if isinstance(zero_shot, Mapping) else dict.fromkeys(scores, zero_shot)
    own = protocol not in ("cross_dataset", "domain_generalization")
    rows = [
        make_row(target, dataset if own or target == "source" else target, value, frozen[target], classes)
        for target, value in scores.items()
    ]
    settings = {"method": method, "dataset": dataset, "seed": seed, "shots": shots, "lr": 0.002, "split": "published"}
    fields = {
        "id": f"{seed:012x}",
        "method": method,
        "protocol": protocol,
        "dataset": dataset,
        "shots": shots,
        "seed": seed,
        "views": 16,
        "rows": rows,
        "averages": average_rows(PROTOCOLS.get(protocol).average, {row.target: row.accuracy for row in rows}),
        "backbone": TINY,
        "data": {"source": "embedded", "version": 1},
        "config": settings | {"selection": "last", "limit": None, "templates": None} | dict(config or {}),
        "adapted": {},
        "recipe": {"name": f"{method}/{protocol}", "source": "released code", "published": ""},
        "n_parameters": 0 if method == "zero_shot" else 768,
        "times": {"train": 1.5},
        "peak_memory_mb": {"process": 900.0},
        "versions": {"vlprompt": "0.1.0"},
        "git_commit": None,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Result(**fields | changes)


def folder_of(result: Result) -> str:
    """The folder that a result gets, which tells results apart that a report tells apart."""
    held_out = result.config.get("held_out") or ""
    parts = (result.protocol, result.dataset, result.method, result.shots, held_out, f"seed{result.seed}", result.id)
    return "-".join(str(part) for part in parts).replace("/", "_")


def write_results(folder: Path, results: Iterable[Result]) -> Path:
    """Write results below a folder, each in one of its own, and return the folder."""
    for result in results:
        path = folder / folder_of(result) / RESULT
        assert not path.exists(), f"two made results have the folder {path.parent}"
        result.write(path)
    return folder


def write_with_predictions(folder: Path, results: Iterable[Result]) -> Path:
    """Write results with predictions that have their accuracies: the first images are right, all others wrong."""
    for result in results:
        predictions = {}
        for row in result.rows:
            label = torch.arange(row.n_images, dtype=torch.int32) % row.n_classes
            right = torch.arange(row.n_images) < round(row.n_images * row.accuracy / 100)
            predicted = torch.where(right, label, (label + 1) % row.n_classes)
            predictions[row.target] = Predictions(label, predicted, label.clone(), torch.full(label.shape, 0.9))
        write_results(folder, [result])
        write_predictions(folder / folder_of(result), predictions)
    return folder


def over_seeds(by_seed: Sequence[Mapping[str, float]], **settings: Any) -> list[Result]:
    """Results of one method with seeds 1, 2, …, from the scores of each."""
    return [make_result(scores, seed=seed, **settings) for seed, scores in enumerate(by_seed, start=1)]


def find_cell(table: Table, row: str, column: str, section: int = 0) -> Cell:
    """The cell of a table in a row and column of these names."""
    [line] = [line for line in table.sections[section].lines if line.label == row]
    return line.cells[[each.heading for each in table.columns].index(column)]


def rows_of(table: Table, section: int = 0) -> list[str]:
    """The labels of a section's rows."""
    return [line.label for line in table.sections[section].lines]


def headings_of(table: Table) -> list[str]:
    """The headings of a table's columns."""
    return [column.heading for column in table.columns]
