"""Does every method compute on a device what it computes on the CPU? One table, in minutes.

python scripts/check_device.py [device=cuda] [methods=[coop,maple]] [output=table.json]

Of each registered method, on a small model: logits and gradients in fp32 against the CPU's, finite ones on bf16 and
fp16 towers, a test batch predicted, and the most memory that was allocated. Then a run on the device that is killed
and goes on, against one that is not. The exit status is 1 if anything is off. `tests/test_device.py` has the same
checks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from open_clip import SimpleTokenizer
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from vlprompt import list_methods
from vlprompt.base.devices import Precision, resolve_device
from vlprompt.base.files import atomic_write
from vlprompt.base.layout import LEARNABLES, LEARNER, LOG, RESULT
from vlprompt.base.reporter import make_console
from vlprompt.cli._shared import check_keys, command, file_setting, parse
from vlprompt.clip import FrozenCLIP
from vlprompt.errors import VlpromptError, first_line, nearest
from vlprompt.learner import PromptLearner
from vlprompt.testing import logits_of, loss_of, make_ready, small_clip, small_model, toy_batch

TOLERANCE = 1e-3  # relative difference of fp32 numbers from the CPU's
CANCELS = 1e-5  # share of the largest gradient below which one is rounding, as of a bias before a batch norm
LOW: tuple[Precision, ...] = ("bf16", "fp16")
VIEWS = 4  # of a test image
RUN = ["method=coop", "dataset=digits", "protocol=few_shot", "shots=1", "views=1", "n_ctx=4", "limit=50", "epochs=60"]
PATIENCE = 120  # seconds that a run may take to start


@dataclass(frozen=True)
class Row:
    """The findings on a method.

    Attributes:
        method: its name.
        logits, gradients: the largest relative difference from the CPU's in fp32; None where there are no gradients.
        bf16, fp16: ``finite``, what is not, or why that was not tried.
        memory_mb: most that was allocated; None on a CPU.
        seconds: that it all took.
        error: what went wrong, empty if nothing.
    """

    method: str
    logits: float | None = None
    gradients: float | None = None
    bf16: str = ""
    fp16: str = ""
    memory_mb: float | None = None
    seconds: float = 0.0
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether all is well."""
        near = all(value is None or value <= TOLERANCE for value in (self.logits, self.gradients))
        return near and not self.error and all(not text.startswith("not finite") for text in (self.bf16, self.fp16))


