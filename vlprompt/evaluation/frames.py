"""Results as rows of a data frame: the names of the columns and their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vlprompt.errors import VlpromptError
from vlprompt.evaluation.averages import average_rows, harmonic_mean, sides_of
from vlprompt.learner.facts import MARKS, mark_of

if TYPE_CHECKING:
    import pandas

    from vlprompt.evaluation.results import Result

PREFIX = "zero_shot_"
H = "H"  # the harmonic mean of two tests, as tables of the field call it
MEASURED = ("macro_accuracy", "zero_shot_macro", "top5", "zero_shot_top5", "ece", "zero_shot_ece", "familiar")
Line = dict[str, Any]


def data_frame(lines: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """Return lines as a pandas ``DataFrame``, with a column for each key that any of them has.

    Raises:
        VlpromptError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise VlpromptError('a DataFrame needs pandas: pip install "vlprompt[pandas]"') from None
    lines = list(lines)
    names = dict.fromkeys(name for line in lines for name in line)
    return pandas.DataFrame([dict(line) for line in lines], columns=list(names))


def lines_of_tests(result: Result) -> list[Line]:
    """One line per test of a run."""
    return [
        run_columns(result)
        | {"target": row.target, "tested_on": row.dataset, "classes": row.n_classes, "images": row.n_images}
        | {"accuracy": row.accuracy, "zero_shot": row.zero_shot, "gain": row.accuracy - row.zero_shot}
        | {name: getattr(row, name) for name in MEASURED}
        | provenance_columns(result)
        for row in result.rows
    ]


def line_of_run(result: Result) -> Line:
    """The line of a run, with a column for each of its tests."""
    rule = next((name for name in result.averages if not name.startswith(PREFIX)), None)
    learnt = target_columns({row.target: row.accuracy for row in result.rows}, rule)
    frozen = target_columns({row.target: row.zero_shot for row in result.rows}, rule)
    zero_shot = {zero_shot_name(name): frozen[name] for name in learnt if name in ("accuracy", *_sides(learnt))}
    return join_columns(run_columns(result), learnt | zero_shot, provenance_columns(result))


def join_columns(run: Line, numbers: Line, provenance: Line) -> Line:
    """A line of three parts; a test with the name of another column gets ``(test)`` after its name."""
    taken = {*run, *provenance}
    return run | {f"{name} (test)" if name in taken else name: each for name, each in numbers.items()} | provenance


def target_columns(values: Mapping[str, float], rule: str | None) -> Line:
    """The columns of a run's tests, and of their average.

    Args:
        values: one number per test, by target.
        rule: the protocol's average, see ``average_rows``.

    >>> target_columns({"base": 80.0, "new": 60.0}, "harmonic_mean")
    {'base': 80.0, 'new': 60.0, 'H': 68.57142857142857}
    >>> target_columns({"all": 70.0}, None)
    {'accuracy': 70.0}
    """
    sides = sides_of(values)
    if sides:
        return {**values, H: harmonic_mean(*(values[side] for side in sides))}
    if len(values) == 1:
        return {"accuracy": next(iter(values.values()))}
    return {"accuracy": average_rows(rule, values).get(rule or ""), **values}


def _sides(names: Iterable[str]) -> tuple[str, ...]:
    """The columns of two tests and their harmonic mean; empty if there is none."""
    sides = sides_of(names)
    return (*sides, H) if sides else ()


def zero_shot_name(name: str) -> str:
    """The column of zero-shot CLIP's number, for a column of the learner's."""
    return "zero_shot" if name == "accuracy" else f"{PREFIX}{name}"


def run_columns(result: Result) -> Line:
    """The columns that identify a run."""
    return {
        "method": result.called,
        "dataset": result.dataset,
        "protocol": result.protocol,
        "shots": result.shots,
        "seed": result.seed,
    }


def provenance_columns(result: Result) -> Line:
    """The columns on where a number comes from, and on what was used besides labelled training images."""
    marks = (MARKS[result.predicts], mark_of(result.fidelity), result.start_mark)
    return {
        "marks": ", ".join(filter(None, marks)),
        "saw": None if result.saw is None else ", ".join(result.saw),
        "selection": result.selection,
        "backbone": result.backbone.get("architecture"),
        "pretrained": result.backbone.get("pretrained"),
        "precision": result.backbone.get("precision"),
        "recipe": result.recipe.get("name") if result.recipe else None,
        "recipe_source": result.recipe.get("source") if result.recipe else None,
        "parameters": result.n_parameters,
        "train_seconds": result.times.get("train"),
        "id": result.id,
        "created": result.created,
    }
