"""The pseudo-labels of a run: written to its folder and, after training, compared with true labels if there are any."""

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
    """Count the pseudo-labels of each class, and compute their mean confidence and, for analysis only, their accuracy.

    Args:
        made: the labelling.
        splits: the dataset whose pool was labelled.
        truth: true labels by path, of the images that have one; a method never sees them.

    Returns:
        ``images``, ``different`` (distinct images), ``pool`` (its size), ``per_class``, ``confidence`` in [0, 1] and
        ``accuracy`` in percent; None for what is unknown.
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
    """Write a summary of each labelling, and a table of the last one's images; return the summaries.

    If nothing was labelled, nothing is written, and the files of an earlier run are removed.
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
    """A sentence on the number of pseudo-labels, their confidence and their accuracy."""
    sentence = f"pseudo-labels: {line['images']:,} for {line['different']:,} of {line['pool']:,} images of the pool"
    sentence += f", of {len(line['per_class'])} of {classes} classes"
    if line["confidence"] is not None:
        sentence += f", with a mean confidence of {line['confidence']:.2f}"
    if line["accuracy"] is not None:
        sentence += f"; {line['accuracy']:.1f}% are right (the method cannot know)"
    return sentence