def check_method(method: str, device: torch.device) -> Row:
    """Compare a method on a device with itself on the CPU; an exception becomes the row's error."""
    start, found = time.perf_counter(), {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with exact_convolutions():
            found["logits"], found["gradients"] = parity(method, device)
        for precision in LOW:
            found[precision] = finite(method, device, precision)
    except Exception as error:  # of any kind, so that the other methods are still checked
        found["error"] = f"{type(error).__name__}: {first_line(error)}"
    memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return Row(method, **found, memory_mb=memory, seconds=time.perf_counter() - start)


def parity(method: str, device: torch.device) -> tuple[float, float | None]:
    """Relative differences of logits and of gradients from the CPU's, in fp32, of learners with the same numbers."""
    here, there = make_ready(method, small_clip()), make_ready(method, clip_on(device))
    there.load_state_dict(here.state_dict())
    apart = difference(logits_of(there), logits_of(here))
    if not here.trainable_parameters():
        return apart, None
    for learner in (here, there):
        learner.train()
        learner.backward(loss_of(learner))
    pairs = zip(there.named_parameters(), here.parameters(), strict=True)
    gradients = [(gradient_of(p, name), gradient_of(q, name)) for (name, p), q in pairs]
    least = CANCELS * max(float(expected.norm()) for _, expected in gradients)
    kept = [pair for pair in gradients if max(float(gradient.norm()) for gradient in pair) > least]
    return apart, max(difference(actual, expected) for actual, expected in kept)


def finite(method: str, device: torch.device, precision: Precision) -> str:
    """Train a step on towers of low precision and predict a test batch: ``finite``, or what is not."""
    if precision == "fp16" and device.type != "cuda":
        return "needs CUDA"
    learner = make_ready(method, clip_on(device, precision))
    numbers = {}
    if learner.trainable_parameters():
        learner.train()
        learner.backward(loss_of(learner))
        numbers = {f"gradient of {name}": gradient_of(p, name) for name, p in learner.named_parameters()}
    numbers["logits"] = logits_of(learner)
    numbers["prediction"] = torch.cat(list(learner.predict_all([test_batch(learner)])))
    wrong = [name for name, tensor in numbers.items() if not tensor.isfinite().all()]
    return f"not finite: {wrong[0]}" if wrong else "finite"


def test_batch(learner: PromptLearner) -> dict[str, Tensor]:
    """The test batch that a learner needs of the toy images: several noisy views, or a region."""
    images = toy_batch(3)["image"]
    noise = torch.randn(3, learner.n_views or VIEWS, *images.shape[1:], generator=torch.Generator().manual_seed(1))
    region = (torch.arange(images.shape[-1]) % 2).expand(3, 1, *images.shape[2:])
    more = {"views": images[:, None] + noise / 4, "mask": region.float()}
    return {"image": images} | {key: tensor for key, tensor in more.items() if key in learner.facts.inputs}


def clip_on(device: torch.device, precision: Precision = "fp32") -> FrozenCLIP:
    """The small model on a device."""
    return FrozenCLIP(small_model(), SimpleTokenizer(), precision=precision, device=device)


def gradient_of(parameter: torch.nn.Parameter, name: str) -> Tensor:
    """A parameter's gradient, which must exist."""
    if parameter.grad is None:
        raise AssertionError(f"no gradient reaches {name}")
    return parameter.grad


def difference(actual: Tensor, expected: Tensor) -> float:
    """The distance of two tensors relative to the norm of the second."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-12))


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Let cuDNN convolve in fp32 instead of TF32; matrix products are in fp32 by default."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def check_resumed_run(device: str, folder: Path) -> float:
    """Kill a run on a device half-way, resume it, and return how far its learnables are from those of a whole run.

    Raises:
        RuntimeError: a run failed, or did not get going.
    """
    command = [sys.executable, "-m", "vlprompt.train", *RUN, f"device={device}", f"output={folder}", "--quiet"]
    subprocess.run([*command, "name=whole"], check=True, capture_output=True)
    stopped = [*command, "name=killed", "checkpoint_seconds=0"]
    with subprocess.Popen(stopped, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _wait_for_epochs(process, folder / "killed" / LOG, 3)
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    if (folder / "killed" / RESULT).exists():
        raise RuntimeError("the run was done before it could be killed: give it more epochs")
    subprocess.run([*stopped, "resume=true"], check=True, capture_output=True)
    whole, killed = (load_file(folder / name / LEARNER / LEARNABLES) for name in ("whole", "killed"))
    return max(difference(killed[key], tensor) for key, tensor in whole.items())


def _wait_for_epochs(process: subprocess.Popen[bytes], log: Path, count: int) -> None:
    until = time.monotonic() + PATIENCE
    while not (log.exists() and len(log.read_text().splitlines()) >= count):
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the run did not get to epoch {count}")
        time.sleep(0.02)


def describe(device: torch.device) -> str:
    """A device's name, with settings that affect numbers."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, torch {torch.__version__}"


def show(rows: Sequence[Row], title: str) -> Table:
    """The table."""
    table = Table("method", "logits", "gradients", "bf16", "fp16", "MB", "s", "", title=title)
    for row in rows:
        numbers = ["" if value is None else f"{value:.1e}" for value in (row.logits, row.gradients)]
        memory = "" if row.memory_mb is None else f"{row.memory_mb:.0f}"
        state = "ok" if row.good else row.error or "off"
        table.add_row(row.method, *numbers, row.bf16, row.fp16, memory, f"{row.seconds:.1f}", state)
    return table


@command(__doc__)
def main(argv: Sequence[str]) -> int:
    """Check all methods and a killed run, and print the table; the exit status is 0 if all is well."""
    settings = parse(argv).settings
    check_keys(settings, ("device", "methods", "output"))
    asked, output = str(settings.get("device", "cuda")), file_setting(settings, "output")
    device = resolve_device(asked)
    methods = settings.get("methods", list_methods())
    methods = methods if isinstance(methods, list) else [methods]
    for method in methods:
        if method not in list_methods():
            raise VlpromptError(f"unknown method '{method}': {nearest(str(method), list_methods())}")
    rows = [check_method(method, device) for method in methods]
    console = make_console()
    console.print(show(rows, f"{describe(device)}: differences from the CPU relative to its norm"))
    with tempfile.TemporaryDirectory() as folder:
        try:
            apart, error = check_resumed_run(asked, Path(folder)), ""
        except (RuntimeError, subprocess.CalledProcessError) as failure:
            apart, error = float("nan"), first_line(failure)
    resumed = apart <= TOLERANCE
    console.print(f"a run that was killed and went on: {error or f'{apart:.1e} from one that was not'}")
    if output:
        report = {"device": describe(device), "rows": [asdict(row) for row in rows], "resumed": apart, "error": error}
        with atomic_write(output) as temporary:
            temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0 if resumed and all(row.good for row in rows) else 1


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for a resumed run: the same sums each time
    sys.exit(main())
