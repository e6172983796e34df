"""A few test images of a dataset to look at."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets_registry.catalog import load_split
from vlprompt.base.checks import at_least, checked
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import ImageItems, check_items, eval_transform
from vlprompt.data.splits import DatasetSplits
from vlprompt.evaluation.scoring import limited


@dataclass(frozen=True)
class Samples:
    """B images with their labels.

    Attributes:
        images: (B, 3, H, W), as the backbone takes them.
        labels: (B,), indices into ``class_names``.
        class_names: C names.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


@checked
def sample_images(
    clip: FrozenCLIP, dataset: str | DatasetSplits, per_class: int = 1, root: str | os.PathLike[str] | None = None
) -> Samples:
    """Return test images of each class, evenly spaced in the test list and preprocessed as for evaluation.

    Args:
        clip: the frozen model.
        dataset: one of ``list_datasets()``, ``folder:PATH``, or a loaded ``DatasetSplits``.
        per_class: the number of images of each class, at most.
        root: the folder that holds the datasets' folders; embedded datasets need none.

    Raises:
        VlpromptError: the dataset cannot be found, or has no test images.
    """
    splits = load_split(dataset, root) if isinstance(dataset, str) else dataset
    check_items(splits, splits.test)
    per_class = at_least("per_class", per_class, 1)
    by_class = defaultdict(list)
    for item in splits.test:
        by_class[item.label].append(item)
    chosen = [item for label in sorted(by_class) for item in limited(by_class[label], per_class)]
    images = ImageItems(splits, chosen, eval_transform(clip))
    stacked = torch.stack([images[i]["image"] for i in range(len(images))])
    return Samples(stacked, torch.tensor([item.label for item in chosen]), splits.class_names)
