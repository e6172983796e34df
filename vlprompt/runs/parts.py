"""The data of a run: labelled images, pool and test images of each part of its plan."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import cast

from datasets_registry.catalog import load_split
from vlprompt.base.settings import RunConfig
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.loading import load_clip
from vlprompt.data import DatasetSplits, few_shot_split, join_datasets, leave_domain_out, resolve_templates
from vlprompt.data.pools import with_pool, with_pool_classes
from vlprompt.data.regions import showing_regions
from vlprompt.data.sampling import Shots
from vlprompt.data.splits import without_labels
from vlprompt.data.subsets import seen_classes
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.protocols import Part, Plan
from vlprompt.runs.images import check_present
from vlprompt.runs.preflight import check_classes


class Shared:
    """What the runs of a process share: the last backbone and the datasets."""

    def __init__(self, clip: FrozenCLIP | None = None):
        self._fixed_clip = clip
        self._clip = lru_cache(maxsize=1)(load_clip)
        self._splits = lru_cache(maxsize=32)(load_split)

    def clip_for(self, config: RunConfig) -> FrozenCLIP:
        """Return the frozen model of a run."""
        key = config.backbone, config.pretrained, config.checkpoint, config.precision, config.device
        return self._fixed_clip or self._clip(*key)

    def splits_for(self, name: str, config: RunConfig) -> DatasetSplits:
        """Return a dataset with the split and the templates of a run."""
        options = {key: getattr(config, key) for key in ("download", "split", "follow_links")}
        splits = self._splits(name, config.data_root, **options)
        splits = replace(splits, templates=resolve_templates(config.templates, splits))
        return splits if config.region is None else showing_regions(splits, config.region)


def load_parts(plan: Plan, config: RunConfig, shared: Shared) -> tuple[dict[Part, DatasetSplits], str]:
    """Load the data of each part of a plan.

    Args:
        plan: what is trained on and tested.
        config: the settings.
        shared: what earlier runs of this process have loaded.

    Returns:
        The data by part, where the training part has only its few-shot draw; and the hash of the split that it was
        drawn from.

    Raises:
        VlpromptError: a dataset or an image is missing, or has too few images or classes.
    """
    trained, parts = plan.train, (plan.train, *plan.tests.values())
    names = dict.fromkeys(name for part in parts for name in part.joined or (part.dataset,))
    datasets = {name: shared.splits_for(name, config) for name in names}
    for part in parts:
        if not part.joined:
            check_classes(config.protocol, part, datasets[part.dataset])
    if trained.joined:
        split = join_datasets([datasets[name] for name in trained.joined]).fingerprint()
        datasets[trained.dataset] = join_datasets([_few_shot(datasets[name], plan, config) for name in trained.joined])
    else:
        source = datasets[trained.dataset]
        split = source.fingerprint()
        source = leave_domain_out(source, trained.held_out) if trained.held_out else source
        datasets[trained.dataset] = _draw(source, plan, config)
    data = {part: _select(datasets[part.dataset], part, config.class_split) for part in parts}
    check_present(data, plan)
    return data, split


def _few_shot(source: DatasetSplits, plan: Plan, config: RunConfig) -> DatasetSplits:
    """The few-shot draw of a dataset, without the images that the plan holds out."""
    shots = cast(Shots, config.shots)  # "none" occurs only in plans that draw nothing
    return plan.held_out(few_shot_split(source, shots, config.seed, allow_fewer=config.allow_fewer), source)


def _draw(source: DatasetSplits, plan: Plan, config: RunConfig) -> DatasetSplits:
    """Return a dataset with what a plan trains on: labelled images, and a pool without labels."""
    if plan.labelled == "none":
        pool = source.train if plan.pool == "all" else ()
        drawn = replace(source, train=(), val=(), pool=without_labels(pool))
    else:
        drawn = _few_shot(source, plan, config)
        if plan.pool == "unseen":
            drawn = _without_unseen(drawn, source, config.class_split)
        elif plan.pool == "rest":
            labelled = set(drawn.train)
            rest = [item for item in source.train if item not in labelled]
            if not rest and not config.unlabelled:
                raise VlpromptError(
                    f"shots={config.shots} uses all training images of {source.name}, so none is left for a pool: "
                    "use fewer shots, or give unlabelled images with unlabelled=folder:PATH"
                )
            drawn = replace(drawn, pool=without_labels(rest))
    if config.unlabelled:
        drawn = with_pool(drawn, config.unlabelled, follow_links=config.follow_links)
    return drawn if config.pool_classes is None else with_pool_classes(drawn, config.pool_classes)


def _without_unseen(drawn: DatasetSplits, source: DatasetSplits, seed: int) -> DatasetSplits:
    """Keep the labelled images of seen classes only, and make the training images of the others its pool."""
    seen = set(seen_classes(len(source.class_names), seed))
    train, val = ([item for item in part if item.label in seen] for part in (drawn.train, drawn.val))
    pool = without_labels([item for item in source.train if item.label not in seen])
    unseen = tuple(label for label in range(len(source.class_names)) if label not in seen)
    return replace(drawn, train=train, val=val, pool=pool, pool_classes=unseen)


def _select(dataset: DatasetSplits, part: Part, class_split: int) -> DatasetSplits:
    """Return the classes and test images of a part of a dataset."""
    chosen = dataset.select(part.half)
    if part.images == "all":
        return chosen
    if part.images == "seen" or part.images == "unseen":
        seen = seen_classes(len(dataset.class_names), class_split)
        return replace(chosen, test=[i for i in chosen.test if (i.label in seen) == (part.images == "seen")])
    names = set(dataset.select(part.images).class_names)
    return replace(chosen, test=[item for item in chosen.test if chosen.class_names[item.label] in names])


def labels_of_pool(source: DatasetSplits, config: RunConfig, shared: Shared) -> dict[str, int]:
    """The true labels of a pool's images by path, read after training, since the pool itself has none."""
    if config.unlabelled:
        return {}
    pool = {item.path for item in source.pool}
    return {item.path: item.label for item in shared.splits_for(config.dataset, config).train if item.path in pool}
