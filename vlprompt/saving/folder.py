"""Saving a learner to a folder with its learnables, configuration and card, and loading it.

A saved learner may come from anyone, so nothing in it is trusted: tensors are read as safetensors, the configuration is
checked field by field, sizes are compared with the shapes of the tensors before memory is allocated, and no text in it
is used as the name of a file.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vlprompt.base.checks import checked
from vlprompt.base.files import atomic_write
from vlprompt.base.layout import CARD, CONFIG, EXPORTS, LAST, LEARNABLES, LEARNER, TEXT
from vlprompt.base.modes import default_modes
from vlprompt.base.sealed import read_tensors, write_tensors
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.loading import load_clip
from vlprompt.clip.name_checks import check_names
from vlprompt.errors import VlpromptError, first_line
from vlprompt.learner.calibration import read_calibration
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.registration import make_config, method_of_file
from vlprompt.learner.saved_teacher import LearnerTeacher
from vlprompt.saving.card import model_card
from vlprompt.saving.description import description_hash, read_description, safe_member, write_description
from vlprompt.saving.hub import PREFIX, fetch, refuse_address
from vlprompt.version import __version__

NO_START = {"init_from": None, "init_length": "same"}
SPARE_NUMBERS = 2**22  # numbers that a method may allocate in its setup besides its learnables


def save_learner(learner: PromptLearner, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> Path:
    """Write ``learner.safetensors`` (learnables only), ``config.json`` and a model card into a folder.

    If the learner is built on another one, that is written into the sub-folder ``text``.

    Args:
        learner: any learner.
        path: the folder, created if needed.
        extra: metadata to save with the configuration, as JSON: dataset, shots, seed, ``license`` of the weights.

    Returns:
        The folder.
    """
    folder = Path(path)
    others = {"teacher": learner.taught_by_identity} if learner.taught_by_identity else {}
    if learner.start is not None:
        others["start"] = learner.start
    if learner.built_on is not None:
        learner.built_on.save(folder / TEXT, learner.learnt_names)
        others["text"] = learner.built_on.identity | {"kept": description_hash(folder / TEXT)}
    # needed if the class names were replaced, or if classes that were trained on are scored by another rule
    needed = learner.facts.parts or learner.trained_names != learner.class_names
    trained = {"trained_on": list(learner.trained_names)} if needed else {}
    calibrated = {"calibration": dataclasses.asdict(learner.calibration)} if learner.calibration else {}
    description = {
        **trained,
        **calibrated,
        "vlprompt": __version__,
        "method": learner.method,
        "config": dataclasses.asdict(learner.config),
        "backbone": learner.clip.identity(),
        "source": learner.clip.source,
        "class_names": list(learner.learnt_names),
        "templates": list(learner.templates),
        "extra": dict(extra or {}) | others,
    }
    state = learner.state_dict()
    files = {LEARNABLES: write_tensors(folder / LEARNABLES, state)}
    if learner.last_state is None:
        (folder / LAST).unlink(missing_ok=True)
    else:  # the learnables of the last epoch, besides the aggregated ones
        files[LAST] = write_tensors(folder / LAST, learner.last_state)
    write_description(folder, description | {"files": files})
    with atomic_write(folder / CARD) as temporary:
        count = sum(t.numel() for t in state.values())
        temporary.write_text(model_card(description, learner.facts, count), encoding="utf-8")
    return folder


@checked
@default_modes()
def load_learner(path: str | os.PathLike[str], clip: FrozenCLIP | None = None, device: str = "auto") -> PromptLearner:
    """Load a saved learner.

    Args:
        path: a folder that ``save_pretrained`` wrote, the folder of a run, or ``hf://user/name[@revision]`` on the
            Hugging Face Hub.
        clip: the frozen model; by default the one that the learner was saved with is loaded. Any other backbone than
            the one it was trained on is an error that names both.
        device: the device of a backbone that is loaded here.

    Raises:
        VlpromptError: there is no learner, its files are inconsistent or were changed, or the backbone is another one.
    """
    remote = str(path).startswith(PREFIX)
    return _load(fetch(str(path)) if remote else find_saved(path), str(path), remote, clip, device)


def load_saved(
    place: str | os.PathLike[str], clip: FrozenCLIP, class_names: Sequence[str], role: str
) -> LearnerTeacher:
    """Load a saved learner as the teacher of another one, or for another one to be built on.

    Args:
        place: a run's folder, a saved learner's, or ``hf://user/name``.
        clip: the other learner's frozen model, which the saved one shares if it has the same backbone.
        class_names: the classes that it must be able to score.
        role: what errors call it.

    Raises:
        VlpromptError: there is no learner, or it cannot score the classes.
    """
    remote = str(place).startswith(PREFIX)
    folder = fetch(str(place)) if remote else find_saved(place)
    return _load_for(folder, str(place), remote, clip, class_names, role)


def _load_for(
    folder: Path, name: str, remote: bool, clip: FrozenCLIP, class_names: Sequence[str], role: str
) -> LearnerTeacher:
    """``load_saved`` from a folder that errors call ``name``."""
    saved = read_description(folder)
    identity = {"method": saved["method"], "weights": saved["backbone"]["weights"], "sha256": description_hash(folder)}
    same = all(saved["backbone"].get(key) == value for key, value in clip.identity().items())
    learner = _load(folder, name, remote, clip if same else None, str(clip.device))
    teacher = LearnerTeacher(learner, clip, identity, name, role)
    teacher.score_classes(class_names)
    return teacher


def _load_built_on(folder: Path, path: str, remote: bool, saved: Mapping[str, Any], clip: FrozenCLIP) -> LearnerTeacher:
    """The saved learner that another one is built on, from the sub-folder ``text``."""
    identity = saved["extra"].get("text")
    if not (folder / TEXT / CONFIG).exists() or not isinstance(identity, dict):
        raise VlpromptError(
            f"{path} builds on a learner that is missing from its folder {TEXT}: save or download it again"
        )
    safe_member(folder, f"{TEXT}/{CONFIG}")  # refuses a link to another learner
    if identity.get("kept") != description_hash(folder / TEXT):
        raise VlpromptError(f"the learner in {folder / TEXT} is not the one that {path} was saved with: save it again")
    built_on = _load_for(folder / TEXT, f"{path}/{TEXT}", remote, clip, saved["class_names"], "learner")
    built_on.identity = {key: value for key, value in identity.items() if key != "kept"}
    return built_on


def _load(folder: Path, path: str, remote: bool, clip: FrozenCLIP | None, device: str) -> PromptLearner:
    """``load_learner`` from a folder that errors call ``path``; ``remote`` if it came from the Hub."""
    saved = read_description(folder)
    file = folder / CONFIG
    declared = tensor_shapes(safe_member(folder, LEARNABLES))
    cls = method_of_file(saved["method"], str(file))
    try:
        config = make_config(saved["method"], saved["config"] | NO_START)  # the tensors replace any start
    except VlpromptError as error:
        raise VlpromptError(f"{file}: {error}") from error
    if clip is None:
        clip = load_clip(**_trusted_source(saved["source"], folder, remote), device=device)
    _check_backbone(saved["backbone"], clip.identity(), path)
    trained_on = saved.get("trained_on", saved["class_names"])
    builds = cls.builds_on(config) is not None
    built_on: dict[str, Any] = {"on": _load_built_on(folder, path, remote, saved, clip)} if builds else {}
    allowed = 4 * sum(map(math.prod, declared.values())) + SPARE_NUMBERS
    try:
        with _AllocationLimit(allowed):
            learner = cls(clip, trained_on, config, saved["templates"], **built_on)
    except VlpromptError as error:
        raise VlpromptError(f"{file}: {first_line(error)}") from error
    except Exception as error:  # manipulated settings may fail anywhere in a method's setup
        raise VlpromptError(
            f"{file}: no learner can be made of it ({type(error).__name__}: {first_line(error)})"
        ) from error
    learner.teacher.reads_files = False
    learner.taught_by_identity = _identity_of_teacher(saved)
    start = saved["extra"].get("start")
    learner.start = dict(start) if isinstance(start, dict) else None
    own = saved["extra"].get("dataset")
    learner.learnt_on = tuple(own.split("+")) if isinstance(own, str) else ()
    learner.reserve(declared)
    learner.check_shapes(declared, f"the tensors of {path}")
    learnables = read_learnables(folder, saved["files"].get(LEARNABLES))
    learner.load_learnables(learnables, f"the tensors of {path}")
    learner.set_class_names(saved["class_names"])
    if "calibration" in saved:
        learner.calibration = read_calibration(saved["calibration"], f"{file}, calibration")
    check_names(clip, learner.class_names, shared_names=True)
    return learner.eval()


def _identity_of_teacher(saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """The identity of a saved learner's teacher, which is needed only to train it further."""
    identity = saved["extra"].get("teacher")
    return dict(identity) if isinstance(identity, dict) else None


