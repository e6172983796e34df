"""The result of a run: one JSON file, and beside it the prediction for every test image."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlprompt.errors import VlpromptError
from vlprompt.files import atomic_write

SCHEMA = 2
RESULT, PREDICTIONS = "result.json", "predictions.safetensors"


@dataclass(frozen=True)
class Row:
    """One test of the learner; accuracies in percent.

    Attributes:
        target: name of the test in its protocol, such as ``base``.
        dataset: whose test images they are.
        n_classes: C, the classes that are told apart.
        n_images: test images that were scored.
        accuracy: top-1.
        macro_accuracy: mean of the classes' own accuracies.
        zero_shot, zero_shot_macro: the same of the frozen model with the dataset's hand-written templates.
        split: SHA-256 of the tested classes and images.
        top5, zero_shot_top5: share of images whose label is among the five likeliest; None below six classes.
        ece, zero_shot_ece: expected calibration error in percentage points, 15 bins.
        per_class: lists ``class``, ``images``, ``correct``, ``zero_shot_correct``, one entry a class in label order.
        reliability: lists ``images``, ``confidence``, ``accuracy`` in [0, 1], one entry a bin of confidence.
        format_spread: zero-shot accuracy by template, if it was asked for.

    What stands after ``split`` is None in results of schema 1.
    """

    target: str
    dataset: str
    n_classes: int
    n_images: int
    accuracy: float
    macro_accuracy: float
    zero_shot: float
    zero_shot_macro: float
    split: str
    top5: float | None = None
    zero_shot_top5: float | None = None
    ece: float | None = None
    zero_shot_ece: float | None = None
    per_class: dict[str, list] | None = None
    reliability: dict[str, list] | None = None
    format_spread: dict[str, float] | None = None


@dataclass(frozen=True)
class Result:
    """What a run did and what came out.

    Attributes:
        id: the settings' hash, see ``vlprompt.recipes.Resolved.id``.
        method, protocol, dataset, shots, seed: what was run.
        views: of each training image: ``fresh``, a number of pre-drawn ones, 1 for the centre crop, or None if nothing
            was trained.
        rows: one a test.
        averages: the protocol's average over the rows, for the learner and for zero-shot.
        backbone: ``FrozenCLIP.identity()`` and its precision.
        data: source, version and SHA-256 of the split, and SHA-256 of the few-shot subset.
        config: all settings, with the method's own.
        adapted: settings of the recipe that the backbone could not take, as they were used.
        recipe: its name, source and published figure.
        n_parameters: learnt numbers.
        times: seconds of ``load``, ``encode``, ``train`` and ``test``.
        peak_memory_mb: of the ``process``, and of the GPU as ``cuda`` where there is one.
        versions: of python, vlprompt, torch, open_clip.
        git_commit: of vlprompt's checkout, if it runs from one.
        created: UTC, ISO 8601.
        selection: which weights were tested: ``last``, those of the last epoch, or ``fewshot_val``, the epoch that was
            best on the few-shot validation draw.
        limit: test images at most in each test; None if all.
        seeded: whether another seed could have given other numbers, since something was trained or a few-shot draw was
            learnt from; None in results that do not tell (read ``has_seeds``).
        schema: version of this layout.
    """

    id: str
    method: str
    protocol: str
    dataset: str
    shots: int | str
    seed: int
    views: int | str | None
    rows: list[Row]
    averages: dict[str, float]
    backbone: dict[str, Any]
    data: dict[str, Any]
    config: dict[str, Any]
    adapted: dict[str, Any]
    recipe: dict[str, str] | None
    n_parameters: int
    times: dict[str, float]
    peak_memory_mb: dict[str, float]
    versions: dict[str, str]
    git_commit: str | None
    created: str
    selection: str = "last"
    limit: int | None = None
    seeded: bool | None = None
    schema: int = field(default=SCHEMA)

    @property
    def has_seeds(self) -> bool:
        """Whether the seed bears on the numbers; of older results, whether they learnt any parameters."""
        return self.n_parameters > 0 if self.seeded is None else self.seeded

    def write(self, path: str | Path) -> Path:
        """Write the JSON file atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return Path(path)


