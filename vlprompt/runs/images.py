"""The images of a run before it trains: those that cannot be read, and the features of those that are tested."""

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
    """Raise for images of published datasets that are not on disk, before a backbone is loaded."""
    for part, splits in data.items():
        for each in [] if _is_own(part) else _asked(part, plan):
            if each != "val":
                check_items(splits, getattr(splits, each))


def usable_parts(
    data: Mapping[Part, DatasetSplits], plan: Plan, config: RunConfig, clip: FrozenCLIP, reporter: Reporter
) -> dict[Part, DatasetSplits]:
    """Return the data of a run without the images of a user's own that cannot be read, or raise for the first.

    Published datasets are taken whole, so that an image that cannot be read stops the run where it is needed. Test
    images whose features are kept have been read before. Of a method that takes masks an image's is read with it.
    """
    decided = config.method in METHODS  # method=auto is not, and chooses none that takes masks
    usable, masks = dict(data), decided and "mask" in METHODS.get(config.method).registered.inputs
    for part, splits in data.items():
        if not _is_own(part):
            if part == plan.train and config.unlabelled:
                usable[part] = leave_out_unreadable(splits, ["pool"], config.on_unreadable)
            continue
        uses_val = config.selection != FIXED or asks_to_calibrate(config)
        asked = [each for each in _asked(part, plan) if each != "val" or uses_val]
        if (
            "test" in asked
            and not masks
            and FeatureBank.is_kept(clip, splits, splits.test, transform=eval_transform(clip))
        ):
            asked.remove("test")
        with reporter.bar("looking at images", lines=1) as update:
            usable[part] = leave_out_unreadable(splits, asked, config.on_unreadable, update, masks)
    return usable


def _is_own(part: Part) -> bool:
    return all(is_own(name) for name in part.joined or (part.dataset,))


def _asked(part: Part, plan: Plan) -> list[str]:
    """Return which images of a part a run looks at."""
    return (["train", "val", "pool"] if part == plan.train else []) + (["test"] if part in plan.tests.values() else [])


def encode_tests(
    data: Mapping[Part, DatasetSplits], plan: Plan, config: RunConfig, clip: FrozenCLIP, reporter: Reporter
) -> None:
    """Encode what is tested before training, so that a test image that cannot be read costs no training.

    Zero-shot is scored on these features whatever the method, so that nothing is computed twice.
    """
    for name, part in plan.tests.items():
        splits, options = data[part], {"transform": eval_transform(clip), "workers": config.workers}
        with reporter.bar(f"encoding {name} images", lines=1) as update:
            FeatureBank.open_or_build(clip, splits, limited(splits.test, config.limit), progress=update, **options)


def image_facts(data: Mapping[Part, DatasetSplits], plan: Plan) -> dict[str, Any]:
    """Return how many training images there are, the fewest and the most of a class, and what was left out."""
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
