"""The data of a run: each part of its plan, with what is labelled, what is a pool, and what is tested."""

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
    """What runs in one process load once: the last backbone and the datasets; banks and teachers keep themselves."""

    def __init__(self, clip: FrozenCLIP | None = None):
        self._given = clip
        self._clip = lru_cache(maxsize=1)(load_clip)
        self._splits = lru_cache(maxsize=32)(load_split)

    def clip_for(self, config: RunConfig) -> FrozenCLIP:
        """Return the frozen model that a run asks for."""
        key = config.backbone, config.pretrained, config.checkpoint, config.precision, config.device
        return self._given or self._clip(*key)

    def splits_for(self, name: str, config: RunConfig) -> DatasetSplits:
        """Return a dataset with the split and the templates that a run asks for."""
        options = {key: getattr(config, key) for key in ("download", "split", "follow_links")}
        splits = self._splits(name, config.data_root, **options)
        splits = replace(splits, templates=resolve_templates(config.templates, splits))
        return splits if config.region is None else showing_regions(splits, config.region)


def load_parts(plan: Plan, config: RunConfig, shared: Shared) -> tuple[dict[Part, DatasetSplits], str]:
    """Return the data of each part of a plan, and the hash of the whole split that is trained on.

    The part that is trained on has its few-shot draw for training images.
    """
    learnt, every = plan.train, (plan.train, *plan.tests.values())
    names = dict.fromkeys(name for part in every for name in part.joined or (part.dataset,))
    whole = {name: shared.splits_for(name, config) for name in names}
    for part in every:
        if not part.joined:
            check_classes(config.protocol, part, whole[part.dataset])
    if learnt.joined:
        split = join_datasets([whole[name] for name in learnt.joined]).fingerprint()
        whole[learnt.dataset] = join_datasets([_few_shot(whole[name], plan, config) for name in learnt.joined])
    else:
        source = whole[learnt.dataset]
        split = source.fingerprint()
        source = leave_domain_out(source, learnt.held_out) if learnt.held_out else source
        whole[learnt.dataset] = _draw(source, plan, config)
    parts = {part: _select(whole[part.dataset], part, config.class_split) for part in every}
    check_present(parts, plan)
    return parts, split


def _few_shot(source: DatasetSplits, plan: Plan, config: RunConfig) -> DatasetSplits:
    """The few-shot draw of a dataset, but for what the plan holds out."""
    shots = cast(Shots, config.shots)  # another text is of plans that draw nothing
    return plan.held_out(few_shot_split(source, shots, config.seed, allow_fewer=config.allow_fewer), source)


def _draw(source: DatasetSplits, plan: Plan, config: RunConfig) -> DatasetSplits:
    """Return a dataset with what a plan trains on: labelled images, and a pool whose labels are gone."""
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
    """Return a draw with the labels of seen classes alone, and all training images of the others for its pool."""
    seen = set(seen_classes(len(source.class_names), seed))
    train, val = ([item for item in part if item.label in seen] for part in (drawn.train, drawn.val))
    pool = without_labels([item for item in source.train if item.label not in seen])
    unseen = tuple(label for label in range(len(source.class_names)) if label not in seen)
    return replace(drawn, train=train, val=val, pool=pool, pool_classes=unseen)


def _select(whole: DatasetSplits, part: Part, class_split: int) -> DatasetSplits:
    """Return a part's classes and test images."""
    chosen = whole.select(part.half)
    if part.images == "all":
        return chosen
    if part.images == "seen" or part.images == "unseen":
        seen = seen_classes(len(whole.class_names), class_split)
        return replace(chosen, test=[i for i in chosen.test if (i.label in seen) == (part.images == "seen")])
    names = set(whole.select(part.images).class_names)
    return replace(chosen, test=[item for item in chosen.test if chosen.class_names[item.label] in names])


def labels_of_pool(source: DatasetSplits, config: RunConfig, shared: Shared) -> dict[str, int]:
    """Labels by path of a pool's images, read anew when a method has learnt: what it was given has none."""
    if config.unlabelled:
        return {}
    pool = {item.path for item in source.pool}
    return {item.path: item.label for item in shared.splits_for(config.dataset, config).train if item.path in pool}
