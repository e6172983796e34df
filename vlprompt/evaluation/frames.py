"""Results as lines of a table, named so that a reader of the table knows what each number is."""

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
    """Return lines as a pandas ``DataFrame``, a column for each name that comes in any of them.

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


def tests_of(result: Result) -> list[Line]:
    """A line for each test of a run."""
    return [
        what_was_run(result)
        | {"target": row.target, "tested_on": row.dataset, "classes": row.n_classes, "images": row.n_images}
        | {"accuracy": row.accuracy, "zero_shot": row.zero_shot, "gain": row.accuracy - row.zero_shot}
        | {name: getattr(row, name) for name in MEASURED}
        | what_stands_behind(result)
        for row in result.rows
    ]


def run_of(result: Result) -> Line:
    """The one line of a run: its tests side by side."""
    rule = next((name for name in result.averages if not name.startswith(PREFIX)), None)
    learnt = side_by_side({row.target: row.accuracy for row in result.rows}, rule)
    frozen = side_by_side({row.target: row.zero_shot for row in result.rows}, rule)
    told = {zero_shot_name(name): frozen[name] for name in learnt if name in ("accuracy", *_sides(learnt))}
    return line_of(what_was_run(result), learnt | told, what_stands_behind(result))


def line_of(run: Line, numbers: Line, behind: Line) -> Line:
    """A line of three parts; a test that is called as a column of the others is told from it."""
    taken = {*run, *behind}
    return run | {f"{name} (test)" if name in taken else name: each for name, each in numbers.items()} | behind


def side_by_side(values: Mapping[str, float], rule: str | None) -> Line:
    """The numbers of a run's tests under the names that they have in its line.

    Args:
        values: by target.
        rule: the protocol's average.

    >>> side_by_side({"base": 80.0, "new": 60.0}, "harmonic_mean")
    {'base': 80.0, 'new': 60.0, 'H': 68.57142857142857}
    >>> side_by_side({"all": 70.0}, None)
    {'accuracy': 70.0}
    """
    sides = sides_of(values)
    if sides:
        return {**values, H: harmonic_mean(*(values[side] for side in sides))}
    if len(values) == 1:
        return {"accuracy": next(iter(values.values()))}
    return {"accuracy": average_rows(rule, values).get(rule or ""), **values}


def _sides(names: Iterable[str]) -> tuple[str, ...]:
    """The two tests that have a harmonic mean, and that; nothing where there are none such."""
    sides = sides_of(names)
    return (*sides, H) if sides else ()


def zero_shot_name(name: str) -> str:
    """What zero-shot's number is called beside a learner's."""
    return "zero_shot" if name == "accuracy" else f"{PREFIX}{name}"


def what_was_run(result: Result) -> Line:
    """The columns that tell runs apart."""
    return {
        "method": result.called,
        "dataset": result.dataset,
        "protocol": result.protocol,
        "shots": result.shots,
        "seed": result.seed,
    }


def what_stands_behind(result: Result) -> Line:
    """The columns on where a number is from and what it owes to more than labelled training images."""
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
