"""The result of a run: one JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field
from rich.console import RenderableType

from vlprompt.base.files import atomic_write, sha256_file
from vlprompt.base.layout import RESULT, SETTINGS
from vlprompt.base.schema import read_as, strict
from vlprompt.base.sealed import SEAL, seal, unseal
from vlprompt.base.settings import AUTO, differing_setting
from vlprompt.base.settings_text import read_settings
from vlprompt.base.wiring import lazy_exports
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.averages import headline as headline
from vlprompt.evaluation.frames import data_frame, lines_of_tests
from vlprompt.evaluation.rows import Count, Percent, Row
from vlprompt.evaluation.tables import conditions, result_html, result_table
from vlprompt.learner.facts import Fidelity, Predicts, mark_of, marked

if TYPE_CHECKING:
    import pandas

    # which version 0.1 had here
    from vlprompt.evaluation.averages import SIDES as SIDES
    from vlprompt.evaluation.averages import average_rows as average_rows
    from vlprompt.evaluation.averages import harmonic_mean as harmonic_mean
    from vlprompt.evaluation.averages import sides_of as sides_of
    from vlprompt.evaluation.averages import spread_over_draws as spread_over_draws
    from vlprompt.evaluation.saved_predictions import Predictions as Predictions
    from vlprompt.evaluation.saved_predictions import read_predictions as read_predictions
    from vlprompt.evaluation.saved_predictions import write_predictions as write_predictions

SCHEMA = 3  # 2, of vlprompt 0.1.0, has no hashes


@strict()
@dataclass(frozen=True, repr=False)
class Result:
    """The result of a run. It prints as one line, as a table with rich, and as a table in a notebook.

    Attributes:
        id: hash of the settings, see ``vlprompt.runs.settings.Resolved.id``.
        method, protocol, dataset, shots, seed: what was run.
        views: of each training image: ``fresh`` ones in each epoch, a number of pre-drawn ones, 1 for the centre crop,
            or None if nothing was trained.
        rows: one per test.
        averages: the protocol's average over the rows, in percent, for the learner and for zero-shot CLIP.
        backbone: ``FrozenCLIP.identity()`` and its precision.
        data: source, version and SHA-256 of the split, SHA-256 of the few-shot subset, and ``images``, hashes of the
            images (see ``vlprompt.data.fingerprint``) of ``train`` and of each target.
        config: all settings, including the method's own.
        adapted: settings of the recipe that were reduced since the backbone has fewer layers.
        recipe: its name, source and published figure.
        n_parameters: number of learnt numbers.
        times: seconds of ``load``, ``encode``, ``train`` and ``test``.
        peak_memory_mb: of the ``process``, and of a GPU as ``cuda``.
        versions: of python, vlprompt, torch and open_clip; and the number of ``threads``, which affects rounding.
        git_commit: of vlprompt's checkout, if it runs from one.
        created: UTC, ISO 8601.
        selection: what was chosen on: ``last``, nothing (settings as given, the weights of the last epoch);
            ``fewshot_val``, the few-shot validation draw; ``paper``, what the method's authors chose on.
        saw: images besides the training images that affected the learner: ``val`` (the few-shot draw), ``whole_val``,
            ``test``, or ``unnamed`` ones of its authors; None if unknown.
        searches: a record for each grid that was searched: ``on``, ``images``, ``points``, ``chosen``, ``accuracy`` and
            ``ties``; ``search.jsonl`` beside it has every point.
        limit: largest number of test images per test; None if all were used.
        seeded: whether another seed could have given other numbers, since something was trained or a few-shot draw was
            used; None in older results (see ``has_seeds``).
        fidelity: what the method was compared with, see ``vlprompt.learner.facts``; None if unknown.
        beneath: the saved learner that this one is built on: its ``method``, the hash of its backbone's ``weights``,
            and that of its folder, ``sha256``; None if there is none.
        start: the description of the learner that ``init_from`` names (see ``vlprompt.saving.starts``); None if there
            is none, and in older results.
        calibration: temperature and threshold, see ``vlprompt.learner.calibration``, without the curve; None if there
            are none. ``saw`` does not mention its held-out images, since they change no predicted class.
        choice: how method=auto chose the method (see ``vlprompt.choosing.choice``); None for other runs.
        files: hashes of the run's other files: of the bytes of ``config.yaml``, and of the contents of
            ``learner/config.json`` and ``predictions.safetensors``.
        schema: version of this layout.

    The file of a result also has a hash of itself.
    """

    id: str
    method: str
    protocol: str
    dataset: str
    shots: Annotated[int, Field(ge=1)] | str
    seed: Count
    views: Annotated[int, Field(ge=1)] | str | None
    rows: Annotated[list[Row], Field(min_length=1)]
    averages: dict[str, Percent]
    backbone: dict[str, Any]
    data: dict[str, Any]
    config: dict[str, Any]
    adapted: dict[str, Any]
    recipe: dict[str, str] | None
    n_parameters: Count
    times: dict[str, float]
    peak_memory_mb: dict[str, float]
    versions: dict[str, str]
    git_commit: str | None
    created: str
    selection: str = "last"
    saw: list[Literal["val", "whole_val", "test", "unnamed"]] | None = None
    searches: list[dict[str, Any]] = field(default_factory=list)
    limit: Annotated[int, Field(ge=1)] | None = None
    seeded: bool | None = None
    fidelity: Fidelity | None = None
    beneath: dict[str, str] | None = None
    start: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    choice: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)
    schema: int = field(default=SCHEMA)

    @property
    def called(self) -> str:
        """The method, such as ``gda``, ``gda on coop`` if it is built on another learner, or ``auto → gda``."""
        name = f"{self.method} on {self.beneath['method']}" if self.beneath else self.method
        return self._how + name

    @property
    def _how(self) -> str:
        return f"{AUTO} → " if self.choice else ""

    @property
    def has_seeds(self) -> bool:
        """Whether the seed affects the numbers; for older results, whether they have learnt parameters."""
        return self.n_parameters > 0 if self.seeded is None else self.seeded

    @property
    def predicts(self) -> Predicts:
        """Whether images are predicted alone, online or jointly, the same in all rows: see ``Row``."""
        return self.rows[0].predicts

    @property
    def marked_method(self) -> str:
        """The method's name in tables, with marks if it is a reconstruction, if it does not predict images alone, or if
        its start was trained on a tested dataset."""
        return marked(self._how + self.method, self.predicts, mark_of(self.fidelity), self.start_mark)

    @property
    def start_mark(self) -> str:
        """A mark for a start that was trained on a tested dataset: ``start saw eurosat``; empty if there is none."""
        if self.start is None:
            return ""
        known = self.start.get("datasets")
        if known is None:
            return "start of unknown data"
        tested = dict.fromkeys(row.dataset for row in self.rows if row.target != "source")
        saw = [name for name in tested if name in known]
        start = self.start.get("reconstructs")
        reconstruction = "" if mark_of(self.fidelity) else ", reconstruction"  # else the method's own mark says it
        marks = [f"start of {start}{reconstruction}" if start else "", f"start saw {' and '.join(saw)}" if saw else ""]
        return ", ".join(filter(None, marks))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read a result and check every field.

        Args:
            path: a run's folder, or its ``result.json``.

        Raises:
            VlpromptError: as ``read_result``.
        """
        path = Path(path).expanduser()
        return read_result(path / RESULT if path.is_dir() else path)

    def to_frame(self) -> pandas.DataFrame:
        """Return a pandas ``DataFrame`` with one line per test; ``load_results`` makes one of many runs.

        Columns: method, dataset, protocol, shots, seed; target, tested_on, classes, images; accuracy, zero_shot, gain
        and the other numbers of ``Row``, in percent; then where they come from, see ``vlprompt.load_results``.

        Raises:
            VlpromptError: pandas is not installed.
        """
        return data_frame(lines_of_tests(self))

    def __repr__(self) -> str:
        return f"<Result {self.called} on {conditions(self)}; {headline(self)}>"

    def __rich__(self) -> RenderableType:
        return result_table(self)

    def _repr_html_(self) -> str:
        return result_html(self)

    def write(self, path: str | Path) -> Path:
        """Write the JSON file atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(seal(asdict(self)), indent=1) + "\n", encoding="utf-8")
        return Path(path)


def read_result(path: str | Path) -> Result:
    """Read a result file and check every field.

    Raises:
        VlpromptError: there is none, a field is invalid, it was changed since it was written, or it belongs to another
            run than ``config.yaml`` beside it.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise VlpromptError(f"no result at {path}: the run has not finished, or the path is wrong") from None
    except (OSError, ValueError, RecursionError) as error:
        raise VlpromptError(f"{path} is not a result file: {error}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise VlpromptError(f"{path} is not a result file: it has no schema version")
    if schema > SCHEMA:
        raise VlpromptError(f"{path} has schema {schema}, and this vlprompt reads up to {SCHEMA}: upgrade it")
    result = _parsed({key: value for key, value in data.items() if key != SEAL}, path)
    unseal(data, path, required=schema >= 3)
    _check_place(result, path)
    return result


def _parsed(data: dict[str, Any], path: Path) -> Result:
    """Return the result of JSON values, or raise a ``VlpromptError`` for the first invalid field."""
    if not data.get("rows"):
        raise VlpromptError(f"{path} is not a result file: it has no rows")
    result = read_as(Result, data, str(path))
    for row in result.rows:
        _check_counts(row, path)
    return result


def _check_counts(row: Row, path: Path) -> None:
    """Raise a ``VlpromptError`` if lists of a row differ in length, or a class has more correct images than images."""
    for name, entries, length in (
        ("per_class", row.per_class, row.n_classes),
        ("reliability", row.reliability, None),
        ("selective", row.selective, None),
    ):
        lists = cast("Mapping[str, list[Any]]", entries or {})
        lengths = {len(values) for values in lists.values()}
        if lists and lengths != {length or max(lengths)}:
            raise VlpromptError(f"{path}, rows, {row.target}: the lists of field '{name}' differ in length")
    counts = row.per_class
    if counts is None:
        return
    for name, right in (("correct", counts["correct"]), ("zero_shot_correct", counts["zero_shot_correct"])):
        if any(part > images for part, images in zip(right, counts["images"], strict=True)):
            raise VlpromptError(f"{path}, rows, {row.target}: field 'per_class' has more in '{name}' than images")


def _check_place(result: Result, path: Path) -> None:
    """Raise a ``VlpromptError`` if a result is in another run's folder."""
    settings = path.parent / SETTINGS
    if path.name == RESULT and settings.is_file():
        _check_settings(result, settings, path)


def _check_settings(result: Result, settings: Path, path: Path) -> None:
    """Raise a ``VlpromptError`` unless ``config.yaml`` beside a result has the settings of its run.

    Args:
        result: the result.
        settings: path of ``config.yaml``.
        path: the result file.
    """
    if result.files.get(SETTINGS) == sha256_file(settings):
        return
    stored = read_settings(settings)
    key = differing_setting(result.config, stored)
    if key:
        raise VlpromptError(
            f"{path} is of another run than {settings.name} beside it ({key}={result.config.get(key)} in the result, "
            f"{stored.get(key)} in the settings): one of the two was changed or belongs elsewhere"
        )


def find_results(paths: Iterable[str | Path]) -> list[tuple[Path, Result]]:
    """Return the results in folders and files, each with its path, in the order of the paths.

    Linked folders are not searched.

    Raises:
        VlpromptError: a path does not exist, or a file is not a valid result; the message names it.
    """
    results: dict[Path, Result] = {}
    for top in map(Path, paths):
        if not top.exists():
            raise VlpromptError(f"{top} does not exist: give the folder of the runs, or result files")
        for path in [top] if top.is_file() else sorted(_result_files(top)):
            results.setdefault(path, read_result(path))
    return list(results.items())


def _result_files(folder: Path) -> Iterator[Path]:
    """Yield the result files below a folder."""
    for parent, _, files in os.walk(folder):
        if RESULT in files:
            yield Path(parent) / RESULT


__getattr__, __dir__ = lazy_exports(__name__)
