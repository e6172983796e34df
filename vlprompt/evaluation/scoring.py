"""Scoring a learner on test images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets_registry.catalog import is_own, load_split
from datasets_registry.listed import list_datasets
from vlprompt.base.checks import at_least, brief, checked
from vlprompt.base.reporter import Reporter
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import (
    FeatureBank,
    ImageItems,
    as_splits,
    check_items,
    eval_batches,
    eval_transform,
    resolve_templates,
)
from vlprompt.data.generated import WithGenerated
from vlprompt.data.masks import RegionItems, RegionTransform
from vlprompt.data.readable import leave_out_unreadable
from vlprompt.data.splits import DEFAULT_TEMPLATE, NO_MASKS, DatasetSplits, Half, Item, has_masks
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.scores import Evaluation, Scores, make_row
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.creation import create_learner
from vlprompt.learner.facts import Familiar
from vlprompt.learner.objectives import Batch, Outputs, Templates

FUSED = ""  # key of the fused logits, besides the names of parts
VIEWS_AT_ONCE = 64  # views per batch, for learners that use several of each test image
Progress = Callable[[int, int], None]


def limited(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """Return at most ``limit`` items, evenly spaced, so that all classes of a sorted list remain."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def finite(values: Tensor, learner: PromptLearner) -> Tensor:
    """Return a learner's logits or features; raise ``VlpromptError`` if some are NaN or infinite."""
    if values.isfinite().all():
        return values
    largest = max(((float(p.detach().abs().max()), name) for name, p in learner.named_parameters()), default=None)
    hint = f"; its largest number is {largest[0]:.3g}, in {largest[1]}" if largest else ""
    raise VlpromptError(
        f"{learner.method} on {learner.clip.name} gives NaN or infinity: its weights are damaged, or its training "
        f"diverged (try a smaller lr, or precision=fp32){hint}"
    )


@torch.no_grad()
def score(
    learner: PromptLearner,
    splits: DatasetSplits,
    *,
    limit: int | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    seed: int = 1,
) -> Scores:
    """Score a learner on the test images of ``splits``, among its current class names. It does not see their labels.

    If the learner leaves the image tower alone, image features come from the cached bank. A learner that adapts online
    gets the images in an order determined by ``seed``; results are returned in the dataset's order.

    Args:
        learner: a learner whose ``class_names`` are those of ``splits``.
        splits: the dataset, or the base or new half of it.
        limit: maximum number of test images.
        workers: processes that load images.
        progress: called with the number of images done and the total.
        seed: the seed of the order of the stream.
    """
    learner.eval()
    items = limited(splits.test, limit)
    order = stream_order(len(items), seed if learner.facts.predicts == "online" else None)
    labels: list[Tensor] = []

    def unlabelled() -> Iterator[Batch]:
        done = 0
        for batch in _batches(learner, splits, items, order, workers, progress):
            labels.append(batch["label"].cpu())
            yield cast(Batch, {key: value for key, value in batch.items() if key != "label"})
            done += len(batch["label"])
            if progress and "image_features" not in batch:  # a bank reports progress while it is built
                progress(done, len(items))

    dataset_order = order.argsort()
    if learner.facts.parts:  # such learners predict each image alone
        batches = [_in_parts(learner, batch) for batch in unlabelled()]
        parts = {name: torch.cat([each[name] for each in batches])[dataset_order] for name in batches[0]}
        fused = parts.pop(FUSED)
        several = parts if len(parts) > 1 else {}
        return Scores(torch.cat(labels)[dataset_order], fused, several, learner.temperature)
    logits = [finite(part.float().cpu(), learner) for part in learner.predict_all(unlabelled())]
    return Scores(torch.cat(labels)[dataset_order], torch.cat(logits)[dataset_order], temperature=learner.temperature)


def _in_parts(learner: PromptLearner, batch: Batch) -> dict[str, Tensor]:
    """The parts (B, C) of a batch's logits by name, and the fused logits (B, C) under ``FUSED``."""
    outputs: Outputs = learner(batch)
    return {
        name: finite(logits.float().cpu(), learner) for name, logits in {**outputs.parts, FUSED: outputs.logits}.items()
    }


def stream_order(images: int, seed: int | None) -> Tensor:
    """Positions (N,) of the test images in the order in which a learner sees them: as they are, or drawn by a seed."""
    if seed is None:
        return torch.arange(images)
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed))


