"""How much a sweep saves: one process that shares backbone and features, against one ``train`` command per run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlprompt.base.files import CACHE_VARIABLE
from vlprompt.clip.catalog import TINY
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.results import find_results


def bench_sweep(
    method: str = "kgcoop",
    dataset: str = "emoji",
    data_root: str | Path | None = None,
    *,
    backbone: str = TINY,
    pretrained: str | None = None,
    shots: Sequence[int] = (1, 2, 4, 8),
    seeds: int = 10,
    epochs: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure a sweep over shots and seeds, then the same runs as commands of their own, one after the other.

    Each side starts with an empty cache of features, which its own runs share. Both must reach the same accuracies.

    Args:
        method, dataset, data_root, backbone, pretrained: as in a run.
        shots: numbers of images per class.
        seeds: the number of seeds, which start at 1.
        epochs: the epochs of each run; None for the recipe's.
        say: called with each result as a line.

    Returns:
        ``{"runs": int, "sweep_s": float, "separate_s": float, "ratio": float}``; ratio is sweep over separate.

    Raises:
        VlpromptError: a run failed, or the two sides differ.
    """
    optional = {"data_root": data_root, "pretrained": pretrained, "epochs": epochs}
    common = [f"dataset={dataset}", f"backbone={backbone}", "--quiet"]
    common += [f"{key}={value}" for key, value in optional.items() if value is not None]
    matrix = [(k, seed) for k in shots for seed in range(1, seeds + 1)]
    with tempfile.TemporaryDirectory() as folder:
        together, alone = Path(folder, "together"), Path(folder, "alone")
        lists = [f"shots=[{','.join(map(str, shots))}]", f"seeds=[{','.join(str(seed + 1) for seed in range(seeds))}]"]
        sweep_s = _seconds(["vlprompt.cli", "sweep", f"methods=[{method}]", *lists, *common], together)
        say(f"sweep of {len(matrix)} runs: {sweep_s:.1f} s")
        separate_s = sum(
            _seconds(["vlprompt.train", f"method={method}", f"shots={k}", f"seed={seed}", *common], alone)
            for k, seed in matrix
        )
        say(f"{len(matrix)} train commands: {separate_s:.1f} s; the sweep takes {sweep_s / separate_s:.2f} of that")
        if _accuracies(together) != _accuracies(alone):
            raise VlpromptError("the sweep and the separate runs differ in their accuracies")
    return {"runs": len(matrix), "sweep_s": sweep_s, "separate_s": separate_s, "ratio": sweep_s / separate_s}


def _seconds(module_and_arguments: Sequence[str], output: Path) -> float:
    """Time a command with runs and cache in ``output``."""
    environment = os.environ | {CACHE_VARIABLE: str(output / "cache")}
    command = [sys.executable, "-m", *module_and_arguments, f"output={output / 'runs'}"]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VlpromptError(f"{' '.join(command[2:])} failed: {done.stderr.strip()}")
    return time.perf_counter() - start


def _accuracies(output: Path) -> dict[str, list[float]]:
    """Accuracies of each run, by its id."""
    return {result.id: [row.accuracy for row in result.rows] for _, result in find_results([output / "runs"])}
