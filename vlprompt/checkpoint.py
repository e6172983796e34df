"""The state of a training run in one safetensors file, written atomically and checked when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlprompt.aggregation import aggregation_state, load_aggregation_state
from vlprompt.errors import VlpromptError
from vlprompt.files import atomic_write
from vlprompt.learner import PromptLearner

CHECKPOINT = "checkpoint.safetensors"
FORMAT = "vlprompt-checkpoint/1"


@dataclass(frozen=True)
class Checkpoint:
    """All that training needs to go on, in one safetensors file.

    Attributes:
        tensors: ``learner.NAME``, ``training.NAME`` (of its aggregator), ``selection.NAME`` (the best
            epoch's learnables), ``optimizer.INDEX.BUFFER``.
        history: the records of the finished epochs.
        identity: of the run.
    """

    tensors: dict[str, Tensor]
    history: list[dict[str, Any]]
    identity: str

    @classmethod
    def of(
        cls,
        learner: PromptLearner,
        optimizer: torch.optim.Optimizer,
        history: list[dict[str, Any]],
        identity: str,
        selected: Mapping[str, Tensor] | None = None,
    ) -> Checkpoint:
        """Return a copy of the present state."""
        tensors = {f"learner.{name}": tensor for name, tensor in learner.state_dict().items()}
        tensors |= {f"training.{name}": tensor for name, tensor in aggregation_state(learner).items()}
        tensors |= {f"selection.{name}": tensor for name, tensor in (selected or {}).items()}
        for index, buffers in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": b for key, b in buffers.items() if isinstance(b, Tensor)}
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        return cls(copies, list(history), identity)

    def restore(self, learner: PromptLearner, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        """Put the state back and return the history."""
        learner.load_learnables(self.part("learner"), "the checkpoint's tensors")
        load_aggregation_state(learner, self.part("training"))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.part("optimizer").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return list(self.history)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, which is taken off."""
        return {n.removeprefix(f"{prefix}."): t for n, t in self.tensors.items() if n.startswith(f"{prefix}.")}

    def checksum(self) -> str:
        """SHA-256 over tensors, history and identity."""
        digest = hashlib.sha256(json.dumps([self.history, self.identity]).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        facts = {"history": json.dumps(self.history), "identity": self.identity, "sha256": self.checksum()}
        with atomic_write(path) as temporary:
            save_file(self.tensors, temporary, {"format": FORMAT, **facts})

    @classmethod
    def load(cls, path: Path, identity: str) -> Checkpoint | None:
        """Read and check the file; None if there is none."""
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                found = cls(
                    {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118, it is not a mapping
                    json.loads(facts["history"]),
                    facts["identity"],
                )
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise VlpromptError(f"the checkpoint {path} is damaged ({error}): delete it and start again") from error
        if facts.get("sha256") != found.checksum():
            raise VlpromptError(f"the checkpoint {path} is damaged (checksum): delete it and start again")
        if found.identity != identity:
            raise VlpromptError(
                f"the checkpoint {path} belongs to a run with other settings: delete it and start again"
            )
        return found
