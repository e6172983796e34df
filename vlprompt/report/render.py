"""Tables as text: terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Column as RichColumn
from rich.table import Table as RichTable
from rich.text import Text

from vlprompt.base.sanitizing import csv_cell, printable
from vlprompt.report.cells import Cell
from vlprompt.report.tables import LONG, Column, Line, Style, Table, lines_of

LABEL_WIDTH = 40  # of a terminal's first column, at most


def number(cell: Cell, style: Style = LONG) -> str:
    """Return a cell's number with its deviation, gain and marks, or its text if it has no number.

    >>> number(Cell(33.702, std=1.017)), number(Cell(-0.5, signed=True)), number(Cell(1.0, missing="no seed 3"))
    ('33.70 ± 1.02', '-0.50', '1.00 †')
    """
    if cell.value is None:
        return cell.text
    text = f"{cell.value:{'+' if cell.signed else ''}.{style.decimals}f}"
    if style.std and cell.std is not None:
        text += f" ± {cell.std:.{style.decimals}f}"
    if cell.gain is not None:
        text += f" {gain(cell, style)}"
    return text + cell.mark + (" †" if cell.missing else "")


def gain(cell: Cell, style: Style) -> str:
    """Return the size of a cell's gain behind an arrow: ``↑1.50``."""
    points = round(cell.gain or 0.0, style.decimals)
    return f"{'↑' if points > 0 else '↓' if points < 0 else '='}{abs(points):.{style.decimals}f}"


def interval(cell: Cell, style: Style = LONG) -> str:
    """Return a cell's 95% interval, ``[82.10, 84.00]``; empty if it has none or the style leaves it out."""
    if not cell.interval or not style.interval:
        return ""
    return f"[{cell.interval[0]:.{style.decimals}f}, {cell.interval[1]:.{style.decimals}f}]"


def seeds(line: Line) -> str:
    """Return how many seeds a row's numbers are over: ``3``, ``1–3`` if they differ, or a dash for none."""
    counts = sorted({len(cell.seeds) for cell in line.cells if cell.seeds})
    return "–" if not counts else str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def heading(column: Column) -> str:
    """Return a column's heading behind the one that it shares, with its number of test images."""
    named = " ".join(filter(None, [column.over, column.heading]))
    return named if column.n_images is None else f"{named} ({column.n_images:,})"


def as_terminal(tables: Sequence[Table], width: int) -> Group:
    """Return tables for ``rich``; columns that do not fit in ``width`` characters follow below."""
    return Group(*(part for table in tables for part in _terminal_parts(table, width)))


def _terminal_parts(table: Table, width: int) -> Iterator[RenderableType]:
    yield _text(table.title, style="bold")
    if table.kind == "failures":
        yield from _terminal_list(table)
    else:
        for columns in _fitting(table, width):
            yield _terminal_block(table, columns)
    yield _text(table.caption, style="dim")
    yield from map(_text, table.notes)
    yield _text("")


def _fitting(table: Table, width: int) -> Iterator[slice]:
    """Split the columns into blocks that are no wider than the terminal."""
    lines = lines_of(table)
    labels = [line.label for line in lines] + [section.heading for section in table.sections]
    left = min(max(map(len, labels)), LABEL_WIDTH) + (10 if table.seeds else 2)
    start, used = 0, left
    for i, column in enumerate(table.columns):
        texts = [write(line.cells[i], table.style) for line in lines for write in (number, interval)]
        wide = max(map(len, [column.over, column.heading, f"{column.n_images or 0:,} images", *texts])) + 3
        if i > start and used + wide >= width:
            yield slice(start, i)
            start, used = i, left
        used += wide
    yield slice(start, len(table.columns))


def _terminal_list(table: Table) -> Iterator[RenderableType]:
    """Each section as a heading with its rows as indented lines, for tables whose cells are sentences."""
    for section in table.sections:
        yield _text(section.heading)
        for line in section.lines:
            yield _text(f"  {line.label}  {' '.join(cell.text for cell in line.cells)}")


