"""How much the fast paths save: ratios of time and memory, each pair measured in one run on one machine.

Every measurement is a process of its own, so that its peak memory is its own. "Full length" is the plain counterpart of
prefix sharing, the way of the published code; "careful" is what a user of OpenCLIP would write who thinks of speed:
whole sequences, but cut behind the longest prompt, fused attention, and features that are computed once wherever images
do not change. A measurement that would not fit in memory is skipped and says so.

A step is measured on images that it has not seen, and moves the learnables, so that nothing is remembered that a
training would have to compute.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from vlprompt.base.devices import resolve_device
from vlprompt.base.environment import total_memory
from vlprompt.bench.cases import INSIDE, Case, class_names, pairs
from vlprompt.bench.measuring import describe, full_length_bytes, in_process, own_weights
from vlprompt.clip.loading import load_clip


def bench(
    backbone: str = "ViT-B-16",
    classes: Sequence[int] = (10, 100, 1000),
    methods: Sequence[str] = ("images", "coop", "maple", "cocoop", "promptsrc", "proda", *INSIDE, "tpt"),
    repeats: int = 5,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure all comparisons and return them with facts about the machine.

    Args:
        backbone: an architecture, with random weights.
        classes: the class counts C.
        methods: what to measure: ``images``, ``coop``, ``maple``, ``cocoop``, ``promptsrc``, ``proda``, ``tcp``,
            ``mma``, ``mmrl``, ``tpt``.
        repeats: timed runs per measurement, at most; ten times as many on a GPU; slow ones stop after 20 s.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; ``auto`` takes a GPU if there is one.
        say: called with each comparison as a line.

    Raises:
        VlpromptError: there are not enough names for a class count, or there is no such device.
    """
    class_names(max(classes))  # too many are refused before anything is measured
    torch.manual_seed(0)
    where = resolve_device(device)
    clip = load_clip(backbone, own_weights(backbone), device="cpu")  # for its sizes
    room = 0.8 * total_memory(where)
    machine = describe(where)
    peaks = machine["gflops"]
    known: dict[str, dict[str, Any]] = {}

    def result_of(case: Case) -> dict[str, Any]:
        key = json.dumps(asdict(case))
        if key not in known:
            too_large = case.text != "shared" and full_length_bytes(case, clip) > room
            known[key] = (
                {"skipped": "would not fit in memory"} if too_large else in_process(case, backbone, repeats, str(where))
            )
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