def read_result(path: str | Path) -> Result:
    """Read a result file; what is not one is an error that names the file and the first thing that is wrong."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VlpromptError(f"no result at {path}: the run has not finished, or the path is wrong") from None
    except (OSError, ValueError) as error:
        raise VlpromptError(f"{path} is not a result file: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        raise VlpromptError(f"{path} is not a result file: it has no schema version")
    if data["schema"] > SCHEMA:
        raise VlpromptError(f"{path} has schema {data['schema']}, and this vlprompt reads up to {SCHEMA}: upgrade it")
    rows = data.get("rows")
    if not isinstance(rows, list) or not rows:
        raise VlpromptError(f"{path} is not a result file: it has no rows")
    return _build(Result, {**data, "rows": [_build(Row, row, f"{path}, rows") for row in rows]}, str(path))


@lru_cache
def _fields(cls: type) -> dict[str, Field]:
    """A dataclass's fields by name; looked up once, since a report reads thousands of results."""
    return {f.name: f for f in fields(cls)}


def _build(cls: type, values: Any, where: str) -> Any:
    """Make a dataclass of JSON values, with exactly its fields; numbers must be numbers."""
    if not isinstance(values, Mapping):
        raise VlpromptError(f"{where}: an object with fields is expected, not {type(values).__name__}")
    known = _fields(cls)
    missing = [name for name, f in known.items() if name not in values and f.default is MISSING]
    for problem, names in (("lacks", missing), ("has the unknown", sorted(values.keys() - known.keys()))):
        if names:
            raise VlpromptError(f"{where}: it {problem} field '{names[0]}'")
    kinds = {"int": int, "float": (int, float), "str": str}
    for name, f in known.items():
        kind = kinds.get(str(f.type))
        if kind and name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
            raise VlpromptError(f"{where}: field '{name}' must be {f.type}, not {values[name]!r}")
    return cls(**values)


def harmonic_mean(base: float, new: float) -> float:
    """Return 2·base·new / (base + new), 0 if both are 0.

    >>> round(harmonic_mean(80.47, 71.69), 2)
    75.83
    """
    return 2 * base * new / (base + new) if base + new else 0.0


def headline(result: Result) -> str:
    """Return the number that a run is known by: its average, or its only row, with what it is."""
    for name, value in result.averages.items():
        if not name.startswith("zero_shot_"):
            return f"{name.replace('_', ' ')} {value:.2f}"
    return ", ".join(f"{row.target} {row.accuracy:.2f}" for row in result.rows)


def average_rows(rule: str | None, values: Mapping[str, float]) -> dict[str, float]:
    """Apply a protocol's average to one value a row: ``harmonic_mean``, ``mean_of_targets``, or nothing."""
    if rule == "harmonic_mean":
        return {rule: harmonic_mean(values["base"], values["new"])}
    targets = [value for name, value in values.items() if name != "source"]
    return {rule: statistics.fmean(targets)} if rule == "mean_of_targets" and len(targets) > 1 else {}


@dataclass(frozen=True)
class Predictions:
    """What was said of N test images, in the order of the test list.

    Attributes:
        label: true classes (N,).
        predicted: the learner's (N,).
        zero_shot: the frozen model's (N,).
        confidence: of the learner, its largest softmax probability (N,).
    """

    label: Tensor
    predicted: Tensor
    zero_shot: Tensor
    confidence: Tensor


def write_predictions(folder: Path, predictions: Mapping[str, Predictions]) -> None:
    """Write the predictions of each target beside a run's result."""
    tensors = {
        f"{target}/{f.name}": getattr(each, f.name) for target, each in predictions.items() for f in fields(each)
    }
    with atomic_write(folder / PREDICTIONS) as temporary:
        save_file(tensors, temporary)


def read_predictions(folder: str | Path) -> dict[str, Predictions]:
    """Return the predictions that a run left in its folder, by target."""
    path = Path(folder) / PREDICTIONS
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise VlpromptError(f"no predictions at {path}: the run has not finished, or is of an older version") from None
    except (SafetensorError, OSError) as error:
        raise VlpromptError(f"{path} cannot be read: {error}") from error
    targets = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
    try:
        return {t: Predictions(*(tensors[f"{t}/{f.name}"] for f in fields(Predictions))) for t in targets}
    except KeyError as error:
        raise VlpromptError(f"{path} is not a run's predictions: {error} is missing") from error


def find_results(paths: Iterable[str | Path]) -> list[tuple[Path, Result]]:
    """Return all results under folders, or of files, with their paths, in the order of the paths.

    Links to folders are not followed. The first path that does not exist and the first file that is no result are
    errors that name them.
    """
    found: dict[Path, Result] = {}
    for start in map(Path, paths):
        if not start.exists():
            raise VlpromptError(f"{start} does not exist: give the folder of the runs, or result files")
        for path in [start] if start.is_file() else sorted(_result_files(start)):
            found.setdefault(path, read_result(path))
    return list(found.items())


def _result_files(folder: Path) -> Iterator[Path]:
    for parent, _, files in os.walk(folder):
        if RESULT in files:
            yield Path(parent) / RESULT
