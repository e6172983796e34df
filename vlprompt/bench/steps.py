"""What the fast paths are worth: ratios of time and memory, each pair measured in one run on one machine.

Every measurement is a process of its own, so that its peak memory is its own. "Full length" is the plain counterpart of
prefix sharing, the way of the published code; "careful" is what a user of OpenCLIP would write who thinks of speed:
whole sequences, but cut behind the longest prompt, fused attention, and features that are computed once wherever images
do not change. A measurement that would not fit in memory is skipped and says so.

A step is measured on images that it has not seen, and moves the learnables, so that nothing is remembered that a
training would have to compute.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from vlprompt.base.devices import Precision
from vlprompt.base.environment import process_peak, total_memory
from vlprompt.clip.chunks import KEPT
from vlprompt.clip.edits import FullLength, Trimmed
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.loading import TINY, load_clip
from vlprompt.clip.openclip import IMAGENET_CLASSNAMES
from vlprompt.data.batch import Batch
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.errors import VlpromptError
from vlprompt.learner.creation import create_learner
from vlprompt.methods.test_time.tpt import TPT

SMALL_STEP = 1e-6  # learning rate: learnables move, and random weights stay finite
MATMUL_SIZE = 2048  # of the matrices whose product gives the machine's peak
TRIMMED = 40  # tokens of a long class prompt, at most


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        method, settings: the learner.
        classes, batch: C and B.
        what: a training ``step``, the ``text`` side's forward and backward, ``images``, a frozen forward pass, or
            ``adapt``, the tuning and the prediction of one test image by B views.
        text: ``shared``, ``full`` or, for whole sequences cut behind the longest prompt, ``trimmed``.
        images: ``cached`` features, or ``fresh`` ones from the tower.
        precision: of the towers.
        groups: prompts of each class in a step, G: the batch where they are image-conditioned, several of a collection.
        one_by_one: images of a batch in steps of their own, their gradients added, as memory demands at full length.
    """

    method: str = "coop"
    settings: dict[str, Any] = field(default_factory=dict)
    classes: int = 100
    batch: int = 32
    what: str = "step"
    text: str = "shared"
    images: str = "cached"
    precision: Precision = "fp32"
    groups: int = 1
    one_by_one: bool = False


def class_names(count: int) -> list[str]:
    """ImageNet's first names, which seldom begin alike; behind its thousand, two of them at a time."""
    different = dict.fromkeys(IMAGENET_CLASSNAMES)
    if count > len(different) ** 2:
        raise VlpromptError(f"classes={count} is more than there are names to measure with: {len(different) ** 2}")
    made = (f"{second} and {first}" for first in different for second in different)
    return [*IMAGENET_CLASSNAMES[:count], *islice(made, max(count - len(IMAGENET_CLASSNAMES), 0))]


@dataclass(frozen=True)
class Work:
    """What is measured.

    Attributes:
        fresh: makes the input, each time another one, and is not timed.
        run: takes it.
    """

    fresh: Callable[[], Any]
    run: Callable[[Any], object]


def work(case: Case, clip: FrozenCLIP) -> Work:
    """Return what is measured of a case."""

    def images() -> torch.Tensor:
        return torch.randn(case.batch, 3, clip.image_size, clip.image_size)

    if case.what == "images":
        return Work(images, clip.encode_image)
    learner = create_learner(case.method, clip, class_names(case.classes), **case.settings)
    learner.train()
    if case.text != "shared":
        learner.edits.append(FullLength() if case.text == "full" else Trimmed())
    if case.what == "adapt":
        return _adapting(cast(TPT, learner.eval()), case, images)
    optimizer = torch.optim.SGD(learner.trainable_parameters(), lr=SMALL_STEP)

    def batches() -> list[Batch]:
        batch = Batch(label=torch.arange(case.batch) % case.classes, index=torch.arange(case.batch))
        if case.images == "cached":
            batch["image_features"] = torch.randn(case.batch, clip.embed_dim)
        if case.images == "fresh" or not learner.facts.cacheable_images:
            batch["image"] = images()
        return [_one(batch, i) for i in range(case.batch)] if case.one_by_one else [batch]

    def step(parts: list[Batch]) -> None:
        optimizer.zero_grad()
        for part in parts:
            learner.backward(learner.loss(part))
        optimizer.step()

    def text(_: None) -> None:
        optimizer.zero_grad()
        learner.encode_text().square().sum().backward()
        optimizer.step()

    return Work(lambda: None, text) if case.what == "text" else Work(batches, step)


