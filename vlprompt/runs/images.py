"""The images of a run before it trains: unreadable ones are left out, and test images are encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from datasets_registry.catalog import is_own
from vlprompt.base.reporter import Reporter
from vlprompt.base.settings import RunConfig
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import DatasetSplits, FeatureBank, check_items, eval_transform
from vlprompt.data.readable import leave_out_unreadable
from vlprompt.evaluation.protocols import Part, Plan
from vlprompt.evaluation.scoring import limited
from vlprompt.learner.held_out import FIXED
from vlprompt.learner.registration import METHODS
from vlprompt.runs.calibration import asks_to_calibrate


def check_present(data: Mapping[Part, DatasetSplits], plan: Plan) -> None:
    """Raise a ``VlpromptError`` if images of published datasets are missing, before a backbone is loaded."""
    for part, splits in data.items():
        for name in [] if _is_own(part) else _used(part, plan):
            if name != "val":
                check_items(splits, getattr(splits, name))


def usable_parts(
    data: Mapping[Part, DatasetSplits], plan: Plan, config: RunConfig, clip: FrozenCLIP, reporter: Reporter
) -> dict[Part, DatasetSplits]:
    """Return the data of a run without unreadable images of the user's own datasets, or raise for the first of them.

    Published datasets are used whole: an unreadable image of theirs stops the run when it is needed. Test images with
    a feature bank were read before. For a method that uses masks, each image's mask is read too.

    Raises:
        VlpromptError: an image cannot be read, and ``on_unreadable`` is ``stop``.
    """
    decided = config.method in METHODS  # method=auto is not, and never chooses a method that uses masks
    usable, masks = dict(data), decided and "mask" in METHODS.get(config.method).registered.inputs
    for part, splits in data.items():
        if not _is_own(part):
            if part == plan.train and config.unlabelled:
                usable[part] = leave_out_unreadable(splits, ["pool"], config.on_unreadable)
            continue
        uses_val = config.selection != FIXED or asks_to_calibrate(config)
        used = [name for name in _used(part, plan) if name != "val" or uses_val]
        if (
            "test" in used
            and not masks
            and FeatureBank.is_kept(clip, splits, splits.test, transform=eval_transform(clip))
        ):
            used.remove("test")
        with reporter.bar("looking at images", lines=1) as update:
            usable[part] = leave_out_unreadable(splits, used, config.on_unreadable, update, masks)
    return usable


def _is_own(part: Part) -> bool:
    """Whether all datasets of a part are the user's own."""
    return all(is_own(name) for name in part.joined or (part.dataset,))


def _used(part: Part, plan: Plan) -> list[str]:
    """Which images of a part a run uses: ``train``, ``val``, ``pool``, ``test``."""
    return (["train", "val", "pool"] if part == plan.train else []) + (["test"] if part in plan.tests.values() else [])


def encode_tests(
    data: Mapping[Part, DatasetSplits], plan: Plan, config: RunConfig, clip: FrozenCLIP, reporter: Reporter
) -> None:
    """Encode the test images before training, so that an unreadable one is found before the training.

    Zero-shot CLIP is scored on these features with every method, so nothing is computed twice.
    """
    for name, part in plan.tests.items():
        splits, options = data[part], {"transform": eval_transform(clip), "workers": config.workers}
        with reporter.bar(f"encoding {name} images", lines=1) as update:
            FeatureBank.open_or_build(clip, splits, limited(splits.test, config.limit), progress=update, **options)


def image_facts(data: Mapping[Part, DatasetSplits], plan: Plan) -> dict[str, Any]:
    """Facts of a result: the number of training images, the fewest and the most of a class, and what was left out."""
    per_class = Counter(item.label for item in data[plan.train].train).values()
    parts = list(dict.fromkeys([plan.train, *plan.tests.values()]))
    return {
        "train_images": sum(per_class),
        "pool_images": len(data[plan.train].pool),
        "fewest_a_class": min(per_class, default=0),
        "most_a_class": max(per_class, default=0),
        "unreadable": sorted({path for part in parts for path in data[part].unreadable}),
        "notes": list(dict.fromkeys(note for part in parts for note in data[part].notes)),
    }
