"""Tables of the Robin Hood effect: the gains of classes in relation to their zero-shot accuracies."""

from __future__ import annotations

from collections.abc import Sequence

from vlprompt.evaluation.robin_hood import RobinHood, robin_hood
from vlprompt.report.cells import Cell
from vlprompt.report.groups import ZERO_SHOT, Group, Key, Measured, say_shots
from vlprompt.report.pairs import changes
from vlprompt.report.tables import Column, Line, Section, Table, say_conditions

COLUMNS = ("slope", "by chance", "Spearman's rho", "poorer half", "richer half", "classes")
CAPTION = (
    "gain of each class over zero-shot against its zero-shot accuracy, means over seeds; {}. Slope: points of gain a "
    "point of zero-shot accuracy, least squares; below zero the classes that zero-shot is poor at gain more, at -1 all "
    "end alike. By chance: as far as the draw of test images alone could take it. Halves: mean gain in percentage "
    "points of the classes that zero-shot is worse and better at."
)


def robin_hood_tables(groups: Sequence[Group]) -> list[Table]:
    """Return a table for each group that has counts by class, with a section per test and a row per method.

    If a group has several numbers of shots, the largest is used.
    """
    return [table for group in groups if (table := _table(group)) is not None]


def _table(group: Group) -> Table | None:
    """The table of a group; None without counts by class."""
    sections = [Section(f"{key[0]}: {key[1]}", lines) for key in group.telling_keys if (lines := _lines(group, key))]
    if not sections:
        return None
    shots = group.telling_keys[0][2]
    title = f"who gains: {group.title}" + (f", {say_shots(shots)}" if shots else "")
    columns = tuple(Column(name, ranked=False) for name in COLUMNS)
    caption = CAPTION.format(say_conditions(group))
    return Table(title, "robin_hood", caption, columns, tuple(sections), conditions=group.shown_conditions)


def robin_hoods(group: Group, key: Key) -> dict[str, RobinHood]:
    """The effect of each method on a test, by the method's label; methods with fewer than five classes are left out."""
    effects = {label: robin_hood(changes(group, label, key)) for label in group.values if label != ZERO_SHOT}
    return {label: effect for label, effect in effects.items() if effect is not None}


def _lines(group: Group, key: Key) -> tuple[Line, ...]:
    return tuple(
        Line(label, _cells(effect, group.values[label][key])) for label, effect in robin_hoods(group, key).items()
    )


def _cells(effect: RobinHood, tests: Sequence[Measured]) -> tuple[Cell, ...]:
    seeds, runs = tuple(test.seed for test in tests), tuple(test.run for test in tests)
    numbers = (effect.slope, effect.by_chance, effect.rho, effect.poorer, effect.richer)
    cells = (Cell(text="–") if n is None else Cell(n, signed=True, seeds=seeds, runs=runs) for n in numbers)
    return (*cells, Cell(text=str(effect.n_classes)))
