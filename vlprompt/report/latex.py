"""Tables as LaTeX: long ones for an appendix, and those in the layout of papers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from vlprompt.base.sanitizing import printable
from vlprompt.report.cells import Cell
from vlprompt.report.render import gain, heading, interval, number, seeds
from vlprompt.report.tables import Column, Style, Table, lines_of

WIDEST = 12  # largest number of columns side by side in the layout of papers

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
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "∗": "$^{*}$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def as_latex(tables: Sequence[Table]) -> str:
    """Return tables as LaTeX, which needs ``\\usepackage{booktabs}``; intervals are below the numbers."""
    named: dict[str, int] = {}
    return "\n".join(
        line for table in tables for line in (_paper(table, named) if table.kind == "paper" else _long(table))
    )


def _long(table: Table) -> Iterator[str]:
    """Yield the lines of a table with all its sections."""
    words = any(cell.text and len(cell.text) > 30 for line in lines_of(table) for cell in line.cells)
    kinds = [*(["r"] if table.seeds else []), *(["l" if words else "r"] * len(table.columns))]
    yield from (r"\begin{table}", r"\centering", r"\small", rf"\caption{{{_tex(f'{table.title}. {table.caption}')}}}")
    yield rf"\begin{{tabular}}{{l{''.join(kinds)}}}"
    yield r"\toprule"
    head = ["", *(["seeds"] if table.seeds else []), *map(heading, table.columns)]
    yield _row([*map(_tex, head)])
    for section in table.sections:
        yield r"\midrule"
        if section.heading:
            yield rf"\multicolumn{{{len(head)}}}{{l}}{{\emph{{{_tex(section.heading)}}}}} \\"
        for line in section.lines:
            cells = (_number(cell, table.style) for cell in line.cells)
            yield _row([_tex(line.label), *([_tex(seeds(line))] if table.seeds else []), *cells])
            if any(interval(cell, table.style) for cell in line.cells):
                yield _row(["", *([""] if table.seeds else []), *_intervals(line.cells, table.style)])
    yield from (r"\bottomrule", r"\end{tabular}")
    for note in table.notes:
        yield rf"\par\footnotesize {_tex(note)}"
    yield from (r"\end{table}", "")


def _paper(table: Table, named: dict[str, int]) -> Iterator[str]:
    """Yield the lines of a float with a label; its columns may need several tabulars below each other."""
    label = re.sub(r"\W+", "-", table.title.lower()).strip("-")
    named[label] = named.get(label, 0) + 1
    label += f"-{named[label]}" if named[label] > 1 else ""
    wide = "*" if len(table.columns) > WIDEST // 2 else ""
    yield from (rf"\begin{{table{wide}}}", r"\centering", r"\small", r"\setlength{\tabcolsep}{4pt}")
    yield from (rf"\caption{{{_tex(table.caption)}}}", rf"\label{{tab:{label}}}")
    for i, part in enumerate(_parts(table.columns)):
        if i:
            yield r"\par\smallskip"
        yield from _tabular(table, part)
    for note in table.notes:
        yield rf"\par\footnotesize {_tex(note)}"
    yield from (rf"\end{{table{wide}}}", "")


def _parts(columns: Sequence[Column]) -> Iterator[list[int]]:
    """Divide columns into tabulars, without splitting a block of columns if it fits into one."""
    part: list[int] = []
    for _, block in groupby(range(len(columns)), lambda i: columns[i].over):
        members = [*block]
        if part and len(part) + len(members) > WIDEST:
            yield part
            part = []
        while len(members) > WIDEST:
            yield members[:WIDEST]
            members = members[WIDEST:]
        part += members
    if part:
        yield part


def _tabular(table: Table, part: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a tabular with some of the columns."""
    blocks = [(over, len([*members])) for over, members in groupby(table.columns[i].over for i in part)]
    yield rf"\begin{{tabular}}{{l{''.join('c' * n for _, n in blocks)}}}"
    yield r"\toprule"
    if any(over for over, _ in blocks):
        yield _row(["", *(rf"\multicolumn{{{n}}}{{c}}{{{_tex(over)}}}" for over, n in blocks)])
        yield " ".join(_rules(blocks))
    yield _row(["", *(_tex(table.columns[i].heading) for i in part)])
    yield r"\midrule"
    for line in lines_of(table):
        cells = [line.cells[i] for i in part]
        yield _row([_tex(line.label), *(_number(cell, table.style) for cell in cells)])
        if any(interval(cell, table.style) for cell in cells):
            yield _row(["", *_intervals(cells, table.style)])
    yield from (r"\bottomrule", r"\end{tabular}")


def _rules(blocks: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Yield the rules below the headings of blocks, given heading and number of columns of each."""
    start = 2
    for over, n in blocks:
        if over:
            yield rf"\cmidrule(lr){{{start}-{start + n - 1}}}"
        start += n


def _number(cell: Cell, style: Style) -> str:
    """A cell's number, bold if it is the best and underlined if it is the second best."""
    text = _tex(number(replace(cell, gain=None), style))
    text = rf"\textbf{{{text}}}" if cell.best else rf"\underline{{{text}}}" if cell.second else text
    return text if cell.gain is None else rf"{text} {{\scriptsize {_tex(gain(cell, style))}}}"


def _intervals(cells: Sequence[Cell], style: Style) -> Iterator[str]:
    """Yield the interval of each cell."""
    for cell in cells:
        text = interval(cell, style)
        yield rf"{{\scriptsize {text}}}" if text else ""


def _tex(text: str) -> str:
    """Escape what LaTeX would interpret."""
    return "".join(LATEX.get(sign, sign) for sign in printable(text))


def _row(cells: Sequence[str]) -> str:
    # a bracket at the start of a row would be taken for an option of the line break before it
    return rf"{' & '.join(cells)} \\"
