"""Exported learners, read from an ONNX file or a ``torch.export`` program, to predict as the learner does.

Both may come from anyone. The metadata of an ONNX file are of limited size, read as JSON, checked field by field, and
compared with the shapes of its graph, which onnxruntime runs. A ``.pt2`` file is read by torch, which also uses pickle
and so can run code: it is opened only if the caller trusts it.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from vlprompt.base.checks import at_least
from vlprompt.base.layout import EXPORTS
from vlprompt.base.schema import read_as, strict
from vlprompt.data.pairs import samples
from vlprompt.data.streaming import BATCH, stream_images
from vlprompt.errors import VlpromptError, first_line
from vlprompt.evaluation.calibration import threshold_of
from vlprompt.evaluation.prediction import Prediction, Report, check_images, top_predictions
from vlprompt.learner.calibration import Share

FACTS = "vlprompt.json"  # the extra file of a program
MAX_FACTS = 16 * 2**20  # characters; the names of 100,000 classes take 3 million
MAX_CLASSES = 100_000
MAX_SIDE = 4096

Three = Annotated[list[float], Field(min_length=3, max_length=3)]
Name = Annotated[str, Field(min_length=1, max_length=1_000)]


@strict()
@dataclass(frozen=True)
class ExportFacts:
    """The metadata that are needed to predict with an exported graph.

    It also is a ``vlprompt.data.transforms.Preprocessing``, which transforms can be made from.

    Attributes:
        class_names: C names, in the order of the logits.
        image_size, mean, std, interpolation, resize_mode: the preprocessing of images.
        batch: images per call, 1 or ``any``.
        temperature: divides the logits before the softmax.
        min_probability: images whose largest probability is below it are not answered; None answers all.
    """

    class_names: Annotated[list[Name], Field(min_length=2, max_length=MAX_CLASSES)]
    image_size: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    mean: Three
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
    interpolation: Literal["bicubic", "bilinear"]
    resize_mode: Literal["shortest", "longest", "squash"]
    batch: Literal[1, "any"]
    temperature: Annotated[float, Field(gt=1e-3, lt=1e3)] = 1.0
    min_probability: Share | None = None

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Mean of each channel."""
        return tuple(self.mean)

    @property
    def image_std(self) -> tuple[float, ...]:
        """Standard deviation of each channel."""
        return tuple(self.std)


@dataclass(frozen=True)
class Exported:
    """An exported learner, ready to predict.

    Attributes:
        facts: its metadata.
        logits: from preprocessed images (B, 3, S, S) to logits (B, C).
    """

    facts: ExportFacts
    logits: Callable[[Tensor], Tensor]

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, in the order of the logits."""
        return tuple(self.facts.class_names)

    def predict(
        self,
        images: Iterable[Any],
        *,
        top: int = 1,
        batch_size: int = BATCH,
        threads: int | None = None,
        on_unreadable: Report | None = None,
        min_probability: float | None = None,
    ) -> Iterator[Prediction]:
        """Yield predictions for images, in order, as ``vlprompt.predict_images`` does for a learner.

        Args:
            images, top, batch_size, threads, on_unreadable: as for ``vlprompt.predict_images``.
            min_probability: replaces the one in the metadata.

        Raises:
            VlpromptError: an image cannot be read, or the output of the graph is not a matrix of finite logits.
        """
        top, names, threshold = at_least("top", top, 1), self.class_names, self.threshold(min_probability)
        size = 1 if self.facts.batch == 1 else at_least("batch_size", batch_size, 1)
        for batch in stream_images(samples(check_images(images)), self.facts, batch_size=size, threads=threads):
            for sentence in batch.unreadable:
                if on_unreadable is None:
                    raise VlpromptError(sentence)
                on_unreadable(sentence)
            if batch.sources:
                probabilities = (self._checked(batch.images) / self.facts.temperature).softmax(dim=1)
                yield from top_predictions(batch.sources, probabilities, names, top, threshold)

    def threshold(self, min_probability: float | None = None) -> float | None:
        """The probability below which images are not answered: the given one, or its own; None answers all."""
        return self.facts.min_probability if min_probability is None else threshold_of(None, min_probability)

    def _checked(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images, or a ``VlpromptError`` if they have another shape or are not finite."""
        logits = self.logits(images)
        if logits.shape != (len(images), len(self.class_names)) or not logits.isfinite().all():
            raise VlpromptError(
                f"the model gave numbers of shape {tuple(logits.shape)} for {len(images)} images and "
                f"{len(self.class_names)} classes, or some that are not finite: it is damaged"
            )
        return logits.float()


