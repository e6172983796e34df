"""The loop that trunk, text and alignment share: steps, their average, a log and a checkpoint to go on from.

What a step draws must depend on its number alone: then a run that is killed at any moment and resumed takes the same
steps again, and ends with the same weights on the same machine and number of threads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vlprompt.base.files import atomic_write

Parts = dict[str, torch.Tensor]
LOOP_DEFAULTS = {
    "lr": 6e-4,
    "weight_decay": 0.1,
    "warmup": 300,
    "ema": 0.999,
    "seed": 1,
    "log_every": 25,
    "probe_every": 250,
    "save_seconds": 240,
}


def build_optimizer(module: nn.Module, config: DictConfig, shares: dict[str, float]) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the matrices alone; `shares` gives some parameters a share of the rate."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    apart = [(n, p) for n, p in named if n in shares]
    named = [(n, p) for n, p in named if n not in shares]
    matrices = [p for n, p in named if p.ndim >= 2 and "embedding" not in n]
    others = [p for n, p in named if p.ndim < 2 or "embedding" in n]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay, "share": 1.0},
        {"params": others, "weight_decay": 0.0, "share": 1.0},
        *({"params": [p], "weight_decay": 0.0, "share": shares[n]} for n, p in apart),
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-6)


def save_checkpoint(
    path: Path, module: nn.Module, average: Parts, optimizer: torch.optim.Optimizer, facts: dict
) -> None:
    """Write everything that going on needs, to a temporary name first; `facts` (step, seconds) are numbers."""
    tensors = {f"student.{n}": t for n, t in module.state_dict().items()}
    tensors |= {f"average.{n}": t for n, t in average.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    with atomic_write(path) as temporary:
        save_file({n: t.contiguous() for n, t in tensors.items()}, temporary, metadata={"facts": json.dumps(facts)})


def read_checkpoint(path: Path) -> tuple[dict[str, Parts], dict[str, Any]]:
    """Return `{student, average, optimizer}` and the facts of a checkpoint."""
    parts: dict[str, Parts] = {"student": {}, "average": {}, "optimizer": {}}
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        for name in file.keys():  # noqa: SIM118, safe_open is no mapping
            part, rest = name.split(".", 1)
            parts[part][rest] = file.get_tensor(name)
    return parts, facts


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Parts) -> None:
    """Give an optimizer the state that a checkpoint holds of it."""
    state: dict[int, Parts] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def forget_after(log: Path, step: int) -> None:
    """Drop those lines of the log that tell of steps behind a checkpoint's, which will be taken again."""
    if log.exists():
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
        with atomic_write(log) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@torch.no_grad()
def update_average(average: Parts, module: nn.Module, step: int, decay: float) -> None:
    """Move the exponential moving average towards the weights, faster in the first steps."""
    decay = min(decay, (step + 1) / (step + 10))
    for name, tensor in module.state_dict().items():
        average[name].lerp_(tensor, 1 - decay)


def run_loop(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Callable[[int], Parts],
    rate: Callable[[int], float],
    measure: Callable[[Parts], dict[str, float]],
    work: Path,
    config: DictConfig,
    until: int,
) -> Parts:
    """Train, or go on training, until step `until`, and return the averaged weights.

    `losses(step)` returns the weighted parts of a step's loss, `rate(step)` its rate, and `measure` what is watched of
    averaged weights. `work` gets checkpoint.safetensors and log.jsonl.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, log = work / "checkpoint.safetensors", work / "log.jsonl"
    average = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    facts: dict[str, Any] = {"step": 0, "wall_seconds": 0.0, "cpu_seconds": 0.0, "sums": {}}
    if checkpoint.exists():
        parts, facts = read_checkpoint(checkpoint)
        module.load_state_dict(parts["student"])
        for name, tensor in parts["average"].items():
            average[name].copy_(tensor)
        restore_optimizer(optimizer, parts["optimizer"])
    forget_after(log, facts["step"])
    step, sums = facts["step"], facts["sums"]  # of the parts of the loss, since the log's last line
    wall, cpu, saved = time.time() - facts["wall_seconds"], time.process_time() - facts["cpu_seconds"], time.time()
    while step < until:
        for name, value in take_step(module, optimizer, losses(step), rate(step)).items():
            sums[name] = sums.get(name, 0.0) + value / config.log_every
        step += 1
        update_average(average, module, step, config.ema)
        seconds = {"wall_seconds": time.time() - wall, "cpu_seconds": time.process_time() - cpu}
        if step % config.log_every == 0:
            line = {
                "step": step,
                **{k: round(v) for k, v in seconds.items()},
                **{k: round(v, 4) for k, v in sums.items()},
            }
            if step % config.probe_every == 0:
                line |= measure(average)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            sums = {}
        if time.time() - saved > config.save_seconds or step >= until:
            save_checkpoint(checkpoint, module, average, optimizer, {"step": step, **seconds, "sums": sums})
            saved = time.time()
    return average


def take_step(module: nn.Module, optimizer: torch.optim.Optimizer, parts: Parts, rate: float) -> dict[str, float]:
    """Follow the gradient of the parts' sum at `rate`, and return them as numbers."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(parts.values())).sum().backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    return {name: part.item() for name, part in parts.items()}


def decaying(config: DictConfig, steps: int) -> Callable[[int], float]:
    """Return the rate of each step: a linear warm-up, then linearly to zero at `steps`."""
    return lambda step: config.lr * min((step + 1) / max(config.warmup, 1), (steps - step) / (steps - config.warmup))


def curve(log: Path) -> str:
    """Return what a log watched as a Markdown table."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    watched = [line for line in lines if len(line) == max(map(len, lines))]
    head = list(watched[0])
    rows = [head, ["---:"] * len(head), *([str(line.get(key, "")) for key in head] for line in watched)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
