"""The cost of fitting heads on synthetic frozen features: seconds, memory, and passes over all class scores."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlprompt.base.environment import Clock, process_peak
from vlprompt.base.reporter import Reporter
from vlprompt.bench.cases import class_names
from vlprompt.bench.fresh_process import ProcessFailed, run_module
from vlprompt.bench.measuring import reset_peak_memory
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import DatasetSplits, FeatureBank
from vlprompt.data.splits import Item, without_labels
from vlprompt.errors import VlpromptError, nearest
from vlprompt.learner.creation import create_learner
from vlprompt.learner.registration import list_methods, method_info
from vlprompt.testing import small_clip
from vlprompt.training.feed import FeatureFeed
from vlprompt.training.feeding import make_feed
from vlprompt.training.recipes import resolve_learning
from vlprompt.training.trainer import Trainer

SPREAD = 0.7  # of made features around their class's direction, in all
IMAGENET = 1000  # classes
PRODUCTS = 5  # of all features and class weights, of which the quickest is the measure of work
MEASURED_STEPS = 100  # that stand for an epoch of a head that is trained for a number of steps


@dataclass(frozen=True)
class Case:
    """A head to fit to synthetic features.

    Attributes:
        method: the head.
        classes, width: C and D.
        shots, views: images per class, and views of each image that a head may ask for.
        epochs: epochs of the training loop, at most; the recipe's if these are fewer.
    """

    method: str
    classes: int
    width: int
    shots: int
    views: int
    epochs: int


@dataclass(frozen=True)
class MadeFeed(FeatureFeed):
    """A feed over synthetic features of several views (V, N, D)."""

    made: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))

    def _encoded(self, clip: FrozenCLIP, items: Sequence[Item], views: int, progress: Any) -> FeatureBank:
        made, rows = self.made[:views], [int(item.path) for item in items]
        if rows != list(range(made.shape[1])):  # all of them in order are no copy
            made = made[:, rows]
        return FeatureBank(made, torch.tensor([item.label for item in items]))


def list_heads() -> list[str]:
    """The registered methods that need frozen features alone."""
    facts = {method: method_info(method) for method in list_methods()}
    return [m for m, f in facts.items() if f["cacheable_images"] and (f["head"] or "head" in f["trains"])]


def measure(case: Case) -> dict[str, float]:
    """Fit a head in this process.

    Returns:
        ``seconds`` that were measured, ``cpu_s`` that the processor was busy with it, which other programs do not
        lengthen, ``whole_s`` and ``whole_cpu_s`` of a whole fit (more where not all of the recipe's epochs or steps
        were gone through), ``memory_mb`` beside what was there before, ``process_mb`` in all, and ``passes``, the
        whole fit's work in products of all features and class weights.
    """
    torch.manual_seed(0)
    n = case.classes * case.shots
    centres = torch.nn.functional.normalize(torch.randn(case.classes, case.width), dim=1)
    labels = torch.arange(n) % case.classes
    made = torch.randn(case.views, n, case.width).mul_(SPREAD * case.width**-0.5).add_(centres[labels])
    around = {"dataset": "imagenet"} if case.classes == IMAGENET else {}  # whose names they have, and recipe
    learning = resolve_learning(case.method, {"shots": case.shots, "seed": 1}, **around)
    whole, options, most = learning, learning.config, case.epochs
    steps = None if options.steps is None else min(options.steps, most * MEASURED_STEPS)
    learning = replace(learning, config=replace(options, epochs=min(options.epochs, most), steps=steps))
    clip = small_clip(embed_dim=case.width)
    learner = create_learner(case.method, clip, class_names(case.classes), **learning.method_settings)
    learner.text_features()  # so that encoding texts is no part of the fit
    busy_in_loop = Clock(time.process_time)
    trainer = Trainer(learning.config, {"seed": 1}, clock=busy_in_loop)
    feed = made_feed(learner, made, labels, whole)  # with the views of all its epochs
    before = reset_peak_memory()
    seconds, busy = _timed(lambda: trainer.fit(learner, feed))
    peak = process_peak() or 0.0
    product = min(_timed(lambda: made[0] @ centres.T)[1] for _ in range(PRODUCTS))
    done, all_of_it = (x.steps if x.steps is not None else x.epochs for x in (learning.config, options))
    # what comes once is left out
    loop, more = sum(record["seconds"] for record in trainer.history), all_of_it / done - 1
    whole_s, whole_busy = seconds + more * loop, busy + more * busy_in_loop.seconds.get("train", 0.0)
    costs = {"seconds": seconds, "cpu_s": busy, "whole_s": whole_s, "whole_cpu_s": whole_busy}
    passes = whole_busy / (case.views * product)
    return {**costs, "passes": passes, "memory_mb": peak - before, "process_mb": peak}


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Elapsed seconds, and seconds of processor time of all threads together."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


def made_feed(learner: Any, made: Tensor, labels: Tensor, learning: Any) -> MadeFeed:
    """Synthetic features (V, N, D) as labelled images, or as a pool if a method takes no labels."""
    names = learner.class_names
    items = [Item(str(i), y, names[y]) for i, y in enumerate(labels.tolist())]
    data = DatasetSplits("made", names, items, (), (), open_image=_no_image)
    if learner.facts.labels == "none":
        data = replace(data, train=(), pool=without_labels(items))
    feed = make_feed(learner, data, learning, Reporter(quiet=True))
    return MadeFeed(**vars(feed), rows=made[0], made=made)


def _no_image(item: Item) -> Any:
    raise VlpromptError(f"made features have no images, and {item.path} was asked for")


def bench_heads(
    classes: int = 1000,
    width: int = 512,
    shots: int = 16,
    views: int = 10,
    *,
    methods: Sequence[str] | None = None,
    epochs: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fit each registered head to synthetic features by its few-shot recipe, each in a process of its own.

    Args:
        classes, width: C and D; 512 is ViT-B/16's, and 1,000 classes are ImageNet's, with its recipes.
        shots, views: images per class, and views of each image.
        methods: the heads; None for all.
        epochs: at most so many epochs of heads that the training loop trains; the time of a whole fit is extrapolated.
        say: called with each result as a line.

    Returns:
        ``{"classes": …, "heads": {method: measured}}``, see ``measure``; instead of numbers, ``failed`` gives a reason.

    Raises:
        VlpromptError: a name is not that of a head.
    """
    known = list_heads()
    for method in methods or ():
        if method not in known:
            raise VlpromptError(f"'{method}' is no head that is fitted to features: {nearest(str(method), known)}")
    class_names(classes)  # too many are refused before anything is measured
    measured = {}
    for method in methods or known:
        case = Case(method, classes, width, shots, views, epochs)
        measured[method] = _in_process(case)
        say(summary(method, measured[method]))
    conditions = {key: value for key, value in asdict(case).items() if key != "method"}
    return conditions | {"threads": torch.get_num_threads(), "torch": torch.__version__, "heads": measured}


def summary(method: str, row: dict[str, Any]) -> str:
    """A head's costs as one line of text."""
    if "failed" in row:
        return f"{method}: failed ({row['failed']})"
    part = "" if row["whole_s"] == row["seconds"] else f" ({row['seconds']:.1f} s measured)"
    sizes = f"{row['memory_mb']:,.0f} MB, {row['process_mb']:,.0f} MB in all"
    times = f"{row['whole_s']:.1f} s, {row['whole_cpu_s']:.1f} s of processor time{part}"
    return f"{method}: {times}, {row['passes']:.1f} passes over all class scores; {sizes}"


def _in_process(case: Case) -> dict[str, Any]:
    """``measure`` in a new process; if there are no numbers, ``failed`` says why."""
    try:
        return run_module("vlprompt.bench.heads", asdict(case))
    except ProcessFailed as error:
        return {"failed": str(error)}


if __name__ == "__main__":
    print(json.dumps(measure(Case(**json.loads(sys.argv[1])))))