def read_learnables(path: str | os.PathLike[str], sha256: str | None = None) -> dict[str, Tensor]:
    """Read learnables from a ``.safetensors`` file, a saved learner's folder or a run's folder.

    Args:
        path: the file or folder.
        sha256: the hash of the file in the learner's configuration, if it must match.

    Returns:
        Tensors by name.

    Raises:
        VlpromptError: there are none, they were changed or belong to another learner, or are not finite floats.
    """
    refuse_address(path, "load_learner fetches a whole learner")
    path = Path(path).expanduser()
    candidates = [path, path / LEARNABLES, path / LEARNER / LEARNABLES]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    checkpoint = path if path.is_file() else next((p for p in sorted(path.glob("**/*.pth*")) if p.is_file()), None)
    if file in (None, path) and checkpoint and _is_of_torch(checkpoint):
        raise VlpromptError(
            f"{checkpoint} is a torch checkpoint and not a saved learner: vlprompt import-checkpoint converts it"
        )
    if file is None:
        raise VlpromptError(f"no learnables at {path}: give a saved learner's folder or its {LEARNABLES}")
    tensors, _ = read_tensors(file, "the learner", "save it or fetch it again", sha256)
    _check_numbers(tensors, f"the tensors of {path}")
    return tensors


def _is_of_torch(file: Path) -> bool:
    """Whether a file starts like those of ``torch.save``: an archive, or a pickle."""
    with open(file, "rb") as opened:
        start = opened.read(9)
    is_safetensors = start[8:] == b"{"  # after eight bytes with the header's length, which may look like a pickle's
    return start.startswith((b"PK\x03\x04", b"\x80")) and not is_safetensors