def _terminal_block(table: Table, columns: slice) -> RichTable:
    shown = RichTable(RichColumn(max_width=LABEL_WIDTH))
    if table.seeds:
        shown.add_column("seeds", justify="right")
    for column in table.columns[columns]:
        images = "" if column.n_images is None else f"\n{column.n_images:,} images"
        over = f"{column.over}\n" if column.over else ""
        shown.add_column(over + column.heading + images, justify="right", no_wrap=True)
    blanks = [""] * (len(table.columns[columns]) + table.seeds)
    for section in table.sections:
        if section.heading:
            shown.add_section()
            shown.add_row(_text(section.heading, style="italic"), *blanks)
        for line in section.lines:
            cells = (_terminal_cell(cell, table.style) for cell in line.cells[columns])
            shown.add_row(_text(line.label), *([seeds(line)] if table.seeds else []), *cells)
    return shown


def _terminal_cell(cell: Cell, style: Style) -> Text:
    emphasis = "bold" if cell.best else "underline" if cell.second else ""
    return _text("\n".join(filter(None, [number(cell, style), interval(cell, style)])), emphasis)


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text, keep="\n"), style)


def print_terminal(tables: Sequence[Table], console: Console) -> None:
    """Print tables in the width of the console."""
    console.print(as_terminal(tables, console.width))


def as_markdown(tables: Sequence[Table]) -> str:
    """Return tables as Markdown, each under a heading; the best numbers are bold."""
    return "\n".join(line for table in tables for line in _markdown(table))


def _markdown(table: Table) -> Iterator[str]:
    yield from (f"### {_plain(table.title)}", "", _plain(table.caption), "")
    head = ["", *(["seeds"] if table.seeds else []), *(_plain(heading(column)) for column in table.columns)]
    for section in table.sections:
        if section.heading:
            yield from (f"**{_plain(section.heading)}**", "")
        yield _row(head)
        yield _row(["---", *["---:"] * (len(head) - 1)])
        for line in section.lines:
            cells = (
                " ".join(filter(None, [_markdown_number(c, table.style), interval(c, table.style)])) for c in line.cells
            )
            yield _row([_plain(line.label), *([seeds(line)] if table.seeds else []), *cells])
        yield ""
    for note in table.notes:
        yield from (_plain(note), "")


def _markdown_number(cell: Cell, style: Style) -> str:
    text = number(cell, style)
    return f"**{text}**" if cell.best else f"<u>{_plain(text)}</u>" if cell.second else _plain(text)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text on one line with Markdown's own characters escaped."""
    text = printable(" ".join(text.splitlines()))
    for sign in "\\`*_|<[":
        text = text.replace(sign, f"\\{sign}")
    return text


CSV_COLUMNS = (
    *("table", "kind", "backbone", "shots", "source", "section", "row", "column", "value", "std", "low", "high"),
    *("seeds", "n_seeds", "n_images", "best", "missing", "text"),
)


def as_csv(tables: Sequence[Table]) -> str:
    """Return tables in long form: one CSV row per cell, with unrounded numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        c = table.conditions
        where = [table.title, table.kind, c.get("backbone", ""), c.get("shots", ""), c.get("source", "")]
        for section in table.sections:
            for line in section.lines:
                for column, cell in zip(table.columns, line.cells, strict=True):
                    cells = [*where, section.heading, line.label, column.heading, *_csv_cell(cell)]
                    writer.writerow(map(csv_cell, cells))
    return out.getvalue()


def _csv_cell(cell: Cell) -> list[Any]:
    low, high = cell.interval or ("", "")
    numbers = ["" if value is None else value for value in (cell.value, cell.std)]
    seeds = " ".join(map(str, cell.seeds))
    return [*numbers, low, high, seeds, len(cell.seeds) or "", cell.n_images or "", cell.best, cell.missing, cell.text]
