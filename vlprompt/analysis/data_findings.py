"""What a frozen model's features tell about a dataset: labels that look wrong, and images that occur twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlprompt.analysis.duplicates import NearDuplicates, near_duplicates
from vlprompt.analysis.wrong_labels import LabelErrors, label_errors
from vlprompt.base.reporter import Reporter
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import DatasetSplits, FeatureBank, eval_transform
from vlprompt.data.splits import Item

TEST = "test"


@dataclass(frozen=True)
class DataFindings:
    """Probable label errors and near-duplicates among N images.

    Attributes:
        class_names: C names, in label order.
        names: N names of the images, such as their paths.
        parts: N names of the part of the dataset that each is in, such as ``train`` or ``test``.
        labels: (N,) the dataset's labels.
        errors: labels that are probably wrong; None unless at least two classes have two images each.
        duplicates: pairs of images that are almost the same.
        open_image: opens the image at an index; None if there are features only.
    """

    class_names: tuple[str, ...]
    names: Sequence[str]
    parts: Sequence[str]
    labels: np.ndarray
    errors: LabelErrors | None
    duplicates: NearDuplicates
    open_image: Callable[[int], Image.Image] | None = None

    @property
    def leaks(self) -> list[int]:
        """Indices of the test images that have a near-duplicate in another part, sorted and without repetition."""
        mixed = [pair for pair in self.duplicates.pairs.tolist() if len({self.parts[i] for i in pair}) > 1]
        return sorted({i for pair in mixed for i in pair if self.parts[i] == TEST})

    @property
    def contradictions(self) -> int:
        """The number of near-duplicate pairs with different labels, one of which must be wrong."""
        pairs = self.duplicates.pairs
        return int((self.labels[pairs[:, 0]] != self.labels[pairs[:, 1]]).sum())

    def table(self, name: str) -> dict[str, list[Any]]:
        """Return the table ``label_errors`` or ``near_duplicates`` as a list per column, one row per finding."""
        classes = [self.class_names[label] for label in self.labels.tolist()]
        if name == "label_errors":
            places = [] if self.errors is None else self.errors.places.tolist()
            suggested = [] if self.errors is None else self.errors.suggested.tolist()
            margins = [] if self.errors is None else self.errors.margins.round(4).tolist()
            return {
                "image": [self.names[i] for i in places],
                "part": [self.parts[i] for i in places],
                "class": [classes[i] for i in places],
                "suggested": [self.class_names[label] for label in suggested],
                "margin": margins,
            }
        pairs = self.duplicates.pairs.tolist()
        columns: dict[str, list[Any]] = {}
        for side, places in (("", [i for i, _ in pairs]), ("other_", [j for _, j in pairs])):
            columns[f"{side}image"] = [self.names[i] for i in places]
            columns[f"{side}part"] = [self.parts[i] for i in places]
            columns[f"{side}class"] = [classes[i] for i in places]
        return columns | {"distance": self.duplicates.distances.round(6).tolist()}

    def lines(self) -> list[str]:
        """One line per kind of finding."""
        lines = []
        if self.errors is not None:
            lines.append(
                "labels that look wrong to a classifier that has not seen the image: "
                f"{len(self.errors):,} of {self.errors.n_images:,} (it agrees with {self.errors.accuracy:.0f}% of all)"
            )
        contradicting = f", {self.contradictions:,} with different labels" if self.contradictions else ""
        lines.append(f"pairs of images that are almost the same: {len(self.duplicates):,}{contradicting}")
        if self.leaks:
            n_test = sum(part == TEST for part in self.parts)
            lines.append(f"test images with a near-duplicate in another part: {len(self.leaks):,} of {n_test:,}")
        return lines


def find_in_features(
    features: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    names: Sequence[str],
    parts: Sequence[str],
    open_image: Callable[[int], Image.Image] | None = None,
) -> DataFindings | None:
    """Look for label errors and near-duplicates among N images by their features (N, D); None for fewer than two."""
    if len(features) < 2:
        return None
    errors, duplicates = label_errors(features, labels), near_duplicates(features, parts)
    return DataFindings(tuple(class_names), names, parts, labels, errors, duplicates, open_image)


def inspect_data(
    clip: FrozenCLIP,
    splits: DatasetSplits,
    parts: Mapping[str, Sequence[Item]] | None = None,
    *,
    workers: int = 0,
    reporter: Reporter | None = None,
) -> DataFindings | None:
    """Look for label errors and near-duplicates in a dataset, in each part and across them.

    Args:
        clip: the frozen model, whose features decide which images are similar.
        splits: the dataset.
        parts: items by the name of their part; by default all of train, val and test.
        workers: processes that load images.
        reporter: shows the progress; None for no output.

    Returns:
        The findings; None for fewer than two images.

    Raises:
        VlpromptError: an image cannot be read.
    """
    chosen = parts or {"train": splits.train, "val": splits.val, TEST: splits.test}
    chosen = {name: items for name, items in chosen.items() if items}
    reporter = reporter or Reporter(quiet=True)
    rows = []
    for name, some in chosen.items():
        with reporter.bar(f"encoding {name} images", lines=1) as update:
            options = {"transform": eval_transform(clip), "workers": workers, "progress": update}
            rows.append(FeatureBank.open_or_build(clip, splits, some, **options).features[0])
    items = [item for some in chosen.values() for item in some]
    labels = np.array([item.label for item in items])
    part_of = [name for name, some in chosen.items() for _ in some]
    paths = [item.path for item in items]

    def open_image(place: int) -> Image.Image:
        return splits.open_image(items[place])

    if not rows:
        return None
    return find_in_features(torch.cat(rows).numpy(), labels, splits.class_names, paths, part_of, open_image)