def _batches(
    learner: PromptLearner,
    splits: DatasetSplits,
    items: Sequence[Item],
    order: Tensor,
    workers: int,
    progress: Progress | None,
) -> Iterator[Batch]:
    """Yield test images in an order (N,), or their features from a bank, which all orders share."""
    clip = learner.tower
    in_order = [items[i] for i in order.tolist()]
    views = learner.test_views
    if views is not None:
        generated = learner.generated_views
        if generated:
            generated.check(item.path for item in items)
            images: ImageItems = WithGenerated(splits, in_order, views, generated)
        else:
            images = ImageItems(splits, in_order, views)
        batches = eval_batches(images, max(1, VIEWS_AT_ONCE // views.count), workers=workers, device=clip.device)
        return (batch | {"views": batch["image"]} for batch in batches)
    if "mask" in learner.facts.inputs:
        if not has_masks(splits, items):
            raise VlpromptError(f"{learner.method} looks at a region of each image, and {splits.name} {NO_MASKS}")
        regions = RegionItems(splits, in_order, RegionTransform(clip))
        return eval_batches(regions, workers=workers, device=clip.device)
    transform = eval_transform(clip)
    if learner.predicts_from_images:
        return eval_batches(ImageItems(splits, in_order, transform), workers=workers, device=clip.device)
    bank = FeatureBank.open_or_build(clip, splits, items, transform=transform, workers=workers, progress=progress)
    return bank.select(order).eval_batches()


def format_spread(
    clip: FrozenCLIP, splits: DatasetSplits, templates: Templates, *, limit: int | None = None, workers: int = 0
) -> dict[str, float]:
    """Return the zero-shot accuracy, in [0, 1], of each template alone, on the same test images.

    The spread between the best and the worst shows how much of a gain could be due to wording (FormatSpread, Sclar et
    al., ICLR 2024, arXiv:2310.11324).

    Args:
        clip: the frozen model.
        splits: the dataset, or the base or new half of it.
        templates: a list, the name of a set such as ``imagenet80``, or a file; see ``vlprompt.data``.
        limit: maximum number of test images.
        workers: processes that load images.
    """
    accuracies = {}
    for template in resolve_templates(templates, splits):
        shared = bool(splits.tasks)
        learner = create_learner("zero_shot", clip, splits.class_names, templates=(template,), shared_names=shared)
        accuracies[template] = score(learner, splits, limit=limit, workers=workers).accuracy
    return accuracies


def evaluate(
    learner: PromptLearner,
    splits: DatasetSplits,
    *,
    target: str = "all",
    class_names: Sequence[str] | None = None,
    templates: Templates = None,
    spread: Templates = None,
    limit: int | None = None,
    workers: int = 0,
    reporter: Reporter | None = None,
    seed: int = 1,
    familiar: Familiar | None = None,
) -> Evaluation:
    """Compute all metrics of a learner and of zero-shot CLIP on the test images of ``splits``.

    The learner's class names are restored afterwards. Methods whose class texts are the dataset's templates, such as
    zero-shot, CLIP-LoRA and MMRL, are scored with those of this dataset, if it has any.

    Args:
        learner: any learner.
        splits: the dataset, or the base or new half of it.
        target: name of the row.
        class_names: names to use instead of the dataset's, in label order; names beyond the labels are distractors.
        templates: templates for zero-shot, instead of the dataset's.
        spread: templates to score zero-shot with one at a time.
        limit: maximum number of test images.
        workers: processes that load images.
        reporter: reports progress.
        seed: the seed of the order in which images reach a learner that adapts online.
        familiar: whether the learner was trained on these classes, for learners that score trained classes differently;
            None compares class names, and the dataset with those that it is known to be trained on.

    Raises:
        VlpromptError: there are no test images, too few names, or the learner cannot score these classes.
    """
    check_items(splits, splits.test)
    class_templates = templates_for(learner, splits)
    splits = replace(splits, templates=resolve_templates(templates, splits))
    if class_names is not None:
        if len(class_names) < len(splits.class_names):
            raise VlpromptError(
                f"{len(class_names)} class names were given, and {splits.name} has {len(splits.class_names)} classes"
            )
        splits = replace(splits, class_names=tuple(class_names))
    reporter = reporter or Reporter(quiet=True)

    def scored(scorer: PromptLearner) -> Scores:
        with reporter.bar(f"{scorer.method} on {target}", lines=1) as update:
            return score(scorer, splits, limit=limit, workers=workers, progress=update, seed=seed)

    zero_shot = create_learner(
        "zero_shot",
        learner.clip,
        splits.class_names,
        templates=splits.templates,
        shared_names=bool(splits.tasks),
    )
    with learner.scoring(splits.class_names, splits.class_places, class_templates):
        learner.familiar = familiarity = familiar or familiarity_of(learner, splits)
        frozen, learnt = scored(zero_shot), scored(learner)
        draws = [100 * scored(learner).accuracy for _ in other_draws(learner)]
    threshold = None if learner.calibration is None else learner.calibration.min_probability
    row = make_row(target, splits, learnt, frozen, learner.facts.predicts, familiarity, threshold)
    row = replace(row, draws=draws) if draws else row
    if row.predicts == "online":
        row = replace(row, order=seed)
    if spread is not None:
        by_template = format_spread(learner.clip, splits, spread, limit=limit, workers=workers)
        row = replace(row, format_spread={template: 100 * value for template, value in by_template.items()})
    return Evaluation(row, splits.class_names, limited(splits.test, limit), learnt, frozen)


def familiarity_of(learner: PromptLearner, splits: DatasetSplits) -> Familiar:
    """Whether the classes of a dataset, which are the learner's current ones, are new to it, trained, or shifted.

    A published dataset that it was not trained on is shifted. The user's own images may be like those that it was
    trained on, whatever their folder is called.
    """
    other = learner.learnt_on and splits.name not in learner.learnt_on and splits.name in list_datasets()
    return "shifted" if other and learner.familiar == "trained" else learner.familiar


def templates_for(learner: PromptLearner, splits: DatasetSplits) -> tuple[str, ...]:
    """The templates of a dataset for a learner that fills them with class names; empty to keep the learner's own.

    It keeps its own on the dataset that it was trained on, whose templates may have been replaced by a setting, and on
    the user's own data without templates.
    """
    default = splits.templates == (DEFAULT_TEMPLATE,) and splits.name not in list_datasets()
    return () if default or splits.name in learner.learnt_on else tuple(splits.templates)


def other_draws(learner: PromptLearner) -> Iterator[int]:
    """Let a learner predict with each of its other random draws, one per iteration, and finally restore its own."""
    try:
        for turn in range(1, learner.n_draws + 1):
            learner.draw(turn)
            yield turn
    finally:
        learner.draw(0)


@checked
def evaluate_learner(
    learner: PromptLearner,
    dataset: str | DatasetSplits | Dataset[Any],
    root: str | os.PathLike[str] | None = None,
    half: Half = "all",
    limit: int | None = None,
    *,
    on_unreadable: Literal["skip", "stop"] = "skip",
    follow_links: bool = False,
    seed: int = 1,
) -> float:
    """Return a learner's top-1 accuracy, in [0, 1], on the test images of a dataset.

    The learner scores the dataset's class names; its own are restored afterwards.

    Args:
        learner: any learner, from ``create_learner``, ``load_learner`` or ``run``.
        dataset: one of ``list_datasets()``, ``folder:PATH``, splits, or a torch ``Dataset`` of (image, label) pairs or
            a Hugging Face dataset, which is tested on as a whole (of a ``DatasetDict``, its test part). If it has no
            class names of its own, its labels refer to the learner's classes.
        root: folder that contains the datasets' folders; embedded datasets do not need it.
        half: ``all`` classes, or only the ``base`` or the ``new`` half, classified among themselves.
        limit: maximum number of test images.
        on_unreadable: what to do with unreadable images of a ``folder:PATH`` and the like: ``skip`` them with a
            warning, or ``stop``.
        follow_links: follow links that lead out of such a folder.
        seed: the seed of the order in which images reach a learner that adapts online.

    Raises:
        VlpromptError: the dataset is not found, or the learner cannot score its classes.
    """
    limit = None if limit is None else at_least("limit", limit, 1)
    if isinstance(dataset, str):
        splits = load_split(dataset, root, follow_links=follow_links).select(half)
        masks = "mask" in learner.facts.inputs
        splits = leave_out_unreadable(splits, ["test"], on_unreadable, masks=masks) if is_own(dataset) else splits
    elif not (hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__") or isinstance(dataset, DatasetSplits)):
        raise VlpromptError(
            f"dataset must be a name, splits, or a Dataset of (image, label) pairs, not {brief(dataset)}"
        )
    else:
        splits = as_splits(dataset, "test", learner.class_names).select(half)
    check_items(splits, splits.test)
    with learner.scoring(splits.class_names, splits.class_places, templates_for(learner, splits)):
        learner.familiar = familiarity_of(learner, splits)
        return score(learner, splits, limit=limit, seed=seed).accuracy
