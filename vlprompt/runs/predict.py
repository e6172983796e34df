"""Predictions of any number of images, as a folder of complete files, by this process or many machines."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vlprompt.base.files import atomic_write, locked, remove_leftovers
from vlprompt.base.reporter import Reporter
from vlprompt.base.sealed import hash_of_tensors, seal, unseal
from vlprompt.base.threads import computing_with, threads_for
from vlprompt.data.remote import is_shard, unpacked
from vlprompt.data.streaming import BATCH
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.calibration import threshold_for
from vlprompt.evaluation.prediction import predict_images
from vlprompt.evaluation.prediction_formats import check_format, write_parquet, write_predictions
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.facts import NOTES
from vlprompt.runs.named import load_named_learner
from vlprompt.runs.workers import Done, Workers, work_here

FORMAT = "vlprompt-predictions/1"
JOB = "job.json"  # what the files are predictions of
LEFT_OUT = "left_out.txt"  # ending of the file that lists a shard's unreadable images
SHARD = 10_000  # images per file


@dataclass(frozen=True)
class Predicting:
    """Settings of a prediction.

    Attributes:
        learner: settings of ``load_named_learner``.
        class_names: names to predict instead of the learner's; None keeps those.
        top: number of most likely classes to write.
        batch_size: images that are scored together.
        threads: number that decode images; None means one per core.
        form: ``csv``, ``jsonl`` or ``parquet``.
        min_probability, coverage: which images are answered, as in ``predict_images``.
        unsure: what is written for the others.
    """

    learner: Mapping[str, Any]
    class_names: Sequence[str] | None = None
    top: int = 1
    batch_size: int = BATCH
    threads: int | None = None
    form: str = "csv"
    min_probability: float | None = None
    coverage: float | None = None
    unsure: str = "unsure"

    def load(self, **settings: Any) -> PromptLearner:
        """Load the learner; ``settings`` replace some of ``learner``.

        Raises:
            VlpromptError: it predicts images jointly, or one of its classes is called ``unsure``.
        """
        learner = load_named_learner({**self.learner, **settings})
        if self.class_names is not None:
            learner.set_class_names(self.class_names)
        if learner.facts.predicts != "alone":
            raise VlpromptError(f"{NOTES[learner.facts.predicts]}, so its predictions cannot be made in parts")
        unsure = bool(threshold_for(learner, self.min_probability, self.coverage))
        if unsure and self.unsure in learner.class_names:
            raise VlpromptError(f"a class is called '{self.unsure}': give another word for what is not answered")
        return learner


class ShardPredictor:
    """Predicts the images of a part in a worker process; see ``vlprompt.runs.workers.Worker``."""

    def __init__(self, how: Predicting, identity: str, learner: PromptLearner | None = None):
        self.how, self.learner = how, learner or how.load()
        if identity_of(self.learner) != identity:
            raise VlpromptError(f"{how.learner['learner']} or its backbone is not the same on all machines")

    def __call__(self, part: dict[str, Any]) -> Done:
        """Return the content of a file of predictions."""
        how, left_out = self.how, list[str]()
        threshold = threshold_for(self.learner, how.min_probability, how.coverage)
        unsure = how.unsure if threshold else None
        predictions = predict_images(
            self.learner,
            unpacked(part["sources"]),
            top=how.top,
            batch_size=how.batch_size,
            threads=how.threads,
            on_unreadable=left_out.append,
            min_probability=threshold,
        )
        with computing_with(threads_for(self.learner.clip.model)):
            if how.form == "parquet":
                binary = io.BytesIO()
                count, content = write_parquet(predictions, binary, unsure), binary.getvalue()
            else:
                text = io.StringIO()
                count = write_predictions(predictions, text, how.form, unsure=unsure)
                content = text.getvalue().encode()
        return Done(part["number"], {"images": count, "left_out": left_out}, content)


@dataclass
class Summary:
    """The content of a folder of predictions.

    Attributes:
        files: number of files.
        images: number of images that this call predicted.
        left_out: a sentence for each unreadable image of this call and earlier ones.
        failed: a sentence for each file that could not be made.
    """

    files: int = 0
    images: int = 0
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def predict_in_shards(
    how: Predicting,
    sources: Sequence[str],
    output: Path,
    *,
    shard: int = SHARD,
    workers: Workers | None = None,
    reporter: Reporter | None = None,
) -> Summary:
    """Predict images into ``output/00000.csv`` and so on, in their order; existing files are kept.

    Only this process writes, and only complete files. So workers need to share only the images and the learner.

    Args:
        how: learner, classes and format.
        sources: paths, addresses and tar shards, as ``find_images`` returns them; each tar shard gets its own file.
        output: a folder with no other predictions.
        shard: images per file, rounded up to whole batches.
        workers: ``vlprompt.runs.workers.work_on_ray(…)``; None predicts in this process.
        reporter: shows progress.

    Raises:
        VlpromptError: the learner predicts images jointly, or the folder contains other predictions or is in use.
    """
    check_format(how.form)
    parts = _parts(sources, -(-shard // how.batch_size) * how.batch_size)
    learner = how.load() if workers is None else how.load(device="cpu")
    identity, reporter = identity_of(learner), reporter or Reporter(quiet=True)
    busy = VlpromptError(f"{output} is in use: another process predicts into it")
    with locked(output / ".lock", busy):
        remove_leftovers(output)
        _claim(output, identity, how, parts)
        summary = Summary(len(parts))
        waiting = [part for part in parts if not _file(output, part["number"], how.form).exists()]
        make = partial(ShardPredictor, how, identity, None if workers else learner)
        with reporter.bar("files of predictions") as update:
            finished = (workers or work_here)(make, waiting) if waiting else ()
            for count, done in enumerate(finished, start=len(parts) - len(waiting) + 1):
                update(count, len(parts))
                if done.error:
                    summary.failed.append(done.error)
                else:
                    _keep(output, how.form, done)
                    summary.images += done.facts["images"]
        for path in sorted(output.glob(f"*.{LEFT_OUT}")):
            summary.left_out += path.read_text(encoding="utf-8").splitlines()
    return summary


def identity_of(learner: PromptLearner) -> str:
    """SHA-256 of what determines a learner's predictions: its tensors, settings, classes, calibration and backbone."""
    facts = [learner.method, asdict(learner.config), list(learner.class_names), learner.clip.identity()]
    facts.append(str(learner.calibration))
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in learner.state_dict().items()}
    return hash_of_tensors(state, {"facts": json.dumps(facts, sort_keys=True, default=str)})


