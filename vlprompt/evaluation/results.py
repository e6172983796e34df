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
from vlprompt.evaluation.frames import data_frame, tests_of
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
    from vlprompt.evaluation.predicted import Predictions as Predictions
    from vlprompt.evaluation.predicted import read_predictions as read_predictions
    from vlprompt.evaluation.predicted import write_predictions as write_predictions

SCHEMA = 3  # 2, of vlprompt 0.1.0, has no hashes


@strict()
@dataclass(frozen=True, repr=False)
class Result:
    """What a run did and what came out. It prints as one line, as a table with rich, and as one in a notebook.

    Attributes:
        id: the settings' hash, see ``vlprompt.runs.settings.Resolved.id``.
        method, protocol, dataset, shots, seed: what was run.
        views: of each training image: ``fresh``, a number of pre-drawn ones, 1 for the centre crop, or None if nothing
            was trained.
        rows: one a test.
        averages: the protocol's average over the rows, for the learner and for zero-shot.
        backbone: ``FrozenCLIP.identity()`` and its precision.
        data: source, version and SHA-256 of the split, SHA-256 of the few-shot subset, and ``images``, what tells that
            images have changed (see ``vlprompt.data.fingerprint``), of ``train`` and of each target.
        config: all settings, with the method's own.
        adapted: settings of the recipe that the backbone could not take, as they were used.
        recipe: its name, source and published figure.
        n_parameters: learnt numbers.
        times: seconds of ``load``, ``encode``, ``train`` and ``test``.
        peak_memory_mb: of the ``process``, and of the GPU as ``cuda`` where there is one.
        versions: of python, vlprompt, torch, open_clip; and how many threads computed, which rounds differently.
        git_commit: of vlprompt's checkout, if it runs from one.
        created: UTC, ISO 8601.
        selection: what was chosen on: ``last``, nothing (settings as given, the last epoch's weights); ``fewshot_val``,
            the few-shot validation draw; ``paper``, what the method's authors chose on.
        saw: images besides those that were trained on which bore on the learner: ``val`` (the few-shot draw),
            ``whole_val``, ``test``, or ``unnamed`` ones of its authors'; None in results that do not tell.
        searches: a record for each grid that was searched: ``on``, ``images``, ``points``, ``chosen``, ``accuracy`` and
            ``ties``; ``search.jsonl`` beside it has every point.
        limit: test images at most in each test; None if all.
        seeded: whether another seed could have given other numbers, since something was trained or a few-shot draw was
            learnt from; None in results that do not tell (read ``has_seeds``).
        fidelity: what the method was held to, see ``vlprompt.learner.facts``; None in results that do not tell.
        beneath: the saved learner that it stands on: its ``method``, the hash of its backbone's ``weights``, and its
            folder's, ``sha256``; None if it stands on none.
        start: of ``init_from``, what is known of the learner whose numbers it started from (see
            ``vlprompt.saving.starts``); None if it started anew, and in results that do not tell.
        calibration: what held-out images said of its probabilities: see ``vlprompt.learner.calibration``, without the
            curve; None if they were not asked. ``saw`` does not tell of them, since no prediction is another for it.
        choice: of method=auto, what the method was chosen from (see ``vlprompt.choosing.choice``); None if it was said.
        files: hashes of what else the run left: of ``config.yaml`` its bytes', of ``learner/config.json`` and
            ``predictions.safetensors`` those of their content.
        schema: version of this layout.

    In its file a result has a hash of itself as well.
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
        """The method, with that of the learner that it stands on, and whether it was chosen: ``auto → gda``."""
        name = f"{self.method} on {self.beneath['method']}" if self.beneath else self.method
        return self._how + name

    @property
    def _how(self) -> str:
        return f"{AUTO} → " if self.choice else ""

    @property
    def has_seeds(self) -> bool:
        """Whether the seed bears on the numbers; of older results, whether they learnt any parameters."""
        return self.n_parameters > 0 if self.seeded is None else self.seeded

    @property
    def predicts(self) -> Predicts:
        """What the learner's predictions depend on, the same in all rows: see ``Row``."""
        return self.rows[0].predicts

    @property
    def marked_method(self) -> str:
        """The method's name as it stands beside its numbers, marked if it predicts not alone or is a reconstruction,
        or if its start saw what it is tested on."""
        return marked(self._how + self.method, self.predicts, mark_of(self.fidelity), self.start_mark)

    @property
    def start_mark(self) -> str:
        """What a start has seen of the datasets that are tested: ``start saw eurosat``; empty if nothing."""
        if self.start is None:
            return ""
        known = self.start.get("datasets")
        if known is None:
            return "start of unknown data"
        tested = dict.fromkeys(row.dataset for row in self.rows if row.target != "source")
        saw = [name for name in tested if name in known]
        start = self.start.get("reconstructs")
        told = "" if mark_of(self.fidelity) else ", reconstruction"  # the method's own mark says it
        marks = [f"start of {start}{told}" if start else "", f"start saw {' and '.join(saw)}" if saw else ""]
        return ", ".join(filter(None, marks))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read a result, whose every field is checked.

        Args:
            path: a run's folder, or its ``result.json``.

        Raises:
            VlpromptError: as ``read_result``.
        """
        place = Path(path).expanduser()
        return read_result(place / RESULT if place.is_dir() else place)

    def to_frame(self) -> pandas.DataFrame:
        """Return a line for each test as a pandas ``DataFrame``; ``load_results`` makes one of many runs.

        Columns: method, dataset, protocol, shots, seed; target, tested_on, classes, images; accuracy, zero_shot, gain
        and the other numbers of ``Row``, in percent; then what stands behind them, see ``vlprompt.load_results``.

        Raises:
            VlpromptError: pandas is not installed.
        """
        return data_frame(tests_of(self))

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
        VlpromptError: there is none, a field is not of its kind or range, it was changed since it was written, or it is
            of another run than ``config.yaml`` beside it.
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
    """The result that JSON values stand for; the first field that is wrong is one sentence."""
    if not data.get("rows"):
        raise VlpromptError(f"{path} is not a result file: it has no rows")
    result = read_as(Result, data, str(path))
    for row in result.rows:
        _check_counts(row, path)
    return result


def _check_counts(row: Row, path: Path) -> None:
    """Refuse counts of classes and bins that do not go with each other."""
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
    """Refuse a result that was put into another run's folder."""
    settings = path.parent / SETTINGS
    if path.name == RESULT and settings.is_file():
        _check_settings(result, settings, path)


def _check_settings(result: Result, settings: Path, path: Path) -> None:
    """Raise a ``VlpromptError`` unless ``config.yaml`` beside a result has the settings of its run.

    Args:
        result: what was read.
        settings: the settings' file.
        path: of the result.
    """
    if result.files.get(SETTINGS) == sha256_file(settings):
        return
    beside = read_settings(settings)
    key = differing_setting(result.config, beside)
    if key:
        raise VlpromptError(
            f"{path} is of another run than {settings.name} beside it ({key}={result.config.get(key)} in the result, "
            f"{beside.get(key)} in the settings): one of the two was changed or belongs elsewhere"
        )


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


__getattr__, __dir__ = lazy_exports(__name__)
