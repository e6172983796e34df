"""Classify images with a saved learner: files, folders, patterns or paths from stdin."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vlprompt.base.files import atomic_write
from vlprompt.base.reporter import Reporter
from vlprompt.base.sanitizing import printable
from vlprompt.cli._executors import PARTS, check_executor, make_workers
from vlprompt.cli._shared import (
    check_keys,
    command,
    file_setting,
    flag_setting,
    load_named_learner,
    names_setting,
    number_setting,
    parse,
)
from vlprompt.errors import VlpromptError, nearest

if TYPE_CHECKING:
    from vlprompt.evaluation.prediction import Prediction

USAGE = """vlprompt predict learner=DIR IMAGE… [classes=[cat,dog,…]|FILE] [top=1] [format=table|jsonl|csv|parquet]
                 [output=FILE|FOLDER/ [shard=10000] [executor=local|ray]] [min_probability=P | coverage=SHARE]
                 [unsure=WORD] [device=auto] [batch_size=64] [threads=N] [backbone=NAME [pretrained=TAG]
                 [checkpoint=FILE]] [--quiet]
vlprompt predict model=FILE.onnx IMAGE… [top=1] [format=…] [output=FILE] [min_probability=P] [unsure=WORD] [threads=N]

  vlprompt predict learner=my-learner photos/ new/*.jpg 'more/**/*.png' top=3
  find . -name '*.jpg' | vlprompt predict learner=hf://me/it - format=csv output=found.csv
  vlprompt predict learner=my-learner 's3://bucket/shards/*.tar' format=parquet output=found/ executor=ray gpus=1

`learner` (or `run`) is a saved learner, the folder of a run, or hf://user/name. An IMAGE is a file, a folder (all
images below it, or its tar shards if it has no images), a pattern, a tar shard (webdataset), an address of any of these
that fsspec can open, or - to read paths from stdin, one per line. Class names and probabilities are printed in the
order of the images. Images are streamed, so any number fits in memory. A transductive learner predicts all images
jointly, and the output says so. `classes` replaces the class names: a list, or a file with one per line. jsonl is one
JSON object per line; csv puts an apostrophe in front of text that a spreadsheet would run as a formula. Images that
cannot be read are reported on stderr and left out; the exit status is then 1.

If an image's largest probability is below `min_probability`, the answer is `unsure`. With `coverage`, the threshold is
the one that keeps that share of held-out images, such as 0.9; this needs a learner trained with calibrate=temperature
or coverage=. A learner trained with coverage= uses its own threshold by default; min_probability=0 answers every image.
`model` is a file written by vlprompt export: .onnx or, with trust=true, a .pt2 file of your own.

With output=FOLDER/ the predictions go to 00000.csv and so on, `shard` images each (or one file per tar shard), in the
order of the images. Each file is written once it is complete; the same command adds those that are missing.
executor=ray [address=auto] [cpus=1] [gpus=0] [actors=N]   a Ray cluster; cpus and gpus are per actor"""
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
    "min_probability",
    "coverage",
    "unsure",
    "executor",
    "shard",
    *PARTS["ray"],
)
LEARNER = ("learner", "backbone", "pretrained", "checkpoint", "device")
OF_LEARNERS = ("classes", "device", "backbone", "pretrained", "checkpoint", "coverage", "executor", "shard")
FORMATS = (
    "table",
    "jsonl",
    "csv",
    "parquet",
)  # also in ``prediction_formats``, whose imports take seconds
UNSURE = "unsure"
STDIN = "-"  # to ``find_images``
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Predict, and report how many images could not be read."""
    arguments = parse(argv, words=len(argv), texts=["classes", "unsure"], switches=["trust"], is_word=_is_image)
    settings, images = arguments.settings, arguments.words
    _check_settings(settings, images)
    folder = _folder(settings)
    output = None if folder else file_setting(settings, "output")
    form = _format(settings, output, "csv" if folder else "table")
    bounds = {"top": (1, 10**6), "batch_size": (1, 10**6), "threads": (0, 1024), "shard": (1, 10**9)}
    numbers = {key: number_setting(settings, key, *bound) for key, bound in bounds.items()}
    from vlprompt.data.remote import unpacked
    from vlprompt.data.streaming import BATCH
    from vlprompt.evaluation.prediction import find_images
    from vlprompt.evaluation.prediction_formats import check_format

    check_format(form)
    paths = find_images(images, _stdin(), lambda note: print(printable(note), file=sys.stderr))
    if folder:
        return _into_folder(folder, list(paths), settings, numbers, form, "--quiet" in arguments.flags)
    names, may_be_unsure, predict = _predictor(settings)
    unsure = _word_for_unsure(settings, names) if may_be_unsure else None
    unreadable: list[str] = []

    def on_unreadable(sentence: str) -> None:
        unreadable.append(sentence)
        print(f"left out: {printable(sentence)}", file=sys.stderr)

    predictions = predict(
        unpacked(paths),
        top=numbers["top"] or 1,
        batch_size=numbers["batch_size"] or BATCH,
        threads=numbers["threads"],
        on_unreadable=on_unreadable,
    )
    count = _write(predictions, output, form, names, unsure)
    if output and "--quiet" not in arguments.flags:
        print(printable(f"{output}: {count} images"))
    if unreadable:
        print(f"{len(unreadable)} of {count + len(unreadable)} images could not be read", file=sys.stderr)
    return 1 if unreadable else 0


