"""A saved learner as a teacher: on a backbone, a transform and a logit scale of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.errors import VlpromptError
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.objectives import Batch
from vlprompt.saving.description import description_hash, read_description
from vlprompt.saving.folder import find_saved, load_learner
from vlprompt.saving.hub import PREFIX, fetch


class LearnerTeacher:
    """What a saved learner says of a student's classes and images, under no gradient.

    It sees the student's images: their crop and augmentation, with the student's normalisation undone, resized to its
    own backbone's size and normalised as that takes them. So it sees no more of an image than the student does.

    Args:
        learner: the teacher, in evaluation mode.
        student: the student's frozen model, for which batches are made.
        identity: what tells it from other teachers: its method, its backbone's weights, and the hash of its folder.
        name: what sentences call it.

    Raises:
        VlpromptError: it asks for more of a test image than the image, or for other images.
    """

    def __init__(self, learner: PromptLearner, student: FrozenCLIP, identity: Mapping[str, Any], name: str = "teacher"):
        if learner.facts.inputs != ("image",):
            raise VlpromptError(
                f"the teacher {name} is of {learner.method}, which needs {' and '.join(learner.facts.inputs)} of an "
                "image, and a training batch has none of the kind: take a teacher that needs the image alone"
            )
        if learner.facts.predicts != "alone":
            raise VlpromptError(
                f"the teacher {name} is of {learner.method}, whose predictions depend on other test images: take a "
                "teacher that predicts each image alone"
            )
        self.learner, self.student, self.identity, self.name = learner.eval(), student, dict(identity), name
        same = learner.clip is student or learner.clip.identity() == student.identity()
        self.needs_images = not (same and learner.facts.cacheable_images)  # the student's features do not serve it
        by_class = learner.facts.classifier == "shared" and not learner.facts.head
        self.has_class_features = by_class and not self.needs_images

    def text_features(self, class_names: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
        """Its class features (C, D of its backbone); templates are its own, so those given are left unused."""
        self.follow(class_names)
        return self.learner.classifier_matrix()

    def logits(self, batch: Batch, class_names: Sequence[str]) -> Tensor:
        """Logits (B, C) of a student's batch on the student's device, by the teacher's own logit scale."""
        self.follow(class_names)
        if not self.needs_images and batch.get("image_features") is not None:
            seen: Batch = {"image_features": batch["image_features"]}
        elif "image" in batch:
            seen = {"image": self._as_own(batch["image"])}
        else:
            raise VlpromptError(
                f"the teacher {self.name} has another image tower than the student, so features in hand do not serve "
                "it: give images"
            )
        return self.learner.predict(seen).to(self.student.device)

    def follow(self, class_names: Sequence[str]) -> None:
        """Score a student's classes from now on, or raise one sentence."""
        if tuple(class_names) == self.learner.class_names:
            return
        try:
            self.learner.set_class_names(class_names)
        except VlpromptError as error:
            raise VlpromptError(f"the teacher {self.name} cannot score the student's classes: {error}") from error

    @torch.no_grad()
    def _as_own(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) of the student's preprocessing as the teacher's backbone takes them."""
        mine, theirs = self.learner.clip, self.student
        size, constants = mine.image_size, (mine.image_mean, mine.image_std)
        if (size, constants) == (theirs.image_size, (theirs.image_mean, theirs.image_std)):
            return images
        mean, std = (images.new_tensor(each).view(3, 1, 1) for each in (theirs.image_mean, theirs.image_std))
        pixels = images * std + mean
        if size != theirs.image_size:
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (images.new_tensor(each).view(3, 1, 1) for each in constants)
        return (pixels - mean) / std


def load_teacher(place: str | os.PathLike[str], student: PromptLearner) -> LearnerTeacher:
    """Load a saved learner as a student's teacher; on the student's own frozen model where the two are the same.

    Args:
        place: a run's folder, a saved learner's, or ``hf://user/name``.
        student: its class names are checked now.

    Raises:
        VlpromptError: there is no learner, it cannot score the classes, or the student was taught by another.
    """
    name = str(place)
    folder = fetch(name) if name.startswith(PREFIX) else find_saved(Path(place))
    saved = read_description(folder)
    identity = {"method": saved["method"], "weights": saved["backbone"]["weights"], "sha256": description_hash(folder)}
    before = student.taught_by_identity
    if before is not None and before != identity:
        raise VlpromptError(
            f"{name} is not the teacher that this learner had: {_say(before)}, and not {_say(identity)}"
        )
    here = student.clip.identity()
    clip = student.clip if all(saved["backbone"].get(key) == value for key, value in here.items()) else None
    place = name if name.startswith(PREFIX) else folder
    teacher = LearnerTeacher(load_learner(place, clip, str(student.clip.device)), student.clip, identity, name)
    teacher.follow(student.class_names)
    return teacher


def teach(student: PromptLearner, place: str | os.PathLike[str]) -> None:
    """Give a student its teacher, such as one that was loaded and is to be trained on.

    Args:
        student: keeps the identity of the teacher where it is saved, and takes no other afterwards.
        place: as in ``load_teacher``.
    """
    student.taught_by = load_teacher(place, student)
    student.taught_by_identity = student.taught_by.identity


def _say(identity: Mapping[str, Any]) -> str:
    return (
        f"{identity.get('method')} of {str(identity.get('sha256'))[:8]} on weights {str(identity.get('weights'))[:8]}"
    )
