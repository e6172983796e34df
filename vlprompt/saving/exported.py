"""Reading what ``export`` wrote, an ONNX file or a ``torch.export`` program, to predict with it as with the learner.

Either may come from anyone. Of an ONNX file the facts are bounded, read as JSON, checked field by field, and compared
with the shapes of its graph, which onnxruntime runs. A ``.pt2`` is read by torch, by pickle among other things, which
can run code: it is opened only where that is allowed.
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
from vlprompt.evaluation.prediction import Prediction, Report, named, several_images
from vlprompt.learner.calibration import Share

FACTS = "vlprompt.json"  # the extra file of a program
MAX_FACTS = 16 * 2**20  # characters; the names of 100,000 classes take three million
MAX_CLASSES = 100_000
MAX_SIDE = 4096

Three = Annotated[list[float], Field(min_length=3, max_length=3)]
Name = Annotated[str, Field(min_length=1, max_length=1_000)]


@strict()
@dataclass(frozen=True)
class ExportFacts:
    """What must be known to predict with an exported graph.

    It is what transforms ask of a frozen model, too (``vlprompt.data.transforms.Preprocessing``).

    Attributes:
        class_names: C, in the order of the logits.
        image_size, mean, std, interpolation, resize_mode: how images are made ready.
        batch: images at a time, 1 or ``any``.
        temperature: what logits are divided by before the softmax.
        min_probability: from what largest probability on to answer; None answers all.
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
        facts: its own.
        logits: from images (B, 3, S, S), made ready, to logits (B, C).
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
        """Yield what it says of images, in their order, as ``vlprompt.predict_images`` does for its learner.

        Args:
            images, top, batch_size, threads, on_unreadable: as of ``vlprompt.predict_images``.
            min_probability: from what largest probability on to answer, in place of its own.

        Raises:
            VlpromptError: an image cannot be read, or the graph gives what are no logits.
        """
        top, names, threshold = at_least("top", top, 1), self.class_names, self.threshold(min_probability)
        size = 1 if self.facts.batch == 1 else at_least("batch_size", batch_size, 1)
        for batch in stream_images(samples(several_images(images)), self.facts, batch_size=size, threads=threads):
            for sentence in batch.unreadable:
                if on_unreadable is None:
                    raise VlpromptError(sentence)
                on_unreadable(sentence)
            if batch.sources:
                probabilities = (self._checked(batch.images) / self.facts.temperature).softmax(dim=1)
                yield from named(batch.sources, probabilities, names, top, threshold)

    def threshold(self, min_probability: float | None = None) -> float | None:
        """From what largest probability on it answers: what is asked for, or its own; None answers all."""
        return self.facts.min_probability if min_probability is None else threshold_of(None, min_probability)

    def _checked(self, images: Tensor) -> Tensor:
        """Logits of images, or one sentence where they are none."""
        found = self.logits(images)
        if found.shape != (len(images), len(self.class_names)) or not found.isfinite().all():
            raise VlpromptError(
                f"the model gave numbers of shape {tuple(found.shape)} for {len(images)} images and "
                f"{len(self.class_names)} classes, or some that are not finite: it is damaged"
            )
        return found.float()


def load_exported(path: str | os.PathLike[str], *, trust: bool = False) -> Exported:
    """Read an exported learner.

    Args:
        path: an ``.onnx`` file, or a ``.pt2`` program.
        trust: open a program, which could run code of whoever wrote it.

    Raises:
        VlpromptError: there is no such file, it is not of ``export`` or damaged, a package is missing, or it is a
            program that is not trusted.
    """
    file = Path(path).expanduser()
    if file.suffix not in EXPORTS:
        raise VlpromptError(f"{file} is not an exported learner: give a file that ends in {' or '.join(EXPORTS)}")
    if not file.is_file():
        raise VlpromptError(f"there is no file {file}: vlprompt export learner=DIR to=onnx writes one")
    return _load_onnx(file) if file.suffix == ".onnx" else _load_program(file, trust)


def read_facts(texts: Mapping[str, str], where: str) -> ExportFacts:
    """Return the facts that metadata hold, each field as JSON; what is not needed to predict is left unread.

    Raises:
        VlpromptError: they are too long, not JSON, lack a field, or one is not of its kind or range.
    """
    known = {key: text for key, text in texts.items() if key in ExportFacts.__dataclass_fields__}
    if "class_names" not in known:
        raise VlpromptError(f"{where} has no class names: it was not exported by vlprompt")
    if sum(map(len, known.values())) > MAX_FACTS:
        raise VlpromptError(f"{where} has more metadata than any export: {MAX_FACTS:,} characters are read")
    try:
        values = {key: json.loads(text) for key, text in known.items()}
    except (ValueError, RecursionError) as error:
        raise VlpromptError(f"{where} has metadata that are no JSON: {first_line(error)}") from error
    return read_as(ExportFacts, values, f"{where}, metadata")


def _load_onnx(file: Path) -> Exported:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise VlpromptError(f'{file} needs onnxruntime: pip install "vlprompt[export]"') from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is told below
    try:
        session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of a kind for each way to be damaged
        raise VlpromptError(f"{file} cannot be read by onnxruntime: {first_line(error)}") from error
    facts = read_facts(session.get_modelmeta().custom_metadata_map, str(file))
    shapes = {each.name: each.shape[1:] for each in (*session.get_inputs(), *session.get_outputs())}
    side = facts.image_size
    if shapes != {"images": [3, side, side], "logits": [len(facts.class_names)]}:
        raise VlpromptError(f"{file} is damaged: its graph does not go with its metadata")

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return Exported(facts, logits)


def _load_program(file: Path, trust: bool) -> Exported:
    if not trust:
        raise VlpromptError(
            f"{file} is read by torch.export, by pickle among other things, which can run code of whoever wrote it: "
            "say trust=true if that is you, or export to=onnx"
        )
    extra = {FACTS: ""}
    try:
        module = torch.export.load(file, extra_files=extra).module()
    except Exception as error:  # of whatever its bytes lead torch to
        raise VlpromptError(f"{file} cannot be read by torch.export: {first_line(error)}") from error
    try:
        told = json.loads(extra[FACTS] or "{}")
    except ValueError as error:
        raise VlpromptError(f"{file} has metadata that are no JSON: {first_line(error)}") from error
    facts = read_facts({key: json.dumps(value) for key, value in told.items()}, str(file))

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = module(images)
            return found

    return Exported(facts, logits)
