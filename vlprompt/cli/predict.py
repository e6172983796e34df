"""Name what is on images with a saved learner: files, folders, patterns or paths from stdin."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from vlprompt.base.files import atomic_write
from vlprompt.base.shown import printable
from vlprompt.cli._shared import (
    check_keys,
    command,
    file_setting,
    load_named_learner,
    names_setting,
    number_setting,
    parse,
)
from vlprompt.errors import VlpromptError, nearest

USAGE = """vlprompt predict learner=DIR IMAGE… [classes=[cat,dog,…]|FILE] [top=1] [format=table|jsonl|csv] [output=FILE]
                 [device=auto] [batch_size=64] [threads=N] [backbone=NAME [pretrained=TAG] [checkpoint=FILE]] [--quiet]

  vlprompt predict learner=my-learner photos/ new/*.jpg 'more/**/*.png' top=3
  find . -name '*.jpg' | vlprompt predict learner=hf://me/it - format=csv output=found.csv

`learner` (or `run`) is a saved learner, a run, or hf://user/name. An IMAGE is a file, a folder (all images below it),
a pattern, or - for paths from stdin, one a line. Names and probabilities come in the order of the images, while later
ones are decoded in threads; any number fits in memory. A transductive learner predicts all of them jointly, and the
output says so. `classes` has other class names, as a list or a file with one a line. jsonl is one JSON object a line;
in csv, text that a spreadsheet would take for a formula has an apostrophe in front. Images that cannot be read are
told on stderr and left out; the exit status is then 1."""
KEYS = (
    "learner",
    "run",
    "classes",
    "top",
    "format",
    "output",
    "device",
    "batch_size",
    "threads",
    "backbone",
    "pretrained",
    "checkpoint",
)
STDIN = "-"  # to ``find_images``
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl"}


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Predict, and tell how many images could not be read."""
    images = [argument for argument in argv if _is_image(argument)]
    arguments = parse([argument for argument in argv if not _is_image(argument)], texts=["classes"])
    settings = arguments.settings
    check_keys(settings, KEYS)
    if not images or len({"learner", "run"} & settings.keys()) != 1:
        raise VlpromptError("say which learner and which images: vlprompt predict learner=DIR photos/ (- reads stdin)")
    output = file_setting(settings, "output")
    form = _format(settings, output)
    bounds = {"top": (1, 10**6), "batch_size": (1, 10**6), "threads": (0, 1024)}
    numbers = {key: number_setting(settings, key, *bound) for key, bound in bounds.items()}
    from vlprompt.data.streaming import BATCH
    from vlprompt.evaluation.prediction import find_images, predict_images, write_predictions

    paths = find_images(images, _stdin(), lambda note: print(printable(note), file=sys.stderr))
    names = names_setting(settings["classes"], "classes") if "classes" in settings else None
    learner = load_named_learner({"learner": settings.get("run"), **settings})
    if names is not None:
        learner.set_class_names(names)
    unreadable: list[str] = []

    def tell(sentence: str) -> None:
        unreadable.append(sentence)
        print(f"left out: {printable(sentence)}", file=sys.stderr)

    predictions = predict_images(
        learner,
        paths,
        top=numbers["top"] or 1,
        batch_size=numbers["batch_size"] or BATCH,
        threads=numbers["threads"],
        on_unreadable=tell,
    )
    with _opened(output) as file:
        count = write_predictions(
            predictions, file, form, width=max(len(printable(name)) for name in learner.class_names)
        )
    if output and "--quiet" not in arguments.flags:
        print(printable(f"{output}: {count} images"))
    if unreadable:
        print(f"{len(unreadable)} of {count + len(unreadable)} images could not be read", file=sys.stderr)
    return 1 if unreadable else 0


def _is_image(argument: str) -> bool:
    """Tell an image from a setting or a flag; a file may have an equals sign in its name."""
    return argument == STDIN or os.path.exists(argument) or not re.match(r"-|\w+=", argument)


def _stdin() -> TextIO:
    """Return standard input; paths in it need not be UTF-8."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin


def _format(settings: dict[str, Any], output: Path | None) -> str:
    """The format that was asked for, or that the output's name tells."""
    from vlprompt.evaluation.prediction import FORMATS

    form = str(settings.get("format", SUFFIXES.get(output.suffix, "table") if output else "table"))
    if form not in FORMATS:
        raise VlpromptError(f"unknown format '{form}': {nearest(form, FORMATS)}")
    return form


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """Yield standard output, or a file that is in its place when all is written."""
    if output is None:
        yield sys.stdout
        return
    with atomic_write(output) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        yield file
