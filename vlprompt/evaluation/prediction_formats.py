"""Writing predictions: as a table to read, JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from vlprompt.base.sanitizing import csv_cell, json_line, printable
from vlprompt.errors import VlpromptError, nearest
from vlprompt.learner.facts import NOTES

if TYPE_CHECKING:
    from vlprompt.evaluation.prediction import Prediction

FORMATS = ("table", "jsonl", "csv", "parquet")
ROWS = 10_000  # of a row group in a Parquet file, which is in memory as a whole


def write_predictions(
    predictions: Iterable[Prediction], file: TextIO, form: str = "table", width: int = 0, unsure: str | None = None
) -> int:
    """Write predictions as they come, and return their number.

    If images were not predicted alone, a line before the table, or the field ``predicts`` of each image, says so.
    Control characters are escaped.

    Args:
        predictions: of images that were given as paths.
        file: open for writing text.
        form: ``table``, one line per image for people; ``jsonl``, one object per image with ``image``, ``classes`` and
            ``probabilities``; or ``csv``, one row per image with ``image,class,probability,class_2,probability_2,…``,
            where an apostrophe precedes text that a spreadsheet would take for a formula. ``write_parquet`` writes
            ``parquet``.
        width: the width of a class name in a table, in characters.
        unsure: if images may be left unanswered, the word for that. In a table it precedes the class, which is then in
            brackets; in csv it is the last column, ``answer``; in jsonl, ``answer`` is then null.
    """
    count, rows = 0, csv.writer(file, lineterminator="\n")
    for count, each in enumerate(predictions, start=1):
        image, probabilities = _shown(each.image), [round(p, 6) for p in each.probabilities]
        mark: dict[str, str | None] = {} if each.predicts == "alone" else {"predicts": each.predicts}
        prefix = f"{unsure:<{width}}  " if unsure is not None and not each.sure else ""
        if unsure is not None:
            mark["answer"] = each.answer
        if form == "jsonl":
            fields = {"image": image, "classes": each.classes, "probabilities": probabilities, **mark}
            file.write(json_line(json.dumps(fields, ensure_ascii=False)) + "\n")
        elif form == "csv":
            cells = _cells(each, unsure)
            if count == 1:
                rows.writerow(cells)
            rows.writerow(map(csv_cell, cells.values()))
        else:
            if count == 1 and "predicts" in mark:
                file.write(f"{NOTES[each.predicts]}\n")
            words = [f"{printable(n):<{width}} {p:>6.1%}" for n, p in zip(each.classes, probabilities, strict=True)]
            shown = f"{prefix}({'  '.join(words)})" if prefix else "  ".join(words)
            file.write(f"{shown}  {printable(image)}\n")
    return count


def write_parquet(predictions: Iterable[Prediction], file: BinaryIO, unsure: str | None = None) -> int:
    """Write predictions as a Parquet file with the columns of ``write_predictions``'s CSV, and return their number.

    Raises:
        VlpromptError: pyarrow is missing.
    """
    check_format("parquet")
    import pyarrow
    from pyarrow import parquet

    count, writer, remaining = 0, None, iter(predictions)
    text = dict.fromkeys(("image", "predicts", "answer"), pyarrow.string())
    try:
        while group := [_cells(each, unsure) for each in islice(remaining, ROWS)]:
            types = {name: text.get(name) or pyarrow.from_numpy_dtype("f4") for name in group[0]}
            types |= {name: pyarrow.string() for name in types if name.startswith("class")}
            schema = pyarrow.schema(list(types.items()))
            writer = writer or parquet.ParquetWriter(file, schema)
            writer.write_table(pyarrow.Table.from_pylist(group, schema))
            count += len(group)
        if writer is None:
            parquet.write_table(pyarrow.table({"image": pyarrow.array([], pyarrow.string())}), file)
    finally:
        if writer is not None:
            writer.close()
    return count


def check_format(form: str) -> None:
    """Raise a ``VlpromptError``, before any image is read, for a format that is unknown or needs a package."""
    if form not in FORMATS:
        raise VlpromptError(f"unknown format '{form}': {nearest(form, FORMATS)}")
    if form == "parquet" and find_spec("pyarrow") is None:
        raise VlpromptError('Parquet needs pyarrow: pip install "vlprompt[parquet]", or write csv or jsonl')


def _cells(each: Prediction, unsure: str | None) -> dict[str, Any]:
    """The cells of a prediction's row, by column."""
    cells: dict[str, Any] = {"image": _shown(each.image)}
    for rank, (name, probability) in enumerate(zip(each.classes, each.probabilities, strict=True), start=1):
        suffix = "" if rank == 1 else f"_{rank}"
        cells |= {f"class{suffix}": name, f"probability{suffix}": round(probability, 6)}
    if each.predicts != "alone":
        cells["predicts"] = each.predicts
    return cells if unsure is None else cells | {"answer": each.answer if each.sure else unsure}


def _shown(path: str) -> str:
    """A path as text, with bytes that are not UTF-8 replaced."""
    return os.fsencode(path).decode("utf-8", "replace")
