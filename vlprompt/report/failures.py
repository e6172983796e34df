"""Runs without a result: failed ones, with their error, and unfinished ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vlprompt.base.layout import FAILED, RESULT, SETTINGS
from vlprompt.report.cells import Cell
from vlprompt.report.tables import Column, Line, Section, Table


@dataclass(frozen=True)
class Failure:
    """A run without a result: its name, the reason, and its folder."""

    run: str
    reason: str
    folder: Path


def find_failures(paths: Iterable[str | Path]) -> list[Failure]:
    """Return the runs under folders that have failed or have not finished, in the order of the paths."""
    failures: dict[Path, Failure] = {}
    for top in map(Path, paths):
        for folder, files in sorted(_folders(top)):
            if RESULT in files:
                continue
            if FAILED in files:
                failures.setdefault(folder, _read(folder))
            elif SETTINGS in files:
                failures.setdefault(folder, Failure(folder.name, "not finished", folder))
    return list(failures.values())


def _folders(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below one, each with the names of its files."""
    for parent, _, files in os.walk(top):
        yield Path(parent), files


def _read(folder: Path) -> Failure:
    """Read the error of a failed run."""
    try:
        data = json.loads((folder / FAILED).read_text(encoding="utf-8"))
        return Failure(str(data["run"]), str(data["error"]), folder)
    except (OSError, ValueError, KeyError, TypeError):
        return Failure(folder.name, f"failed; {FAILED} cannot be read", folder)


def failure_table(failures: Iterable[Failure]) -> Table | None:
    """Return a table of runs without a result, by reason; None if there are none."""
    by_reason: dict[str, list[Line]] = {}
    for f in failures:
        by_reason.setdefault(f.reason, []).append(Line(f.run, (Cell(text=str(f.folder)),)))
    if not by_reason:
        return None
    sections = tuple(Section(reason, tuple(lines)) for reason, lines in by_reason.items())
    title = f"runs without a result: {sum(len(section.lines) for section in sections)}"
    caption = "These runs are in no table; the same sweep again tries them anew."
    return Table(title, "failures", caption, (Column("folder", ranked=False),), sections, seeds=False)