def _check_numbers(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise a ``VlpromptError`` for the first tensor that is not of finite floats."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise VlpromptError(
                f"{source} cannot be used: {name} is {tensor.dtype}, which is not a type of learnt tensors"
            )
        if not tensor.isfinite().all():
            raise VlpromptError(f"{source} cannot be used: {name} holds NaN or infinity")


def find_saved(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a saved learner: ``path`` itself, or ``learner`` in a run's folder.

    Raises:
        VlpromptError: there is none.
    """
    folder = Path(path).expanduser()
    saved = next((f for f in (folder, folder / LEARNER) if (f / CONFIG).exists()), None)
    if saved is None:
        if folder.is_file():
            export = ": an exported model is given as model=FILE" if folder.suffix in EXPORTS else ""
            raise VlpromptError(f"{folder} is a file, not the folder of a saved learner{export}")
        missing = f"{CONFIG} is missing" if folder.is_dir() else "there is no such folder"
        raise VlpromptError(f"no saved learner in {folder}: {missing}")
    return saved


def tensor_shapes(file: Path) -> dict[str, torch.Size]:
    """Names and shapes of the tensors in a safetensors file, read from its header."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: torch.Size(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise VlpromptError(f"{file} cannot be read: {first_line(error)}") from error


class _AllocationLimit(TorchDispatchMode):
    """Refuses to allocate more numbers than a learner with the declared tensors needs."""

    def __init__(self, numbers: int):
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no annotations
        self.left = numbers

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        size = args[0] if args else (kwargs or {}).get("size")
        is_floating = (kwargs or {}).get("dtype") in (None, torch.float32, torch.float64)
        if is_floating and isinstance(size, (list, tuple)) and all(isinstance(s, int) for s in size):
            self.left -= math.prod(size)
            if self.left < 0:
                raise VlpromptError(f"it asks for far larger tensors than {LEARNABLES} beside it holds")
        return func(*args, **(kwargs or {}))


def _trusted_source(source: Mapping[str, Any] | None, folder: Path, remote: bool) -> dict[str, Any]:
    """Return the arguments of ``load_clip``, or raise if they would load code or files that a stranger chose."""
    if source is None:
        raise VlpromptError(f"{folder} was trained on a model object: give it as clip=, it cannot be loaded by name")
    name, checkpoint = source["name"], source["checkpoint"]
    foreign = name.startswith("hf-hub:") or (remote and (checkpoint or name.startswith("local-dir:")))
    if foreign:
        arguments = f'"{name}"' + (f', checkpoint="{checkpoint}"' if checkpoint else "")
        raise VlpromptError(
            f"{folder} asks for a backbone from elsewhere, which a saved learner may not fetch: if you trust it, give "
            f"clip=vlprompt.load_clip({arguments})"
        )
    return dict(source)


def _check_backbone(trained: Mapping[str, Any], actual: Mapping[str, Any], path: str) -> None:
    """Raise a ``VlpromptError`` that names both backbones unless they are the same."""
    for key in ("weights", "activation", "image_size", "preprocessing"):
        if actual[key] != trained.get(key, actual[key]):  # earlier versions did not save the preprocessing
            raise VlpromptError(
                f"{path} was trained on {_describe(trained)}, and this backbone is {_describe(actual)}: {key} differs"
            )


def _describe(identity: Mapping[str, Any]) -> str:
    """A backbone in an error."""
    return (
        f"{identity['architecture']} ({identity['pretrained']}, {identity['activation']}, "
        f"{identity['image_size']} px, weights {identity['weights'][:8]})"
    )
