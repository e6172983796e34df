"""Measure how much faster vlprompt's implementation is than the published one, on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from rich.table import Table

from vlprompt.base.files import atomic_write
from vlprompt.base.reporter import make_console
from vlprompt.base.static_inspection import parameters
from vlprompt.cli._shared import check_keys, command, file_setting, number_setting, parse
from vlprompt.errors import VlpromptError

USAGE = """vlprompt bench [backbone=ViT-B-16] [classes=[10,100,1000]] [repeats=5] [device=cpu] [output=bench.json]
               [methods=[images,coop,maple,cocoop,promptsrc,proda,tcp,mma,mmrl,tpt]]

vlprompt bench data [dataset=NAME] [data_root=DATA] [split=generated] [images=256] [workers=0] [repeats=5]
               [output=bench.json]

vlprompt bench predict [dataset=emoji] [data_root=DATA] [backbone=vlprompt-tiny [pretrained=TAG]] [images=10000]
               [turn=500] [batch_size=64] [threads=N] [output=bench.json]

vlprompt bench sweep [method=kgcoop] [dataset=emoji] [shots=[1,2,4,8]] [seeds=10] [epochs=N] [output=bench.json]

vlprompt bench start [repeats=5] [output=bench.json]

vlprompt bench threads [backbone=vlprompt-tiny] [method=coop] [classes=20] [batch=32] [steps=200] [load=N] [threads=N]
               [repeats=3] [output=bench.json]

vlprompt bench heads [classes=1000] [width=512] [shots=16] [views=10] [methods=[gda,...]] [epochs=1]
               [output=bench.json]

All comparisons are measured in the same run, each side in its own process, on images that no step has seen before.
"faster" is the speed-up over computing as the published code does; "than careful" over a good hand-written
implementation: sequences cut after the longest prompt, fused attention and cached features. It takes a few minutes on
two cores; device=cuda measures on a GPU, with the GPU's own clock.

  data      image loading: our batches against ImageFolder, on any dataset
  predict   prediction of image files: memory use over time, and throughput against a plain OpenCLIP loop
  sweep     one sweep against the same runs as separate train commands
  start     start-up time of commands that compute nothing, against Python itself and "import torch"
  threads   training steps with one thread and with several, on the idle machine and next to busy processes
  heads     seconds and memory to fit each head on synthetic features; trained heads run epochs=N epochs"""
OTHERS = ("data", "predict", "sweep", "start", "threads", "heads")  # vlprompt.bench.data.bench_data and so on
COUNTS = {"epochs": 1, "load": 0, "threads": 0}  # optional numbers, and the smallest value of each


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Print the table, and write it as JSON."""
    arguments = parse(argv, words=1)
    what = arguments.words[0] if arguments.words else None
    if what and what not in OTHERS:
        raise VlpromptError(f"vlprompt bench takes {', '.join(OTHERS)} or nothing, not '{what}'")
    settings = dict(arguments.settings)
    module, function = f"vlprompt.bench.{what or 'steps'}", f"bench_{what}" if what else "bench"
    check_keys(settings, [*(key for key in parameters(module, function) if key != "say"), "output"])
    measured: Callable[..., dict[str, Any]] = getattr(import_module(module), function)
    known = {key: p.default for key, p in signature(measured).parameters.items() if key != "say"}
    output = file_setting(settings, "output")
    settings.pop("output", None)
    for key in settings:
        if type(known[key]) is int or key in COUNTS:
            number_setting(settings, key, least=min(1, known[key] or COUNTS[key]))
    for key in ("classes", "methods", "shots"):
        if key in settings and type(known[key]) is not int and not isinstance(settings[key], list):
            settings[key] = [settings[key]]
    console = make_console()
    quiet = "--quiet" in arguments.flags
    say = (lambda line: None) if quiet else lambda line: console.print(line, markup=False)
    if what:
        return _write(measured(**settings, say=lambda line: console.print(line, markup=False)), output)
    result = measured(**settings, say=say)
    table = Table("comparison", "seconds", "MB", "faster", "than careful", "smaller", "of peak")
    for row in result["rows"]:
        fast = row["fast"]
        table.add_row(
            row["title"],
            f"{fast['seconds']:.3f}" if "seconds" in fast else fast["skipped"],
            f"{fast['memory_mb']:.0f}" if "seconds" in fast else "",
            f"{row['times_faster']:.1f}x" if "times_faster" in row else row["plain"].get("skipped", ""),
            f"{row['times_faster_than_careful']:.1f}x" if "times_faster_than_careful" in row else "",
            f"{row['times_smaller']:.1f}x" if "times_smaller" in row else "",
            f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else "",
        )
    console.print(table)
    return _write(result, output)


def _write(result: dict[str, Any], output: Path | None) -> int:
    """Write a result as JSON if ``output`` is given."""
    if output:
        with atomic_write(output) as temporary:
            temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
        print(f"written to {output}")
    return 0