def _check_settings(settings: Mapping[str, Any], images: Sequence[str]) -> None:
    """Raise a ``VlpromptError`` for unknown keys, several learners, or keys of the other kind of learner."""
    check_keys(settings, (*KEYS, "model", "trust"))
    if not images or len({"learner", "run", "model"} & settings.keys()) != 1:
        raise VlpromptError("say which learner and which images: vlprompt predict learner=DIR photos/ (- reads stdin)")
    excluded = OF_LEARNERS if "model" in settings else ("trust",)
    for key in settings:
        if key in excluded:
            what = "learner=DIR" if "model" in settings else "model=FILE"
            raise VlpromptError(f"{key} is for {what}: leave it out")
    check_executor(settings, PARTS)


def _write(
    predictions: Iterator[Prediction], output: Path | None, form: str, names: Sequence[str], unsure: str | None
) -> int:
    """Write predictions to a file or standard output, and return their number."""
    from vlprompt.evaluation.prediction_formats import write_parquet, write_predictions

    if form == "parquet" and output:
        with atomic_write(output) as temporary, open(temporary, "wb") as binary:
            return write_parquet(predictions, binary, unsure)
    with _opened(output) as file:
        width = max(len(printable(name)) for name in (*names, unsure or ""))
        return write_predictions(predictions, file, form, width=width, unsure=unsure)


def _predictor(settings: dict[str, Any]) -> tuple[tuple[str, ...], bool, Callable[..., Iterator[Prediction]]]:
    """The class names, whether images may be left unanswered, and a function that predicts images."""
    limits = {key: settings.get(key) for key in ("min_probability", "coverage")}
    if "model" in settings:
        from vlprompt.saving.exported import load_exported

        model = load_exported(str(settings["model"]), trust=flag_setting(settings, "trust"))
        threshold = model.threshold(limits["min_probability"])
        return model.class_names, bool(threshold), partial(model.predict, min_probability=threshold)
    from vlprompt.evaluation.calibration import threshold_for
    from vlprompt.evaluation.prediction import predict_images

    names = names_setting(settings["classes"], "classes") if "classes" in settings else None
    learner = load_named_learner({"learner": settings.get("run"), **settings})
    if names is not None:
        learner.set_class_names(names)
    threshold = threshold_for(learner, **limits)
    return learner.class_names, bool(threshold), partial(predict_images, learner, min_probability=threshold)


def _into_folder(
    output: Path, paths: list[str], settings: dict[str, Any], numbers: Mapping[str, int | None], form: str, quiet: bool
) -> int:
    """Predict into a folder of files, in this process or on a cluster."""
    workers = make_workers(settings)
    from vlprompt.data.streaming import BATCH
    from vlprompt.runs.predict import SHARD, Predicting, predict_in_shards

    named = {"learner": settings.get("run"), **settings}
    how = Predicting(
        {key: named[key] for key in LEARNER if named.get(key) is not None},
        names_setting(settings["classes"], "classes") if "classes" in settings else None,
        numbers["top"] or 1,
        numbers["batch_size"] or BATCH,
        numbers["threads"],
        form,
        settings.get("min_probability"),
        settings.get("coverage"),
        str(settings.get("unsure", UNSURE)),
    )
    shard, reporter = numbers["shard"] or SHARD, Reporter(quiet)
    summary = predict_in_shards(how, paths, output, shard=shard, workers=workers, reporter=reporter)
    complete = summary.files - len(summary.failed)
    if not quiet:
        print(printable(f"{output}: {summary.images} images now, {complete} of {summary.files} files are there"))
    for sentence in summary.left_out:
        print(f"left out: {printable(sentence)}", file=sys.stderr)
    for sentence in dict.fromkeys(summary.failed):
        print(f"failed: {printable(sentence)}", file=sys.stderr)
    return 1 if summary.left_out or summary.failed else 0


def _folder(settings: Mapping[str, Any]) -> Path | None:
    """The folder for files of predictions, if the settings ask for one."""
    output = str(settings.get("output", ""))
    ray = settings.get("executor") == "ray"
    if not (ray or "shard" in settings or output.endswith(("/", os.sep))):
        return None
    if "model" in settings:
        raise VlpromptError("only a learner can write a folder of files: give output=FILE for model=")
    if not output:
        raise VlpromptError(f"{'executor=ray' if ray else 'shard'} writes a folder of files: give output=FOLDER/")
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise VlpromptError(f"output={folder} is a file: give the name of a folder")
    return folder


def _word_for_unsure(settings: dict[str, Any], names: Sequence[str]) -> str:
    """The word for unanswered images, which must not be a class name."""
    word = str(settings.get("unsure", UNSURE))
    if word in names:
        raise VlpromptError(f"a class is called '{word}': give another word for unanswered images, unsure=WORD")
    return word


def _is_image(argument: str) -> bool:
    """Whether an argument is an image, not a setting or a flag; a file's name may contain = or start with a dash."""
    return argument == STDIN or os.path.exists(argument) or not re.match(r"-|\w+=", argument)


def _stdin() -> TextIO:
    """Return standard input; paths in it need not be UTF-8."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin


def _format(settings: Mapping[str, Any], output: Path | None, usual: str) -> str:
    """The format that the settings ask for, or that the output's ending implies; ``usual`` if neither."""
    form = str(settings.get("format", SUFFIXES.get(output.suffix, usual) if output else usual))
    if form not in FORMATS:
        raise VlpromptError(f"unknown format '{form}': {nearest(form, FORMATS)}")
    if form == "parquet" and usual == "table" and output is None:
        raise VlpromptError("format=parquet is not text: give output=FILE.parquet")
    if form == "table" and usual == "csv":
        raise VlpromptError("format=table is for reading on a terminal: files in a folder are csv, jsonl or parquet")
    return form


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """Yield standard output, or a file that is renamed to ``output`` when it is complete."""
    if output is None:
        yield sys.stdout
        return
    with atomic_write(output) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        yield file
