"""What a method took a pool's images for, as a run keeps it; compared with labels, if any, when all is done."""

from __future__ import annotations

import csv
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlprompt.base.files import atomic_write
from vlprompt.base.layout import PSEUDO_LABELS, PSEUDO_LOG
from vlprompt.base.reporter import Reporter
from vlprompt.data import DatasetSplits
from vlprompt.training.feed import Labelling


def summarise_labelling(made: Labelling, splits: DatasetSplits, truth: Mapping[str, int]) -> dict[str, Any]:
    """How many images were taken for what, how surely and, for analysis alone, how rightly.

    Args:
        made: the labelling.
        splits: whose pool it is of.
        truth: labels by path, of the pool's images that have any; a method never sees them.
    """
    counts = Counter(made.labels)
    right = [truth[path] == label for path, label in zip(made.paths, made.labels, strict=True) if path in truth]
    return {
        "images": len(made.paths),
        "different": len(set(made.paths)),
        "pool": len(splits.pool),
        "per_class": {splits.class_names[label]: counts[label] for label in sorted(counts)},
        "confidence": round(statistics.fmean(made.confidence), 4) if made.confidence else None,
        "accuracy": round(100 * statistics.fmean(right), 2) if right else None,
    }


def keep_pseudo_labels(
    folder: Path, labellings: Sequence[Labelling], splits: DatasetSplits, truth: Mapping[str, int], reporter: Reporter
) -> list[dict[str, Any]]:
    """Write a line for each labelling, and a table of the last one's images; return the lines.

    Nothing is written where nothing was labelled, and what an earlier run left is dropped.
    """
    if not labellings:
        for name in (PSEUDO_LOG, PSEUDO_LABELS):
            (folder / name).unlink(missing_ok=True)
        return []
    lines = [{"labelling": i, **summarise_labelling(made, splits, truth)} for i, made in enumerate(labellings, start=1)]
    with atomic_write(folder / PSEUDO_LOG) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    last, names = labellings[-1], splits.class_names
    with (
        atomic_write(folder / PSEUDO_LABELS) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(["image", "class", "confidence"])
        surely = last.confidence or ("",) * len(last.paths)
        table.writerows(zip(last.paths, (names[label] for label in last.labels), surely, strict=True))
    reporter.say(describe_labelling(lines[-1], len(names)))
    return lines


def describe_labelling(line: Mapping[str, Any], classes: int) -> str:
    """A sentence on what was pseudo-labelled, and how surely."""
    said = f"pseudo-labels: {line['images']:,} for {line['different']:,} of {line['pool']:,} images of the pool"
    said += f", of {len(line['per_class'])} of {classes} classes"
    said += "" if line["confidence"] is None else f", on average {line['confidence']:.2f} sure"
    return said + ("" if line["accuracy"] is None else f"; {line['accuracy']:.1f}% are right, which no method is told")