def _adapting(learner: TPT, case: Case, images: Callable[[], torch.Tensor]) -> Work:
    """The text side of one test image, by features of its views in hand, or all of it."""
    if case.images == "cached":
        return Work(lambda: F.normalize(torch.randn(case.batch, learner.clip.embed_dim), dim=-1), learner.adapt)
    return Work(lambda: Batch(views=images()[None]), learner.predict)


def _one(batch: Batch, i: int) -> Batch:
    return cast(Batch, {key: tensor[i : i + 1] for key, tensor in cast("dict[str, torch.Tensor]", batch).items()})


def own_weights(backbone: str) -> str | None:
    """``random`` for an architecture, whose speed does not depend on weights; None for a model that has its own."""
    return None if backbone == TINY or ":" in backbone else "random"


def measure(case: Case, backbone: str, repeats: int) -> dict[str, float]:
    """Measure a case in this process.

    Returns:
        Medians of ``seconds`` and of ``cpu_s``, in which the processor was busy with it, all threads together, so that
        other programs hardly lengthen them; ``memory_mb`` at most beside the model; ``gflop``.
    """
    clip = load_clip(backbone, own_weights(backbone), precision=case.precision, device="cpu")
    measured = work(case, clip)
    given = measured.fresh()
    before = reset_peak_memory()
    measured.run(given)
    memory = (process_peak() or 0.0) - before
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(times) < repeats and (len(times) < 1 or time.perf_counter() - start < 20):
        given = measured.fresh()
        at, busy = time.perf_counter(), time.process_time()
        measured.run(given)
        times.append((time.perf_counter() - at, time.process_time() - busy))
    given = measured.fresh()
    with FlopCounterMode(display=False) as counter:
        measured.run(given)
    seconds, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    return {"seconds": seconds, "cpu_s": cpu, "memory_mb": memory, "gflop": counter.get_total_flops() / 1e9}


def reset_peak_memory() -> float:
    """Let the peak start again from the present memory, where the system can (Linux), and return it in MB."""
    with contextlib.suppress(OSError):  # elsewhere the peak of loading the model hides what is smaller
        Path("/proc/self/clear_refs").write_text("5")
    return process_peak() or 0.0


def matmul_peak(dtype: torch.dtype) -> float:
    """Measured GFLOP/s of a large matrix product, best of a few."""
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * MATMUL_SIZE**3 / best / 1e9


def full_length_bytes(case: Case, clip: FrozenCLIP) -> float:
    """Rough memory that autograd keeps for the text side of a case, of whole sequences."""
    length = clip.context_length if case.text == "full" else TRIMMED
    tokens = length * case.classes * (1 if case.one_by_one else case.groups)
    return tokens * clip.text.layers * clip.text.width * KEPT


def in_process(case: Case, backbone: str, repeats: int) -> dict[str, Any]:
    """``measure`` in a fresh process; ``skipped`` says why there are no numbers."""
    arguments = json.dumps({"case": asdict(case), "backbone": backbone, "repeats": repeats})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "vlprompt.bench.steps", arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed, probably for want of memory"])[-1]
        return {"skipped": last}
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


@dataclass(frozen=True)
class Pair:
    """A comparison: how many times faster and smaller ``fast`` is than ``plain``, and than ``careful`` code."""

    title: str
    fast: Case
    plain: Case
    careful: Case | None = None


SRC = {
    "objective": [
        "ce",
        f"text_anchor(weight=25, distance='l1', templates=['{DEFAULT_TEMPLATE}'])",
        "image_anchor(weight=10)",
        f"logit_kl(templates=['{DEFAULT_TEMPLATE}'])",
    ]
}

