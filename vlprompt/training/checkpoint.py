"""Checkpoints: the state of a training in one safetensors file, written atomically and verified when read."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vlprompt.base.layout import CHECKPOINT
from vlprompt.base.sealed import TENSOR_SEAL, read_tensors, write_tensors
from vlprompt.base.threads import computing_with
from vlprompt.errors import VlpromptError, warn
from vlprompt.learner.aggregation import aggregation_state, load_aggregation_state
from vlprompt.learner.contract import PromptLearner

FORMAT = "vlprompt-checkpoint/2"  # version 1, of vlprompt 0.1.0, records neither backbone nor data
WHAT, REMEDY = "the checkpoint", "delete it and start again"
OTHERS = {
    "settings": "a run with other settings",
    "backbone": "training on another backbone: what stands under its name has changed since",
    "stage": "another stage of the training",
    "data": "training on other images: those of the dataset have changed since",
}


@dataclass(frozen=True)
class Checkpoint:
    """Everything that is needed to continue a training.

    Attributes:
        tensors: ``learner.NAME``, ``training.NAME`` (the aggregator's state), ``selection.NAME`` (the best epoch's
            learnables) and ``optimizer.INDEX.BUFFER``.
        history: records of the completed epochs.
        identity: ``settings``, ``backbone`` and ``data`` of the run, as far as they are known, and ``stage``.
    """

    tensors: dict[str, Tensor]
    history: list[dict[str, Any]]
    identity: dict[str, str]

    @classmethod
    def of(
        cls,
        learner: nn.Module,
        optimizer: torch.optim.Optimizer,
        history: list[dict[str, Any]],
        identity: str | Mapping[str, str],
        selected: Mapping[str, Tensor] | None = None,
    ) -> Checkpoint:
        """Copy the present state to the CPU."""
        tensors = {f"learner.{name}": tensor for name, tensor in learner.state_dict().items()}
        tensors |= {f"training.{name}": tensor for name, tensor in aggregation_state(learner).items()}
        tensors |= {f"selection.{name}": tensor for name, tensor in (selected or {}).items()}
        for index, buffers in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": b for key, b in buffers.items() if isinstance(b, Tensor)}
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        return cls(copies, list(history), as_mapping(identity))

    def restore(self, learner: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        """Load the state into a learner and an optimizer, and return the history."""
        state = self.part("learner")
        if isinstance(learner, PromptLearner):
            learner.load_learnables(state, "the checkpoint's tensors")
        else:
            learner.load_state_dict(state)
        load_aggregation_state(learner, self.part("training"))
        buffers: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.part("optimizer").items():
            index, key = name.split(".", 1)
            buffers.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": buffers, "param_groups": optimizer.state_dict()["param_groups"]})
        return list(self.history)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names have a prefix, without the prefix."""
        return {n.removeprefix(f"{prefix}."): t for n, t in self.tensors.items() if n.startswith(f"{prefix}.")}

    def save(self, path: Path) -> None:
        """Write the file atomically; it also records this process's number of threads."""
        facts = {"history": self.history, "identity": self.identity, "threads": torch.get_num_threads()}
        write_tensors(path, self.tensors, {"format": FORMAT} | {key: json.dumps(value) for key, value in facts.items()})

    @classmethod
    def load(cls, path: Path, identity: str | Mapping[str, str]) -> Checkpoint | None:
        """Read and verify the file; None if there is none.

        Args:
            path: the file.
            identity: identity of the run that is to be continued, or a text for its ``settings`` alone. Parts that the
                file records must be equal.

        Raises:
            VlpromptError: it is damaged, or it belongs to other settings, another backbone or other images.
        """
        if not path.exists():
            return None
        tensors, facts = read_tensors(path, WHAT, REMEDY)
        if TENSOR_SEAL not in facts:
            found = cls._of_0_1(tensors, facts, path)
        elif facts.get("format") == FORMAT:
            found = cls(tensors, json.loads(facts["history"]), json.loads(facts["identity"]))
        else:
            raise VlpromptError(f"{WHAT} {path} is damaged (it is another kind of file): {REMEDY}")
        for key, value in as_mapping(identity).items():
            if found.identity.get(key, value) != value:
                raise VlpromptError(f"{WHAT} {path} belongs to {OTHERS[key]}: {REMEDY}")
        return found

    @classmethod
    def _of_0_1(cls, tensors: dict[str, Tensor], facts: Mapping[str, str], path: Path) -> Checkpoint:
        """A checkpoint of vlprompt 0.1.0, which had another kind of checksum."""
        try:
            found = cls(tensors, json.loads(facts["history"]), as_mapping(facts["identity"]))
            digest = hashlib.sha256(json.dumps([found.history, facts["identity"]]).encode())
        except (KeyError, ValueError) as error:
            raise VlpromptError(f"{WHAT} {path} is damaged (its header has no {error}): {REMEDY}") from error
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        if facts.get("sha256") != digest.hexdigest():
            raise VlpromptError(f"{WHAT} {path} is damaged (checksum): {REMEDY}")
        warn(
            f"{path} was written by vlprompt 0.1.0 and does not record which backbone and images it is for",
        )
        return found


class CheckpointWriter:
    """Writes the checkpoints of a training, at most one in a given time.

    Args:
        path: the file; None writes nothing.
        seconds: minimum time between two checkpoints.
    """

    def __init__(self, path: Path | None, seconds: float):
        self.path, self.seconds = path, seconds
        self._unsaved: Checkpoint | None = None
        self._saved_at = time.monotonic()

    def update(self, checkpoint: Checkpoint, is_last: bool) -> None:
        """Write a checkpoint if it is the last or the time has passed, or else keep it in memory."""
        self._unsaved = checkpoint
        if is_last or time.monotonic() - self._saved_at >= self.seconds:
            self.flush()
            self._saved_at = time.monotonic()

    def flush(self) -> None:
        """Write the latest checkpoint, if it was not written."""
        if self._unsaved and self.path:
            self._unsaved.save(self.path)
            self._unsaved = None


def as_mapping(identity: str | Mapping[str, str]) -> dict[str, str]:
    """An identity by parts; a text is the part ``settings``."""
    return {"settings": identity} if isinstance(identity, str) else dict(identity)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder: one, or one per stage."""
    stem, _, suffix = CHECKPOINT.partition(".")
    return sorted(path for path in folder.glob(f"{stem}*.{suffix}") if path.name.startswith((f"{stem}.", f"{stem}-")))


@contextmanager
def threads_of(folder: Path, say: Callable[[str], None], wanted: int | None = None) -> Iterator[None]:
    """Compute with the number of threads recorded in a run's checkpoint, if any, since others round differently.

    Args:
        folder: the run's folder.
        say: called with a message if that number is not the one wanted.
        wanted: number of threads without a checkpoint; None keeps this process's.
    """
    wanted = wanted or torch.get_num_threads()
    before = next(filter(None, map(_threads, checkpoints(folder))), wanted)
    if before != wanted:
        say(f"continuing with {before} threads as before, not {wanted}, so that results are bit-identical")
    with computing_with(before):
        yield


def _threads(path: Path) -> int | None:
    """The number of threads in a checkpoint's header; None if it cannot be read, which ``load`` reports."""
    try:
        with safe_open(path, "pt") as file:
            threads = json.loads((file.metadata() or {})["threads"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    return threads if isinstance(threads, int) and 0 < threads <= 4096 else None
