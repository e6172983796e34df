"""Exports of learners for use without vlprompt: a classifier matrix, a ``torch.export`` program, ONNX, or OpenCLIP.

Each export is run and compared with the learner before it is written.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vlprompt.base.files import atomic_write, temporary_folder, writing
from vlprompt.clip.edits import FullLength
from vlprompt.data.transforms import interpolation_of
from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.calibration import threshold_for
from vlprompt.evaluation.scoring import finite
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.recording import extra_edits
from vlprompt.saving import run_onnx
from vlprompt.saving.export_openclip import export_openclip
from vlprompt.saving.exported import FACTS
from vlprompt.saving.merging import merged_into
from vlprompt.version import __version__

ONNX_TORCH = "2.7"  # earlier exporters do not support batches of any size
MOST_IMAGES = 2**31 - 1  # per batch: torch 2.5 rejects its own default bound
SCRIPT = "run_onnx.py"
TOLERANCE = 1e-4  # of logits, absolute and relative
Dynamic = dict[str, dict[int, Any]]  # the axes of each input that are of any size


def export_learner(learner: PromptLearner, to: str, path: str | os.PathLike[str]) -> Path:
    """Export a learner for use without vlprompt; see docs/howto/share_and_export.md.

    Args:
        learner: a learner in fp32 on the CPU.
        to: ``matrix``, ``torch``, ``onnx`` or ``openclip``.
        path: the file (for ``openclip``, the folder) to write. Metadata such as class names is written next to it as
            JSON.

    Raises:
        VlpromptError: the format is unknown or the learner does not support it, a package is missing, or the exported
            model does not compute the same as the learner.
    """
    check_form(to)
    if learner.clip.precision != "fp32" or learner.clip.device.type != "cpu":
        raise VlpromptError("a learner is exported in fp32 from the CPU: load it with precision=fp32 and device=cpu")
    if learner.facts.inputs != ("image",):
        needs = " and ".join(learner.facts.inputs)
        raise VlpromptError(
            f"{learner.method} with these settings predicts from {needs}, which an exported file cannot"
        )
    if learner.facts.predicts != "alone":
        raise VlpromptError(
            f"{learner.method} with these settings needs other test images to predict one, which no exported file has"
        )
    return FORMATS[to](learner.eval(), Path(path))


def check_form(to: str) -> None:
    """Raise a ``VlpromptError`` if an export format is unknown."""
    if to not in FORMATS:
        raise VlpromptError(f"unknown form '{to}': {nearest(to, FORMATS)}")


def export_matrix(learner: PromptLearner, path: Path) -> Path:
    """Write a linear classifier as safetensors: ``weight`` (C, D), ``logit_scale`` (), ``logit_bias`` () or (C,).

    The logits are ``logit_scale * normalise(image_features) @ weight.T + logit_bias``. The JSON file says whether the
    image features are the backbone's own or those of a prompted image tower.
    """
    scale, linear = learner.logit_scale, _linear_head(learner)
    weight, bias = (linear[0] / scale, linear[1]) if linear else (learner.classifier_matrix(), learner.clip.logit_bias)
    tensors = {
        "weight": finite(weight, learner).contiguous(),
        "logit_scale": torch.tensor(scale),
        "logit_bias": torch.as_tensor(bias),
    }
    facts = describe(learner)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={key: json.dumps(value) for key, value in facts.items()})
    return _write_facts(facts, path)


def export_torch(learner: PromptLearner, path: Path) -> Path:
    """Write a ``torch.export`` program from images (B, 3, H, W) to logits (B, C): ``torch.export.load(path).module()``.

    It contains the classifier, and what the learner changes in the image tower, such as visual prompts.
    """
    with _exportable(learner) as (graph, example, dynamic):
        try:  # strict tracing, the default before torch 2.7, refuses much of plain Python
            program = torch.export.export(graph, (example,), dynamic_shapes=dynamic, strict=False)
        except Exception as error:  # torch has many exceptions, with long messages
            reason = str(error).splitlines()[0]
            raise VlpromptError(f"torch {torch.__version__} cannot trace {learner.method}: {reason}") from error
    content = io.BytesIO()  # torch's own writer aborts the process if the disk is full
    facts = describe(learner)
    torch.export.save(program, content, extra_files={FACTS: json.dumps(facts)})
    _compare(torch.export.load(io.BytesIO(content.getvalue())).module(), learner, path)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    return _write_facts(facts, path)


def export_onnx(learner: PromptLearner, path: Path) -> Path:
    """Write an ONNX model from ``images`` (batch, 3, H, W) to ``logits`` (batch, C).

    ``run_onnx.py`` is written beside it, which predicts without torch. As ONNX requires, weights of more than 2 GB are
    in a file of their own.
    """
    if torch.__version__ < ONNX_TORCH:  # before packages are asked for that would not help
        raise VlpromptError(f"torch {torch.__version__} cannot write this ONNX: {_advice()}")
    runtime = _import("onnxruntime")
    for package in ("onnx", "onnxscript"):
        _import(package)
    facts = describe(learner)
    with _exportable(learner) as (graph, example, dynamic):
        program = _to_onnx(graph, example, dynamic)
    program.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
    with writing(path), temporary_folder(path) as folder:  # the model contains the name of the file of weights
        program.save(Path(folder, path.name))
        session = runtime.InferenceSession(Path(folder, path.name), providers=["CPUExecutionProvider"])
        _compare(lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0]), learner, path)
        for file in sorted(Path(folder).iterdir(), reverse=True):  # the weights before the model
            file.replace(path.with_name(file.name))
    with atomic_write(path.with_name(SCRIPT)) as temporary:
        temporary.write_text(Path(run_onnx.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    return _write_facts(facts, path)


# how a resized image is made square, by resize_mode
CROPS = {"shortest": "center", "longest": "pad with black", "squash": "none"}
FORMATS: dict[str, Callable[[PromptLearner, Path], Path]] = {
    "matrix": export_matrix,
    "torch": export_torch,
    "onnx": export_onnx,
    "openclip": export_openclip,
}
SUFFIXES = {"matrix": ".safetensors", "torch": ".pt2", "onnx": ".onnx", "openclip": ""}


def left_out(learner: PromptLearner, to: str) -> list[str]:
    """What an export lacks, compared with the learner: a phrase for each thing."""
    if to == "openclip":
        return ["the temperature and the threshold, which are in classifier.json"]
    prompted = not learner.facts.cacheable_images
    tower = "which is prompted: to=torch and to=onnx have it" if prompted else f"that of {learner.clip.name}"
    how = "which the .json file describes" + (f" and {SCRIPT} does" if to == "onnx" else "")
    lacking = [f"the image tower, {tower}"] if to == "matrix" else [f"reading and preprocessing images, {how}"]
    if not _per_image(learner):
        lacking.append("the text tower: other class names need another export")
    return [*lacking, "the temperature and the threshold: the output is logits, and the .json file has both numbers"]


def _linear_head(learner: PromptLearner) -> tuple[Tensor, Tensor] | None:
    """Weights (C, D) and biases (C,) of a head that is linear in the image features; None for other learners."""
    with torch.no_grad():
        return learner.linear() if learner.facts.head else None


def describe(learner: PromptLearner) -> dict[str, Any]:
    """The metadata of an export: classes in order, preprocessing of images, and what image features are scored."""
    clip = learner.clip
    return {
        "vlprompt": __version__,
        "class_names": list(learner.class_names),
        "image_size": clip.image_size,
        "mean": list(clip.image_mean),
        "std": list(clip.image_std),
        "interpolation": interpolation_of(clip).value,
        "resize_mode": clip.resize_mode,
        "crop": CROPS[clip.resize_mode],
        "temperature": learner.temperature,
        "min_probability": threshold_for(learner),
        "image_tower": "frozen" if learner.facts.cacheable_images else "prompted",
        "batch": 1 if _per_image(learner) else "any",
        "backbone": clip.identity(),
        "method": learner.method,
    }


def _write_facts(facts: Mapping[str, Any], path: Path) -> Path:
    """Write the metadata as JSON beside an export, and return the path of the export."""
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


class _Graph(nn.Module):
    """Images to logits, with the class features as a constant unless they depend on the image."""

    weight: Tensor
    bias: Tensor

    def __init__(self, learner: PromptLearner):
        super().__init__()
        self.learner = learner
        # the frozen modules that are used, so that their weights are part of the graph
        self.frozen = learner.clip.model if _per_image(learner) else learner.clip.visual.module
        self.beneath = None if learner.built_on is None else learner.built_on.learner
        linear = _linear_head(learner)
        if linear:
            self.register_buffer("weight", linear[0].detach())
            self.register_buffer("bias", linear[1].detach())
        if learner.ensemble is not None:
            learner.frozen_text()  # computed before tracing, so it is a constant
        if linear is None and not _per_image(learner):
            self.register_buffer("weight", learner.class_features().detach())
        # here, so that what all images share, such as the features of several names per class, is a constant too
        self.encode = learner.text_encoder() if learner.second_head is None else learner.text_features

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, H, W)."""
        if hasattr(self, "bias"):
            return F.linear(self.learner.image_features(images), self.weight, self.bias)
        features = self.learner.encoded(images)
        text = self.encode(F.normalize(features, dim=-1)) if _per_image(self.learner) else self.weight
        scored = self.learner.scored(features, text)
        frozen = self.learner.frozen_image_features(images)
        return self.learner.select_scored(self.learner.in_ensemble(scored.logits, scored.image_features, frozen))


