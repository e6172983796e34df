"""Tables of your own, in the forms that common programs write: ``csv:PATH``."""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from datasets_registry.card import Card
from datasets_registry.readers.base import PART_NAMES, on_disk, readers, spaced_name, split_items
from vlprompt.base.files import is_relative_inside, read_text
from vlprompt.data.splits import PARTS, DatasetSplits, Item
from vlprompt.errors import VlpromptError

# Names of columns by role, in lower case and with underscores; the first of each takes precedence over the others.
HEADERS = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "imagepath"),
        *("image_file", "image_filename", "image_name", "img", "img_path", "img_name", "relative_path"),
    ),
    "label": (
        *("label", "labels", "label_id", "label_idx", "label_index", "class_id", "class_idx", "class_index"),
        *("class_label", "category_id", "target", "y"),
    ),
    "class": (
        *("class", "classes", "class_name", "classname", "category", "category_name", "label_name", "label_text"),
        *("target_name", "species", "caption"),
    ),
    "split": ("split", "partition", "subset"),
    "domain": ("domain",),
    "mask": ("mask", "mask_path", "mask_file", "mask_filename"),
}
DELIMITERS = ",;\t|"
MISSING = ("", "nan", "NaN", "<NA>", "#N/A")  # what programs write for a missing value
Rows = dict[int, dict[str, str]]  # values by line of the file, then by role


@readers.register("csv", takes_path=True)
def read_csv(card: Card, folder: Path, variant: str) -> DatasetSplits:
    """A table with columns of paths and of labels or classes, and optionally of splits, domains and region masks.

    ``variant`` is its path. Columns may have the usual names (``filename``, ``category``, ...) and be separated by
    commas, semicolons, tabs or bars; a column of labels that contains names is one of classes. Paths are below
    ``folder``, and may be absolute. Without class names, the labels are the names; without labels, they are numbered by
    the sorted class names. Without a split column, each class is split 50/20/30.
    """
    rows = _read_table(Path(variant))
    names = _class_names(rows, variant)
    labels = {name: label for label, name in enumerate(names)}
    tops = [os.path.abspath(folder), os.path.realpath(folder)]
    items: dict[str, list[Item]] = {part: [] for part in PARTS}
    unsplit: list[Item] = []
    for number, row in rows.items():
        where = f"line {number} of {variant}"
        label = int(row["label"]) if "label" in row else labels[spaced_name(row["class"])]
        mask = _relative(row["mask"], tops, where) if row.get("mask") else ""
        item = Item(_relative(row["path"], tops, where), label, names[label], row.get("domain", ""), mask)
        if "split" not in row:
            unsplit.append(item)
        elif row["split"].lower() in PART_NAMES:
            items[PART_NAMES[row["split"].lower()]].append(item)
        else:
            raise VlpromptError(f"{where} has the split '{row['split']:.40}', not train, val or test")
    source = "generated" if unsplit else "official"
    return on_disk(card, folder, names, split_items(unsplit) if unsplit else items, source=source)


def _relative(path: str, tops: Sequence[str], where: str) -> str:
    """Return a path relative to the image folder, whose absolute and resolved paths are ``tops``."""
    if "\\" in path and not os.path.exists(os.path.join(tops[0], path)):
        path = path.replace("\\", "/")  # written on Windows
    shown, hint = path, ""
    if os.path.isabs(path):
        spelt = (os.path.normpath(path), os.path.realpath(path))
        below = [os.path.relpath(p, top) for p in spelt for top in tops if p.startswith(os.path.join(top, ""))]
        path = below[0] if below else path
        hint = f" is not below {tops[0]} (data_root=DIR names the folder that holds the images)"
    path = path.removeprefix("./")
    if not is_relative_inside(path):
        raise VlpromptError(f"{where} leads out of the image folder: '{shown}'{hint}")
    return path


# From text to rows


