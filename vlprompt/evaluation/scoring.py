"""Scoring a learner on test images."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets_registry.catalog import is_own, load_split
from vlprompt.base.checks import at_least, checked, told
from vlprompt.base.files import atomic_write
from vlprompt.base.reporter import Reporter
from vlprompt.base.shown import csv_cell
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
from vlprompt.data.splits import DatasetSplits, Half, Item
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.abstention import AccuracyCoverage
from vlprompt.evaluation.metrics import Reliability, count_per_class, macro_accuracy, top_k_accuracy
from vlprompt.evaluation.predicted import Predictions
from vlprompt.evaluation.rows import Row
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.creation import create_learner
from vlprompt.learner.facts import Familiar, Predicts
from vlprompt.learner.objectives import Batch, Outputs, Templates

FUSED = ""  # beside the names of parts
VIEWS_AT_ONCE = 64  # of test images that are seen in several
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Scores:
    """What a learner says of N test images.

    Attributes:
        labels: (N,) true labels.
        logits: (N, C).
        parts: what they were fused of, by name, each (N, C); empty where they are in one piece.
        temperature: what logits are divided by before they become probabilities.
    """

    labels: Tensor
    logits: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    temperature: float = 1.0

    @cached_property
    def predicted(self) -> Tensor:
        """The class of each image's largest logit: (N,)."""
        return self.logits.argmax(dim=1)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in [0, 1]."""
        return int((self.predicted == self.labels).sum()) / len(self.labels)

    @property
    def part_accuracies(self) -> dict[str, float]:
        """Top-1 accuracy in [0, 1] of each part by itself."""
        return {name: Scores(self.labels, logits).accuracy for name, logits in self.parts.items()}

    @property
    def macro_accuracy(self) -> float:
        """Mean over the classes that have test images of their accuracies, in [0, 1]."""
        return macro_accuracy(self.labels, self.predicted, self.logits.shape[1])

    @property
    def top5(self) -> float | None:
        """Share in [0, 1] of images whose label is among the five likeliest; None below six classes."""
        return top_k_accuracy(self.labels, self.logits, 5) if self.logits.shape[1] > 5 else None

    @cached_property
    def reliability(self) -> Reliability:
        """Accuracy by confidence, and the expected calibration error."""
        return Reliability.of(self.labels, self.logits / self.temperature)

    @property
    def confidence(self) -> Tensor:
        """Each image's largest probability: (N,)."""
        return (self.logits / self.temperature).softmax(dim=1).amax(dim=1)

    @cached_property
    def by_coverage(self) -> AccuracyCoverage:
        """Accuracy by the share of images that are answered, the surest first."""
        return AccuracyCoverage.of(self.confidence.numpy(), (self.predicted == self.labels).numpy())


@dataclass(frozen=True)
class Evaluation:
    """A learner and the zero-shot classifier on the same test images.

    Attributes:
        row: all metrics, as a result keeps them.
        class_names: C names, in label order.
        items: the N images.
        learnt, frozen: scores of the learner and of zero-shot.
    """

    row: Row
    class_names: tuple[str, ...]
    items: Sequence[Item]
    learnt: Scores
    frozen: Scores

    @property
    def predictions(self) -> Predictions:
        """What both said of each image, small enough to keep."""
        label, predicted, zero_shot = (
            x.to(torch.int32) for x in (self.learnt.labels, self.learnt.predicted, self.frozen.predicted)
        )
        return Predictions(label, predicted, zero_shot, self.learnt.confidence)


def _make_row(
    target: str,
    part: DatasetSplits,
    learnt: Scores,
    frozen: Scores,
    predicts: Predicts,
    familiar: Familiar,
    min_probability: float | None,
) -> Row:
    n_classes, bins = len(part.class_names), learnt.reliability
    images, correct = count_per_class(learnt.labels, learnt.predicted, n_classes)
    _, frozen_correct = count_per_class(frozen.labels, frozen.predicted, n_classes)
    return Row(
        target=target,
        dataset=part.name,
        n_classes=n_classes,
        n_images=len(learnt.labels),
        accuracy=100 * learnt.accuracy,
        macro_accuracy=100 * learnt.macro_accuracy,
        zero_shot=100 * frozen.accuracy,
        zero_shot_macro=100 * frozen.macro_accuracy,
        split=replace(part, train=(), val=()).fingerprint(),  # the training draw differs between seeds
        top5=None if learnt.top5 is None else 100 * learnt.top5,
        zero_shot_top5=None if frozen.top5 is None else 100 * frozen.top5,
        ece=100 * learnt.reliability.expected_calibration_error,
        zero_shot_ece=100 * frozen.reliability.expected_calibration_error,
        per_class={
            "class": list(part.class_names),
            "images": images.tolist(),
            "correct": correct.tolist(),
            "zero_shot_correct": frozen_correct.tolist(),
        },
        reliability={"images": bins.images, "confidence": bins.confidence, "accuracy": bins.accuracy},
        predicts=predicts,
        familiar=familiar,
        parts={name: 100 * accuracy for name, accuracy in learnt.part_accuracies.items()} or None,
        **_answering(learnt, frozen, min_probability),
    )