# what enters the text tower in the middle or stands beside its blocks, with the recipes' batches
INSIDE: dict[str, dict[str, Any]] = {
    "tcp": {"batch": 32},
    "mma": {"batch": 16, "images": "fresh"},
    "mmrl": {"batch": 4, "images": "fresh"},
}


def pairs(classes: Sequence[int], methods: Sequence[str], layers: int) -> list[Pair]:
    """All comparisons for class counts C, on a backbone whose shallower tower has so many layers."""
    out: list[Pair] = []
    depth = min(9, layers)

    def add(title: str, fast: dict[str, Any], plain: dict[str, Any]) -> None:
        careful = fast | {"text": "trimmed", "precision": "fp32"} if plain.get("text") == "full" else None
        out.append(Pair(title, Case(**fast), Case(**(fast | plain)), Case(**careful) if careful else None))

    for c in classes:
        if "coop" in methods:
            coop = {"method": "coop", "settings": {"n_ctx": 16, "text_chunk": "auto"}, "classes": c}
            add(
                f"coop C={c}: text forward+backward, prefix sharing / full length",
                coop | {"what": "text"},
                {"text": "full"},
            )
            add(
                f"coop C={c}: step, prefix sharing + cached images / full length + fresh images",
                coop,
                {"text": "full", "images": "fresh"},
            )
            add(
                f"coop C={c}: the same with bf16 towers",
                coop | {"precision": "bf16"},
                {"text": "full", "images": "fresh", "precision": "fp32"},
            )
            add(f"coop C={c}: step, cached / fresh images", coop, {"images": "fresh"})
            add(f"coop C={c}: step, bf16 / fp32 towers", coop | {"precision": "bf16"}, {"precision": "fp32"})
        if "maple" in methods:
            maple = {"method": "maple", "classes": c, "batch": 4, "images": "fresh", "settings": {"depth": depth}}
            add(f"maple C={c}: step, prefix sharing / full length", maple, {"text": "full"})
            add(f"maple C={c}: step, bf16 / fp32 towers", maple | {"precision": "bf16"}, {"precision": "fp32"})
    hundred = min(max(classes), 100)
    if "cocoop" in methods:
        for b in (1, 8):
            cocoop = {"method": "cocoop", "classes": hundred, "batch": b, "groups": b, "settings": {"n_ctx": 4}}
            add(
                f"cocoop C={hundred} B={b}: step, prefix sharing / full length",
                cocoop,
                {"text": "full", "one_by_one": b > 1},
            )
    if "promptsrc" in methods:
        promptsrc = {
            "method": "promptsrc",
            "classes": hundred,
            "batch": 4,
            "images": "fresh",
            "settings": SRC | {"depth": depth, "vision_depth": depth},
        }
        add(
            f"promptsrc C={hundred}: text forward+backward, prefix sharing / full length",
            promptsrc | {"what": "text"},
            {"text": "full"},
        )
        add(f"promptsrc C={hundred}: step, prefix sharing / full length", promptsrc, {"text": "full"})
    if "proda" in methods:
        proda = {"method": "proda", "classes": hundred, "batch": 4, "groups": 4}
        add(f"proda C={hundred}: step, prefix sharing / full length", proda, {"text": "full"})
    for method in [method for method in INSIDE if method in methods]:
        inside = {"method": method, "classes": hundred, **INSIDE[method]}
        add(
            f"{method} C={hundred}: text forward+backward, prefix sharing / full length",
            inside | {"what": "text"},
            {"text": "full"},
        )
        add(f"{method} C={hundred}: step, prefix sharing / full length", inside, {"text": "full"})
    if "tpt" in methods:
        tpt = {"method": "tpt", "classes": hundred, "batch": 64, "what": "adapt", "settings": {"n_views": 64}}
        add(f"tpt C={hundred}: text side of one test image, prefix sharing / full length", tpt, {"text": "full"})
        add(
            f"tpt C={hundred}: one test image with its 64 views, prefix sharing / full length",
            tpt | {"images": "fresh"},
            {"text": "full"},
        )
    if "images" in methods:
        images = {"what": "images", "batch": 8, "precision": "bf16"}
        add("image encoding, bf16 / fp32 towers", images, {"precision": "fp32"})
    return out