def _parts(sources: Sequence[str], size: int) -> list[dict[str, Any]]:
    """Divide sources into parts of ``size`` images, in their order; a tar shard is a part by itself."""
    groups: list[list[str]] = []
    for source in sources:
        alone = is_shard(source)
        if alone or not groups or len(groups[-1]) >= size or is_shard(groups[-1][0]):
            groups.append([])
        groups[-1].append(source)
    return [{"number": number, "sources": group} for number, group in enumerate(groups)]


def _claim(output: Path, identity: str, how: Predicting, parts: Sequence[Mapping[str, Any]]) -> None:
    """Write ``job.json``, which says what is predicted, or raise a ``VlpromptError`` if the folder has another one."""
    sources = hashlib.sha256(json.dumps([part["sources"] for part in parts]).encode()).hexdigest()
    job = {"format": FORMAT, "learner": identity, "files": len(parts), "sources": sources}
    keys = ("form", "top", "batch_size", "min_probability", "coverage", "unsure")
    job |= {key: getattr(how, key) for key in keys}
    path = output / JOB
    if path.exists():
        stored: dict[str, Any] = {}
        with suppress(ValueError):
            stored = unseal(json.loads(path.read_text(encoding="utf-8")), path, required=True)
        other = next((key for key in job if stored.get(key) != job[key]), None)
        if other:
            raise VlpromptError(f"{output} holds other predictions ({other} differs): choose another output")
        return
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(seal(job), indent=1) + "\n", encoding="utf-8")


def _file(output: Path, number: int, ending: str) -> Path:
    return output / f"{number:05d}.{ending}"


def _keep(output: Path, form: str, done: Done) -> None:
    """Write a file of predictions; before it, the list of images that it leaves out."""
    if done.facts["left_out"]:
        with atomic_write(_file(output, done.number, LEFT_OUT)) as temporary:
            lines = [" ".join(sentence.split()) for sentence in done.facts["left_out"]]
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    with atomic_write(_file(output, done.number, form)) as temporary:
        temporary.write_bytes(done.content)