def load_exported(path: str | os.PathLike[str], *, trust: bool = False) -> Exported:
    """Read an exported learner.

    Args:
        path: an ``.onnx`` file, or a ``.pt2`` program.
        trust: allow a program, which could run code of whoever wrote it.

    Raises:
        VlpromptError: there is no such file, it is damaged or was not written by ``export``, a package is missing, or
            it is a program and not trusted.
    """
    file = Path(path).expanduser()
    if file.suffix not in EXPORTS:
        raise VlpromptError(f"{file} is not an exported learner: give a file that ends in {' or '.join(EXPORTS)}")
    if not file.is_file():
        raise VlpromptError(f"there is no file {file}: vlprompt export learner=DIR to=onnx writes one")
    return _load_onnx(file) if file.suffix == ".onnx" else _load_program(file, trust)


def read_facts(texts: Mapping[str, str], where: str) -> ExportFacts:
    """Read the metadata that are needed to predict; other fields are ignored.

    Args:
        texts: JSON by field.
        where: the file, for errors.

    Raises:
        VlpromptError: they are too long or not JSON, or a field is missing or invalid.
    """
    needed = {key: text for key, text in texts.items() if key in ExportFacts.__dataclass_fields__}
    if "class_names" not in needed:
        raise VlpromptError(f"{where} has no class names: it was not exported by vlprompt")
    if sum(map(len, needed.values())) > MAX_FACTS:
        raise VlpromptError(f"{where} has more metadata than any export: at most {MAX_FACTS:,} characters are read")
    try:
        values = {key: json.loads(text) for key, text in needed.items()}
    except (ValueError, RecursionError) as error:
        raise VlpromptError(f"{where} has metadata that are not JSON: {first_line(error)}") from error
    return read_as(ExportFacts, values, f"{where}, metadata")


def _load_onnx(file: Path) -> Exported:
    """Read an ONNX file, whose graph must fit its metadata."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise VlpromptError(f'{file} needs onnxruntime: pip install "vlprompt[export]"') from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised below
    try:
        session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has many, for damaged files
        raise VlpromptError(f"{file} cannot be read by onnxruntime: {first_line(error)}") from error
    facts = read_facts(session.get_modelmeta().custom_metadata_map, str(file))
    shapes = {each.name: each.shape[1:] for each in (*session.get_inputs(), *session.get_outputs())}
    side = facts.image_size
    if shapes != {"images": [3, side, side], "logits": [len(facts.class_names)]}:
        raise VlpromptError(f"{file} is damaged: its graph does not fit its metadata")

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return Exported(facts, logits)


def _load_program(file: Path, trust: bool) -> Exported:
    """Read a program of ``torch.export``, if it is trusted."""
    if not trust:
        raise VlpromptError(
            f"{file} is read by torch.export, which also uses pickle and so can run code of whoever wrote it: give "
            "trust=true if you trust them, or export to=onnx"
        )
    extra = {FACTS: ""}
    try:
        module = torch.export.load(file, extra_files=extra).module()
    except Exception as error:  # damaged files make torch raise anything
        raise VlpromptError(f"{file} cannot be read by torch.export: {first_line(error)}") from error
    try:
        metadata = json.loads(extra[FACTS] or "{}")
    except ValueError as error:
        raise VlpromptError(f"{file} has metadata that are not JSON: {first_line(error)}") from error
    facts = read_facts({key: json.dumps(value) for key, value in metadata.items()}, str(file))

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = module(images)
            return output

    return Exported(facts, logits)