def bench(
    backbone: str = "ViT-B-16",
    classes: Sequence[int] = (10, 100, 1000),
    methods: Sequence[str] = ("images", "coop", "maple", "cocoop", "promptsrc", "proda", *INSIDE, "tpt"),
    repeats: int = 5,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure all comparisons and return them with the machine's facts.

    Args:
        backbone: an architecture, with random weights.
        classes: class counts C.
        methods: what to measure: ``images``, ``coop``, ``maple``, ``cocoop``, ``promptsrc``, ``proda``, ``tcp``,
            ``mma``, ``mmrl``, ``tpt``.
        repeats: timed runs of a measurement at most; slow ones stop after 20 s.
        say: told of each comparison as it is measured.

    Raises:
        VlpromptError: a class count is larger than ImageNet's.
    """
    class_names(max(classes))  # too many are refused before anything is measured
    torch.manual_seed(0)
    clip = load_clip(backbone, own_weights(backbone), device="cpu")
    room = 0.8 * total_memory(clip.device)
    peaks = {"fp32": matmul_peak(torch.float32), "bf16": matmul_peak(torch.bfloat16)}
    known: dict[str, dict[str, Any]] = {}

    def result_of(case: Case) -> dict[str, Any]:
        key = json.dumps(asdict(case))
        if key not in known:
            too_large = case.text != "shared" and full_length_bytes(case, clip) > room
            known[key] = {"skipped": "would not fit in memory"} if too_large else in_process(case, backbone, repeats)
        return known[key]

    rows = []
    layers = min(clip.text.layers, clip.visual.layers)
    for pair in pairs(classes, methods, layers):
        cases = [case for case in (pair.fast, pair.plain, pair.careful) if case]
        fast, plain, *careful = map(result_of, cases)
        row = {"title": pair.title, "fast": fast, "plain": plain, "cases": [asdict(case) for case in cases]}
        if "seconds" in fast:
            row["share_of_peak"] = fast["gflop"] / fast["seconds"] / peaks[pair.fast.precision]
            if "seconds" in plain:
                row["times_faster"] = plain["seconds"] / fast["seconds"]
                row["times_smaller"] = plain["memory_mb"] / max(fast["memory_mb"], 1.0)
            for other in careful:
                row["careful"] = other
                if "seconds" in other:
                    row["times_faster_than_careful"] = other["seconds"] / fast["seconds"]
        rows.append(row)
        say(summary(row))
    flags = torch.backends.cpu.get_cpu_capability()
    machine = {"threads": torch.get_num_threads(), "cpu_capability": flags, "gflops": peaks, "torch": torch.__version__}
    return {"backbone": backbone, "machine": machine, "rows": rows}


def summary(row: dict[str, Any]) -> str:
    """A row as one line of text."""
    fast, plain = row["fast"], row["plain"]
    if "skipped" in fast:
        return f"{row['title']}: skipped ({fast['skipped']})"
    text = f"{row['title']}: {fast['seconds']:.3f} s, {fast['memory_mb']:.0f} MB, {row['share_of_peak']:.0%} of peak"
    if "skipped" in plain:
        return f"{text}; the other skipped ({plain['skipped']})"
    careful = row.get("times_faster_than_careful")
    return (
        f"{text}; {row['times_faster']:.1f}x faster and {row['times_smaller']:.1f}x smaller than "
        f"{plain['seconds']:.3f} s, {plain['memory_mb']:.0f} MB"
        + (f"; {careful:.1f}x faster than careful code's {row['careful']['seconds']:.3f} s" if careful else "")
    )


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(measure(Case(**asked["case"]), asked["backbone"], asked["repeats"])))