def _per_image(learner: PromptLearner) -> bool:
    """Whether class features depend on the image."""
    return learner.facts.classifier == "per_image"


@contextlib.contextmanager
def _exportable(learner: PromptLearner) -> Iterator[tuple[nn.Module, Tensor, Dynamic | None]]:
    """Yield a module that can be traced, example images (B, 3, S, S), and the axes that are of any size.

    If class features depend on the image, the module is traced for one image, and with full-length prompts: how the
    shared-prefix encoding packs tokens depends on values in tensors, which a graph cannot express.
    """
    per_image, size = _per_image(learner), learner.clip.image_size
    dynamic = None if per_image else {"images": {0: torch.export.Dim("batch", max=MOST_IMAGES)}}
    with torch.no_grad(), merged_into(learner), extra_edits(learner, *([FullLength()] if per_image else [])):
        yield _Graph(learner).eval(), torch.zeros(1 if per_image else 2, 3, size, size), dynamic


def _to_onnx(graph: nn.Module, example: Tensor, dynamic: Dynamic | None) -> Any:
    """Return torch's ONNX program, or raise a ``VlpromptError`` if the installed packages cannot make it."""
    versions = f"torch {torch.__version__} with onnx {version('onnx')} and onnxscript {version('onnxscript')}"
    try:
        return torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=dynamic and {"images": {0: "batch"}},
        )
    except Exception as error:  # of any of the three packages
        reason = str(error).splitlines()[0]
        raise VlpromptError(f"{versions} failed to write this ONNX ({reason}): {_advice()}") from error


def _advice() -> str:
    return f"upgrade what writes it (torch to {ONNX_TORCH} or later), or export to=torch"


def _compare(run: Callable[[Tensor], Tensor], learner: PromptLearner, path: Path) -> None:
    """Raise a ``VlpromptError`` unless an export gives the learner's logits, for several batch sizes if it can."""
    size, generator = learner.clip.image_size, torch.Generator().manual_seed(0)
    for count in (1,) if _per_image(learner) else (1, 3):
        images = torch.randn(count, 3, size, size, generator=generator)
        with torch.no_grad():
            expected, actual = learner(images), run(images)
        if not torch.allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE):
            difference = float((actual - expected).abs().max())
            raise VlpromptError(f"{path} was not written: its logits differ from the learner's by {difference:.2g}")


def _import(package: str) -> Any:
    """Import a package, or raise a ``VlpromptError`` that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise VlpromptError(f'this export needs {package}: pip install "vlprompt[export]"') from error
