"""One case measured on a device: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from vlprompt.base.devices import DTYPES
from vlprompt.base.environment import process_peak
from vlprompt.bench.cases import Case, class_names
from vlprompt.bench.fresh_process import ProcessFailed, run_module
from vlprompt.clip.catalog import TINY
from vlprompt.clip.chunks import KEPT
from vlprompt.clip.edits import FullLength, Trimmed
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.loading import load_clip
from vlprompt.data.batch import Batch
from vlprompt.learner.creation import create_learner
from vlprompt.methods.test_time.tpt import TPT

SMALL_STEP = 1e-6  # learning rate: learnables move, and random weights stay finite
MATMUL_SIZE = 2048  # of the matrices whose product gives a CPU's peak
GPU_MATMUL_SIZE = 8192  # and a GPU's, which smaller ones do not fill
TRIMMED = 40  # tokens of a long class prompt, at most
GPU_REPEATS = 10  # times as many, since they are short; the first of them are slower than the rest
PATIENCE = 20  # seconds after which nothing is repeated any more


@dataclass(frozen=True)
class Work:
    """The work that is measured.

    Attributes:
        fresh: makes an input, a new one each time; it is not timed.
        run: processes an input.
    """

    fresh: Callable[[], Any]
    run: Callable[[Any], object]


def work(case: Case, clip: FrozenCLIP) -> Work:
    """Return the work of a case, on the model's device."""
    device = clip.device

    def images() -> torch.Tensor:
        return torch.randn(case.batch, 3, clip.image_size, clip.image_size, device=device)

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
        index = torch.arange(case.batch, device=device)
        batch = Batch(label=index % case.classes, index=index)
        if case.images == "cached":
            batch["image_features"] = torch.randn(case.batch, clip.embed_dim, device=device)
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
    """Work for one test image: the text side alone from features of its views, or everything."""
    if case.images == "cached":
        shape = (case.batch, learner.clip.embed_dim)
        return Work(lambda: F.normalize(torch.randn(shape, device=learner.clip.device), dim=-1), learner.adapt)
    return Work(lambda: Batch(views=images()[None]), learner.predict)


def _one(batch: Batch, i: int) -> Batch:
    return cast(Batch, {key: tensor[i : i + 1] for key, tensor in cast("dict[str, torch.Tensor]", batch).items()})


def own_weights(backbone: str) -> str | None:
    """``random`` for an architecture, whose speed does not depend on weights; None for a model that has its own."""
    return None if backbone == TINY or ":" in backbone else "random"


def measure(case: Case, backbone: str, repeats: int, device: str = "cpu") -> dict[str, float]:
    """Measure a case in this process.

    Returns:
        Medians of ``seconds``, on CUDA by the device's own events, and of ``cpu_s``, in which the processor was busy
        with it, all threads together, so that other programs hardly lengthen them; ``memory_mb`` at most beside the
        model, of the device where that is a GPU; ``gflop``.
    """
    clip = load_clip(backbone, own_weights(backbone), precision=case.precision, device=device)
    measured, where = work(case, clip), clip.device
    inputs = measured.fresh()
    before = reset_peak_memory(where)
    measured.run(inputs)
    memory = _peak(where) - before
    times: list[tuple[float, float]] = []
    if where.type != "cpu":
        repeats *= GPU_REPEATS
    start = time.perf_counter()
    while len(times) < repeats and (len(times) < 1 or time.perf_counter() - start < PATIENCE):
        inputs = measured.fresh()
        times.append(timed(partial(measured.run, inputs), where))
    inputs = measured.fresh()
    with FlopCounterMode(display=False) as counter:
        measured.run(inputs)
    seconds, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    return {"seconds": seconds, "cpu_s": cpu, "memory_mb": memory, "gflop": counter.get_total_flops() / 1e9}


def timed(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds until a device has finished its work, and seconds of processor time that it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        busy, begin, end = time.process_time(), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1e3, time.process_time() - busy
    _finish(device)
    at, busy = time.perf_counter(), time.process_time()
    run()
    _finish(device)
    return time.perf_counter() - at, time.process_time() - busy


def _finish(device: torch.device) -> None:
    if device.type == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: torch.device | None = None) -> float:
    """Reset the peak to the present memory, if the system can (Linux, CUDA), and return it in MB."""
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return _peak(device)
    with contextlib.suppress(OSError):  # elsewhere the peak of loading the model hides what is smaller
        Path("/proc/self/clear_refs").write_text("5")
    return process_peak() or 0.0


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else process_peak() or 0.0


def matrix_peaks(device: torch.device) -> dict[str, float]:
    """Measured GFLOP/s of large matrix products by precision; on CUDA with TF32 and fp16 beside fp32 and bf16."""
    known = ("fp32", "bf16") if device.type == "cpu" else tuple(DTYPES)
    peaks = {name: _matrix_peak(DTYPES[name], device) for name in known}
    if device.type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            peaks["tf32"] = _matrix_peak(torch.float32, device)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return peaks


def _matrix_peak(dtype: torch.dtype, device: torch.device) -> float:
    """The best of a few measurements."""
    size = MATMUL_SIZE if device.type == "cpu" else GPU_MATMUL_SIZE
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(timed(lambda: a @ b, device)[0] for _ in range(6))
    return 2 * size**3 / best / 1e9


def full_length_bytes(case: Case, clip: FrozenCLIP) -> float:
    """A rough estimate of the memory that autograd keeps for a case's text side, with full-length sequences."""
    length = clip.context_length if case.text == "full" else TRIMMED
    tokens = length * case.classes * (1 if case.one_by_one else case.groups)
    return tokens * clip.text.layers * clip.text.width * KEPT


def in_process(case: Case, backbone: str, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """``measure`` in a new process; if there are no numbers, ``skipped`` says why."""
    arguments = {"case": asdict(case), "backbone": backbone, "repeats": repeats, "device": device}
    try:
        return run_module("vlprompt.bench.measuring", arguments)
    except ProcessFailed as error:
        return {"skipped": str(error)}


def describe(device: torch.device) -> dict[str, Any]:
    """The facts of a device that affect speed."""
    facts: dict[str, Any] = {"device": device.type, "threads": torch.get_num_threads(), "torch": torch.__version__}
    facts["gflops"] = matrix_peaks(device)
    if device.type == "cuda":
        return facts | {"card": torch.cuda.get_device_name(device)}
    return facts | {"cpu_capability": torch.backends.cpu.get_cpu_capability()}


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    print(json.dumps(measure(Case(**arguments.pop("case")), **arguments)))
