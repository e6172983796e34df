"""Tables as text: terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Column as RichColumn
from rich.table import Table as RichTable
from rich.text import Text

from vlprompt.base.shown import csv_cell, printable
from vlprompt.report.cells import Cell
from vlprompt.report.tables import Column, Line, Table

LABEL_WIDTH = 40  # of a terminal's first column, at most


def number(cell: Cell, std: bool = True) -> str:
    """Write a cell's number with its deviation and what marks it incomplete, or its text.

    >>> number(Cell(33.702, std=1.017)), number(Cell(-0.5, signed=True)), number(Cell(1.0, missing="no seed 3"))
    ('33.70 ± 1.02', '-0.50', '1.00 †')
    """
    if cell.value is None:
        return cell.text
    text = f"{cell.value:+.2f}" if cell.signed else f"{cell.value:.2f}"
    if std and cell.std is not None:
        text += f" ± {cell.std:.2f}"
    return f"{text} †" if cell.missing else text


def interval(cell: Cell) -> str:
    """Write a cell's 95% interval, or nothing."""
    return f"[{cell.interval[0]:.2f}, {cell.interval[1]:.2f}]" if cell.interval else ""


def seeds(line: Line) -> str:
    """Write how many seeds the numbers of a row are over."""
    counts = sorted({len(cell.seeds) for cell in line.cells if cell.seeds})
    return "–" if not counts else str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def heading(column: Column) -> str:
    """Write a column's heading with its number of test images."""
    return column.heading if column.n_images is None else f"{column.heading} ({column.n_images:,})"


def as_terminal(tables: Sequence[Table], width: int) -> Group:
    """Return tables for ``rich``; columns that do not fit follow below."""
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
    """Part the columns into blocks that are no wider than the terminal."""
    lines = _lines(table)
    labels = [line.label for line in lines] + [section.heading for section in table.sections]
    left = min(max(map(len, labels)), LABEL_WIDTH) + (10 if table.seeds else 2)
    start, used = 0, left
    for i, column in enumerate(table.columns):
        texts = [text for line in lines for text in (number(line.cells[i]), interval(line.cells[i]))]
        wide = max(map(len, [column.heading, f"{column.n_images or 0:,} images", *texts])) + 3
        if i > start and used + wide >= width:
            yield slice(start, i)
            start, used = i, left
        used += wide
    yield slice(start, len(table.columns))


def _terminal_list(table: Table) -> Iterator[RenderableType]:
    """Sentences are no columns: a heading and what is under it."""
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
        shown.add_column(column.heading + images, justify="right", no_wrap=True)
    blanks = [""] * (len(table.columns[columns]) + table.seeds)
    for section in table.sections:
        if section.heading:
            shown.add_section()
            shown.add_row(_text(section.heading, style="italic"), *blanks)
        for line in section.lines:
            cells = (
                _text("\n".join(filter(None, [number(cell), interval(cell)])), style="bold" if cell.best else "")
                for cell in line.cells[columns]
            )
            shown.add_row(_text(line.label), *([seeds(line)] if table.seeds else []), *cells)
    return shown


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text, keep="\n"), style)


def _lines(table: Table) -> list[Line]:
    return [line for section in table.sections for line in section.lines]


def print_terminal(tables: Sequence[Table], console: Console) -> None:
    """Print tables, as wide as the console."""
    console.print(as_terminal(tables, console.width))


def as_markdown(tables: Sequence[Table]) -> str:
    """Return tables as Markdown, a heading each; the best in bold."""
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
                " ".join(filter(None, [f"**{number(c)}**" if c.best else _plain(number(c)), interval(c)]))
                for c in line.cells
            )
            yield _row([_plain(line.label), *([seeds(line)] if table.seeds else []), *cells])
        yield ""
    for note in table.notes:
        yield from (_plain(note), "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Escape what Markdown would take for its own."""
    text = printable(" ".join(text.splitlines()))
    for sign in "\\`*_|<[":
        text = text.replace(sign, f"\\{sign}")
    return text


LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "–": "--",
    "·": r"$\cdot$",
    "→": r"$\to$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def as_latex(tables: Sequence[Table]) -> str:
    """Return tables as LaTeX for ``\\usepackage{booktabs}``: intervals below the numbers, the best in bold."""
    return "\n".join(line for table in tables for line in _latex(table))


def _latex(table: Table) -> Iterator[str]:
    words = any(cell.text and len(cell.text) > 30 for line in _lines(table) for cell in line.cells)
    kinds = [*(["r"] if table.seeds else []), *(["l" if words else "r"] * len(table.columns))]
    yield from (r"\begin{table}", r"\centering", r"\small", rf"\caption{{{_tex(f'{table.title}. {table.caption}')}}}")
    yield rf"\begin{{tabular}}{{l{''.join(kinds)}}}"
    yield r"\toprule"
    head = ["", *(["seeds"] if table.seeds else []), *map(heading, table.columns)]
    yield _tex_row([*map(_tex, head)])
    for section in table.sections:
        yield r"\midrule"
        if section.heading:
            yield rf"\multicolumn{{{len(head)}}}{{l}}{{\emph{{{_tex(section.heading)}}}}} \\"
        for line in section.lines:
            cells = (rf"\textbf{{{_tex(number(c))}}}" if c.best else _tex(number(c)) for c in line.cells)
            yield _tex_row([_tex(line.label), *([_tex(seeds(line))] if table.seeds else []), *cells])
            if any(cell.interval for cell in line.cells):
                below = (rf"{{\scriptsize {interval(c)}}}" if c.interval else "" for c in line.cells)
                yield _tex_row(["", *([""] if table.seeds else []), *below])
    yield from (r"\bottomrule", r"\end{tabular}")
    for note in table.notes:
        yield rf"\par\footnotesize {_tex(note)}"
    yield from (r"\end{table}", "")


def _tex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in printable(text))


def _tex_row(cells: Sequence[str]) -> str:
    row = " & ".join(cells)
    # a bracket at the start of a row would be taken for an option of the line break before it
    return rf"{row} \\"


CSV_COLUMNS = (
    *("table", "kind", "backbone", "shots", "source", "section", "row", "column", "value", "std", "low", "high"),
    *("seeds", "n_seeds", "n_images", "best", "missing", "text"),
)


def as_csv(tables: Sequence[Table]) -> str:
    """Return tables in long form: one row a cell, numbers in full."""
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
    told = " ".join(map(str, cell.seeds))
    return [*numbers, low, high, told, len(cell.seeds) or "", cell.n_images or "", cell.best, cell.missing, cell.text]
