"""The frozen model as a teacher: text features, descriptions, image features, each computed once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets_registry.descriptions import DESCRIPTION_SETS, names_file, read_descriptions
from vlprompt.base.checks import check_templates
from vlprompt.base.modes import default_modes
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.naming import names_and_owners, natural_name
from vlprompt.clip.text import average_names
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.data.templates import TEMPLATE_SETS
from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from vlprompt.learner.contract import PromptLearner
    from vlprompt.learner.objectives import Batch

# text features by model, shared by all learners of a sweep
_KNOWN: WeakKeyDictionary[FrozenCLIP, dict[tuple[object, ...], Tensor]] = WeakKeyDictionary()


class SavedTeacher(Protocol):
    """A saved learner that teaches another, with its own backbone, or that another builds on.

    Attributes:
        learner: the saved learner.
        identity: distinguishes it from others.
        name: its name in messages.
        needs_images: whether features of the student's frozen tower are not enough for it.
        new_classes: whether it can score classes that it was not trained on.
        lacks: why it has no class features (C, D) for the student's backbone, as the end of a sentence; empty if it
            has.
    """

    learner: PromptLearner
    identity: dict[str, Any]
    name: str
    needs_images: bool
    new_classes: bool
    lacks: str

    def tower(self, class_names: Sequence[str]) -> FrozenCLIP:
        """The model whose image features belong to its class features."""

    def save(self, path: Path, class_names: Sequence[str]) -> None:
        """Save it to a folder."""

    def text_features(self, class_names: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
        """Class features (C, D of its backbone)."""

    def logits(self, batch: Batch, class_names: Sequence[str]) -> Tensor:
        """Logits (B, C) of a student's batch."""