def _read_table(path: Path) -> Rows:
    """Return the values of each line, without roles that no line has a value for."""
    try:
        text = read_text(path)
    except OSError as error:
        raise VlpromptError(f"the table {path} cannot be read ({error})") from error
    skipped, delimiters = 0, DELIMITERS
    if re.match(r"sep=.\n", text):  # a first line that Excel reads
        skipped, delimiters, text = 1, text[4], text[6:]
    skipped += len(text) - len(text.lstrip("\n"))
    lines = text.lstrip("\n").split("\n")
    delimiter = next((d for d in delimiters if _roles(lines[0], d, path)), None)
    if delimiter is None:
        raise VlpromptError(_no_columns(lines[0], path))
    roles, columns = _roles(lines[0], delimiter, path), len(_cells(lines[0], delimiter))
    rows: Rows = {}
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        next(reader)
        for cells in reader:
            number, cells = reader.line_num + skipped, [cell.strip() for cell in cells]
            if any(cells[columns:]):
                raise VlpromptError(
                    f"line {number} of {path} has more values than there are columns: quote values with '{delimiter}'"
                )
            row = {role: cells[i] if i < len(cells) else "" for role, i in roles.items()}
            if "\n" in "".join(row.values()):
                raise VlpromptError(f"line {number} of {path} ends a value that began above it: close its quotes")
            if any(cells):
                rows[number] = row
    except csv.Error as error:
        line = reader.line_num + skipped
        raise VlpromptError(f"line {line} of {path} cannot be read ({error}): look at its quotes") from error
    return _without_empty_columns(rows, path)


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def _roles(header: str, delimiter: str, path: Path) -> dict[str, int]:
    """Return the index of the column for each role; empty unless there are paths, and labels or classes."""
    names = [re.sub(r"[\s-]+", "_", cell.strip().lower()) for cell in _cells(header, delimiter)]
    roles: dict[str, int] = {}
    for role, known in HEADERS.items():
        found = [i for i, name in enumerate(names) if name in known]
        exact = [i for i in found if names[i] == role]
        if len(exact or found) > 1:
            raise VlpromptError(
                f"the columns {' and '.join(names[i] for i in found)} of the table {path} may both be the {role}: "
                f"call one of them {role}, and the other something else"
            )
        if found:
            roles[role] = (exact or found)[0]
    if "class" in roles and names[roles["class"]] == "class" and names[roles.get("label", -1)] != "label":
        roles.pop("label", None)  # such as a column "target" of something else
    return roles if "path" in roles and not roles.keys().isdisjoint({"label", "class"}) else {}


def _no_columns(header: str, path: Path) -> str:
    cells = max((_cells(header, delimiter) for delimiter in DELIMITERS), key=len)
    needed = "it needs path, and label or class (or caption); split (train, val, test) and domain are optional"
    if any(re.search(r"\.\w{2,5}$", cell) for cell in cells):
        return f"the first line of the table {path} has values and not the names of the columns: {needed}"
    return f"the table {path} has the columns {', '.join(cells)[:200] or '(none)'}: {needed}"


def _without_empty_columns(rows: Rows, path: Path) -> Rows:
    """Drop roles that no line has a value for, and raise for those that only some lines have one for."""
    if not rows:
        raise VlpromptError(f"the table {path} has no rows below the names of its columns")
    for role in list(next(iter(rows.values()))):
        lacking = [number for number, row in rows.items() if row[role] in MISSING]
        if len(lacking) == len(rows):
            for row in rows.values():
                del row[role]
        elif lacking and role not in ("domain", "mask"):
            raise VlpromptError(f"line {lacking[0]} of {path} has no {role}: give it one, or delete the line")
        for number in lacking if role in next(iter(rows.values())) else ():
            rows[number][role] = ""
    present = next(iter(rows.values())).keys()
    if "path" not in present or present.isdisjoint({"label", "class"}):
        lack = "path" if "path" not in present else "label or class"
        raise VlpromptError(f"no line of the table {path} has a {lack}")
    return rows


# Labels and names


def _class_names(rows: Rows, path: str) -> tuple[str, ...]:
    """Return the class names in label order; in ``rows`` a column of labels that are names becomes that of classes."""
    _settle_labels(rows, path)
    if "label" not in next(iter(rows.values())):
        return tuple(sorted({spaced_name(row["class"]) for row in rows.values()}))
    names: dict[int, str] = {}
    for number, row in rows.items():
        name = spaced_name(row.get("class") or row["label"])
        known = names.setdefault(int(row["label"]), name)
        if known != name:
            raise VlpromptError(f"line {number} of {path} calls label {row['label']} '{name}', others '{known}'")
    if max(names) >= len(names):
        missing = next(label for label in itertools.count() if label not in names)
        raise VlpromptError(
            f"the labels in {path} must run from 0 without gaps; missing: {missing}, and the largest is {max(names)}"
        )
    return tuple(names[label] for label in range(len(names)))


def _settle_labels(rows: Rows, path: str) -> None:
    """Make labels numbers: names in their column become classes, columns the other way round are swapped."""
    first = next(iter(rows.values()))
    if "label" not in first:
        return
    odd = {number: row["label"] for number, row in rows.items() if not _is_label(row["label"])}
    if not odd:
        return
    if "class" in first:
        if all(_is_label(row["class"]) for row in rows.values()):  # the columns are the other way round
            for row in rows.values():
                row["label"], row["class"] = row["class"], row["label"]
            return
    elif not any(_is_numeric(row["label"]) for row in rows.values()):
        for row in rows.values():
            row["class"] = row.pop("label")
        return
    named = {number: label for number, label in odd.items() if not _is_numeric(label)}
    if 2 * len(named) > len(rows) and "class" not in first:
        odd = {number: row["label"] for number, row in rows.items() if number not in named}
    number, label = next(iter(odd.items()))
    raise VlpromptError(
        f"line {number} of {path} has the label '{label:.40}': labels are 0, 1, 2, ..., and a column of names must be "
        "called class"
    )


def _is_label(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _is_numeric(text: str) -> bool:
    """Whether a text looks like a number, even if it is no valid label: -1, 2.0, 1e3, ²."""
    return text.isnumeric() or re.fullmatch(r"[-+]?[_.,]*\d[\d_.,]*(e[-+]?\d+)?|[-+]?inf", text, re.I) is not None