def _answering(learnt: Scores, frozen: Scores, min_probability: float | None) -> dict[str, Any]:
    """What a row says of probabilities that are meant: before a temperature, by coverage, and from a threshold on."""
    found: dict[str, Any] = {
        "aurc": 100 * learnt.by_coverage.aurc,
        "zero_shot_aurc": 100 * frozen.by_coverage.aurc,
        "selective": learnt.by_coverage.kept(),
    }
    if learnt.temperature != 1:
        found["uncalibrated_ece"] = 100 * replace(learnt, temperature=1.0).reliability.expected_calibration_error
    if min_probability is not None:
        coverage, accuracy = learnt.by_coverage.at(min_probability)
        found["answered"] = {"min_probability": min_probability, "coverage": coverage, "accuracy": accuracy}
    return found


def limited(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """Return at most ``limit`` items, evenly spaced so that sorted classes all stay."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def finite(values: Tensor, learner: PromptLearner) -> Tensor:
    """Return logits or features of a learner, or raise one sentence that names it if some are NaN or infinite."""
    if values.isfinite().all():
        return values
    largest = max(((float(p.detach().abs().max()), name) for name, p in learner.named_parameters()), default=None)
    hint = f"; its largest number is {largest[0]:.3g}, in {largest[1]}" if largest else ""
    raise VlpromptError(
        f"{learner.method} on {learner.clip.name} gives NaN or infinity: what it learnt is damaged, or its training "
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
    """Score a learner on the test images of ``splits``, among its current class names, without their labels.

    Image features come from the bank where the learner leaves the image tower alone. To a learner that predicts online
    the images come in an order that follows from the seed, and what is returned stands in their own.

    Args:
        learner: whose ``class_names`` are those of ``splits``.
        splits: the dataset, or a half of it.
        limit: test images at most.
        workers: processes that load images.
        progress: called with the number of images done and in all.
        seed: of the order of a stream.
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
            if progress and "image_features" not in batch:  # which the bank has counted while it was built
                progress(done, len(items))

    own = order.argsort()
    if learner.facts.parts:  # which are asked for one by one, and so of learners that predict images alone
        found = [_in_parts(learner, batch) for batch in unlabelled()]
        several = {name: torch.cat([each[name] for each in found])[own] for name in found[0]}
        fused = several.pop(FUSED)
        parts = several if len(several) > 1 else {}
        return Scores(torch.cat(labels)[own], fused, parts, learner.temperature)
    logits = [finite(part.float().cpu(), learner) for part in learner.predict_all(unlabelled())]
    return Scores(torch.cat(labels)[own], torch.cat(logits)[own], temperature=learner.temperature)


def _in_parts(learner: PromptLearner, batch: Batch) -> dict[str, Tensor]:
    """The parts (B, C) of a batch's logits, and under ``FUSED`` the logits."""
    outputs: Outputs = learner(batch)
    return {
        name: finite(logits.float().cpu(), learner) for name, logits in {**outputs.parts, FUSED: outputs.logits}.items()
    }


def stream_order(images: int, seed: int | None) -> Tensor:
    """The places (N,) of test images in the order in which they come: their own, or a draw that a seed decides."""
    return (
        torch.arange(images) if seed is None else torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    )


def _batches(
    learner: PromptLearner,
    splits: DatasetSplits,
    items: Sequence[Item],
    order: Tensor,
    workers: int,
    progress: Progress | None,
) -> Iterator[Batch]:
    """Batches of test images in an order (N,); a bank has them in their own, so that all orders share it."""
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
        regions = RegionItems(splits, in_order, RegionTransform(clip))
        return eval_batches(regions, workers=workers, device=clip.device)
    transform = eval_transform(clip)
    if learner.predicts_from_images:
        return eval_batches(ImageItems(splits, in_order, transform), workers=workers, device=clip.device)
    bank = FeatureBank.open_or_build(clip, splits, items, transform=transform, workers=workers, progress=progress)
    return bank.taken(order).eval_batches()


def format_spread(
    clip: FrozenCLIP, splits: DatasetSplits, templates: Templates, *, limit: int | None = None, workers: int = 0
) -> dict[str, float]:
    """Return the zero-shot accuracy in [0, 1] of each template by itself, on the same test images.

    The spread between the best and the worst says how much of a gain may be the wording alone (FormatSpread, Sclar et
    al., ICLR 2024, arXiv:2310.11324).

    Args:
        clip: the frozen model.
        splits: the dataset, or a half of it.
        templates: a list, the name of a set such as ``imagenet80``, or a file; see ``vlprompt.data``.
        limit: test images at most.
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
    """Score a learner and zero-shot on the test images of ``splits``, with all metrics.

    The learner has its own class names again afterwards.

    Args:
        learner: any learner.
        splits: the dataset, or a half of it.
        target: what the row is called.
        class_names: in label order, in place of the dataset's; more of them than labels are distractors.
        templates: of zero-shot, in place of the dataset's.
        spread: templates to score zero-shot with one by one.
        limit: test images at most.
        workers: processes that load images.
        reporter: tells how it gets on.
        seed: of the order in which images come to a learner that predicts online.
        familiar: what the classes are to the learner, for one that scores trained classes by another rule; None goes by
            their names, and cannot know images of another dataset.

    Raises:
        VlpromptError: there are no test images, too few names, or the learner cannot score these classes.
    """
    check_items(splits, splits.test)
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
    with learner.scoring(splits.class_names, splits.class_places):
        learner.familiar = known = familiar or learner.familiar
        frozen, learnt = scored(zero_shot), scored(learner)
        others = [100 * scored(learner).accuracy for _ in redrawn(learner)]
    threshold = None if learner.calibration is None else learner.calibration.min_probability
    row = _make_row(target, splits, learnt, frozen, learner.facts.predicts, known, threshold)
    row = replace(row, draws=others) if others else row
    if row.predicts == "online":
        row = replace(row, order=seed)
    if spread is not None:
        by_template = format_spread(learner.clip, splits, spread, limit=limit, workers=workers)
        row = replace(row, format_spread={template: 100 * value for template, value in by_template.items()})
    return Evaluation(row, splits.class_names, limited(splits.test, limit), learnt, frozen)


def redrawn(learner: PromptLearner) -> Iterator[int]:
    """Let a learner predict with one other draw after another of what is drawn, and with its own again afterwards."""
    try:
        for turn in range(1, learner.n_draws + 1):
            learner.draw(turn)
            yield turn
    finally:
        learner.draw(0)


def check_predictions_file(path: Path) -> None:
    """Raise one sentence, before any image is scored, for a file of another kind than ``save_predictions`` writes."""
    if path.suffix not in (".csv", ".parquet"):
        raise VlpromptError(f"predictions are written as .csv or .parquet, not to {path.name}")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise VlpromptError('Parquet needs pyarrow: pip install "vlprompt[parquet]", or write .csv')


def save_predictions(evaluations: Iterable[Evaluation], path: Path) -> None:
    """Write one line an image to ``.csv`` or ``.parquet``: path, true and predicted class, confidence, zero-shot's."""
    check_predictions_file(path)
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("target", "path", "label", "class", "predicted", "predicted_class", "confidence", "correct",
                     "zero_shot", "zero_shot_class", "predicts")
    }  # fmt: skip
    for each in evaluations:
        names, said = each.class_names, each.predictions
        label, predicted, zero_shot = (x.tolist() for x in (said.label, said.predicted, said.zero_shot))
        for name, values in {
            "target": [each.row.target] * len(label),
            "path": [item.path for item in each.items],
            "label": label,
            "class": [names[i] for i in label],
            "predicted": predicted,
            "predicted_class": [names[i] for i in predicted],
            "confidence": [round(value, 6) for value in said.confidence.tolist()],
            "correct": [a == b for a, b in zip(label, predicted, strict=True)],
            "zero_shot": zero_shot,
            "zero_shot_class": [names[i] for i in zero_shot],
            "predicts": [each.row.predicts] * len(label),
        }.items():
            columns[name] += values
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        with atomic_write(path) as temporary:
            parquet.write_table(pyarrow.table(columns), temporary)
    else:
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(map(csv_cell, row) for row in zip(*columns.values(), strict=True))


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
    """Return a learner's top-1 accuracy, in [0, 1], on a dataset's test images.

    The learner scores the dataset's own class names and has its old ones again afterwards.

    Args:
        learner: any learner, from ``create_learner``, ``load_learner`` or ``run``.
        dataset: one of ``list_datasets()``, ``folder:PATH``, splits in hand, or a torch ``Dataset`` of (image, label)
            pairs or one of Hugging Face's, all of it to test on (of a ``DatasetDict`` its test part); without class
            names of its own its labels are the learner's classes.
        root: the folder that holds the datasets' folders; embedded datasets need none.
        half: ``all`` classes, or the ``base`` or ``new`` half, told apart among themselves.
        limit: test images at most.
        on_unreadable: ``skip``, with a warning, images in a ``folder:PATH`` or the like that cannot be read, or
            ``stop``.
        follow_links: read linked files and folders that lead out of such a folder.
        seed: of the order in which images come to a learner that predicts online.

    Raises:
        VlpromptError: the dataset is not there, or the learner cannot score its classes.
    """
    limit = None if limit is None else at_least("limit", limit, 1)
    if isinstance(dataset, str):
        splits = load_split(dataset, root, follow_links=follow_links).select(half)
        splits = leave_out_unreadable(splits, ["test"], on_unreadable) if is_own(dataset) else splits
    elif not (hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__") or isinstance(dataset, DatasetSplits)):
        raise VlpromptError(
            f"dataset must be a name, splits, or a Dataset of (image, label) pairs, not {told(dataset)}"
        )
    else:
        splits = as_splits(dataset, "test", learner.class_names).select(half)
    check_items(splits, splits.test)
    with learner.scoring(splits.class_names, splits.class_places):
        return score(learner, splits, limit=limit, seed=seed).accuracy