class Teacher:
    """A frozen model's features, cached.

    Text features are kept for all teachers of a model: keys are class names, templates and sentences; the weights never
    change. Image features are kept for the current batch, so that several objectives share one forward pass, and taken
    from the batch if a feature bank has put them there.

    Args:
        clip: the frozen model.

    Attributes:
        reads_files: whether templates and descriptions may be given as files; not in a loaded learner, whose settings
            someone else wrote.
        own_files: files that may be read nevertheless, since the settings of the user's own run name them too.
    """

    def __init__(self, clip: FrozenCLIP):
        self.clip = clip
        self.reads_files = True
        self.own_files: set[str] = set()
        self._cache = _KNOWN.setdefault(clip, {})
        self._last: tuple[Tensor, int | None, Tensor] | None = None

    @default_modes()
    def text_features(
        self,
        class_names: Sequence[str],
        templates: Sequence[str] = (DEFAULT_TEMPLATE,),
        normalise_first: bool = True,
        normalise_last: bool = True,
    ) -> Tensor:
        """Mean text feature of each class over templates, normalised: (C, D).

        Args:
            class_names: underscores become spaces. The features of names that are one class's (``ClassNames``) are
                averaged, as directions.
            templates: each with one ``{}``.
            normalise_first: whether each template's feature is normalised before the mean (CLIP's ensembles), or only
                the mean is (PromptSRC's teacher).
            normalise_last: whether the mean is normalised.
        """
        every, owners = names_and_owners(class_names)
        key = ("text", tuple(every), owners, tuple(templates), normalise_first, normalise_last)
        if key not in self._cache:
            texts = filled(every, templates)
            features = self.clip.encode_text(texts).unflatten(0, (len(templates), -1))  # (T, C, D)
            features = F.normalize(features, dim=-1) if normalise_first else features
            mean = features.mean(dim=0)
            if owners is not None:
                mean = average_names(mean, torch.tensor(owners, device=mean.device))
            self._cache[key] = F.normalize(mean, dim=-1) if normalise_last else mean
        return self._cache[key]

    @default_modes()
    def description_table(self, class_names: Sequence[str], descriptions: Sequence[str] | str) -> Tensor:
        """Normalised features of each class's descriptions (N, C, D); N is the shortest list's length.

        Args:
            class_names: underscores become spaces.
            descriptions: a JSON file ``{class: [sentences]}``, or templates.
        """
        self.refuse_file(descriptions)
        file = descriptions if names_file(descriptions) else None
        templates = [descriptions] if isinstance(descriptions, str) else descriptions
        key = ("descriptions", tuple(class_names), tuple(templates) if file is None else _stamp(file))
        if key not in self._cache:
            if file is not None:
                sentences = read_descriptions(file, class_names)
                count = min(map(len, sentences))
                texts = [sentences[c][i] for i in range(count) for c in range(len(class_names))]
            else:
                count, texts = len(templates), filled(class_names, templates)
            self._cache[key] = F.normalize(self.clip.encode_text(texts).unflatten(0, (count, -1)), dim=-1)
        return self._cache[key]

    @default_modes()
    def described(
        self,
        class_names: Sequence[str],
        path: str,
        templates: Sequence[str] = (),
        cut: bool = False,
        normalise: bool = True,
    ) -> Tensor:
        """Mean feature of each class's sentences (C, D), by default normalised before and after the mean.

        Args:
            class_names: underscores become spaces.
            path: a JSON file ``{class: [sentences]}``, or a set that comes with the package.
            templates: further sentences, with the class name inserted.
            cut: whether to truncate sentences that are longer than the context; else they are an error.
            normalise: whether to normalise features and their mean.
        """
        self.refuse_file(path)
        key = ("described", tuple(class_names), _stamp(path), tuple(templates), cut, normalise)
        if key not in self._cache:
            written = read_descriptions(path, class_names)
            made = [filled([name], templates) if templates else [] for name in class_names]
            sentences = [[*both, *texts] for both, texts in zip(made, written, strict=True)]
            every = [text for texts in sentences for text in texts]
            features = self.clip.encode_text(every, cut=cut)
            features = F.normalize(features, dim=-1) if normalise else features
            means = torch.stack([part.mean(dim=0) for part in features.split([len(texts) for texts in sentences])])
            self._cache[key] = F.normalize(means, dim=-1) if normalise else means
        return self._cache[key]

    def image_features(self, batch: Batch | Mapping[str, Tensor], view: str = "image") -> Tensor:
        """Normalised features (B, D) of a batch's view by the frozen tower, without gradients."""
        tensors = cast("Mapping[str, Tensor]", batch)
        known = tensors.get("image_features") if view == "image" else tensors.get(f"{view}_features")
        if known is not None:
            return F.normalize(known, dim=-1)
        images = tensors[view]
        version = None if images.is_inference() else images._version  # a buffer may be reused for several batches
        if self._last is None or self._last[0] is not images or self._last[1] != version:
            self._last = (images, version, F.normalize(self.clip.encode_image(images), dim=-1))
        return self._last[2]

    def refuse_file(self, spec: Any) -> None:
        """Raise a ``VlpromptError`` if a setting names a file and none may be read."""
        if self.reads_files or (isinstance(spec, str) and spec in self.own_files):
            return
        if isinstance(spec, str) and "{}" not in spec and spec not in (*TEMPLATE_SETS, *DESCRIPTION_SETS):
            raise VlpromptError(
                f"a loaded learner's settings may not name files, and they name '{spec}': make a learner with "
                "create_learner, and init_from= the saved one"
            )


def filled(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every template with every class name, template by template."""
    templates = check_templates(templates)
    names = [natural_name(name) for name in class_names]
    # replace rather than format, which would evaluate "{x.attribute}" in other people's templates
    return [template.replace("{}", name) for template in templates for name in names]


def _stamp(path: str) -> tuple[str, int, int]:
    """Path, modification time and size, which identify a version of a file without reading it."""
    try:
        facts = os.stat(os.path.expanduser(path))
    except OSError:
        return path, 0, 0  # the error is reported when it is read
    return path, facts.st_mtime_ns, facts.st_size
