"""A saved learner that teaches another one, or that another one builds on, with its own backbone and transform."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.base.tensor_checks import check_images
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.errors import VlpromptError
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.fusion import first_kind
from vlprompt.learner.objectives import Batch

OTHERWISE = "does not score with one matrix of class features (C, D)"


class LearntTower(FrozenCLIP):
    """A frozen model whose image features are a learner's, for feeds and banks, which store them under its identity.

    Args:
        learner: in evaluation mode; it prompts or edits the image tower.
    """

    def __init__(self, learner: PromptLearner):
        vars(self).update(vars(learner.clip))
        self.learner = learner

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the learner, whose frozen model is pickled by name."""
        return type(self), (self.learner,)

    @functools.cached_property
    def _learnt(self) -> str:
        """SHA-256 of the learner's tensors and settings."""
        settings = sorted(dataclasses.asdict(self.learner.config).items())
        digest = hashlib.sha256(f"{self.learner.method} {settings}".encode())
        for key, tensor in sorted(self.learner.state_dict().items()):
            digest.update(f"{key} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """The backbone's identity, the learner's hash, and its class names, which image features may depend on."""
        return super().identity() | {"learner": self._learnt, "class_names": list(self.learner.class_names)}

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) as the learner does: features (B, D), fp32, not normalised."""
        images = check_images(images, self.image_size).to(self.device)
        return first_kind(self.learner.encode_images({"image": images}))


class LearnerTeacher:
    """A saved learner applied to the classes and images of another one, called the student, without gradients.

    It sees the student's images: their crop and augmentation, with the student's normalisation undone, resized to its
    own backbone's size and normalised for it. So it sees no more of an image than the student does.

    Args:
        learner: the teacher, in evaluation mode.
        student: the student's frozen model, for which batches are made.
        identity: distinguishes it from other teachers: its method, its backbone's weights, and the hash of its folder.
        name: its name in messages.
        role: its role for the student, in messages.

    Raises:
        VlpromptError: it needs more of a test image than the image, or other images.
    """

    def __init__(
        self,
        learner: PromptLearner,
        student: FrozenCLIP,
        identity: Mapping[str, Any],
        name: str = "teacher",
        role: str = "teacher",
    ):
        if learner.facts.inputs != ("image",):
            raise VlpromptError(
                f"the {role} {name} is of {learner.method}, which needs {' and '.join(learner.facts.inputs)} of an "
                "image, and a training batch has none of the kind: take one that needs the image alone"
            )
        if learner.facts.predicts != "alone":
            raise VlpromptError(
                f"the {role} {name} is of {learner.method}, whose predictions depend on other test images: take a "
                "one that predicts each image alone"
            )
        self.learner, self.student = learner.eval(), student
        self.identity, self.name, self.role = dict(identity), name, role
        same = learner.clip is student or learner.clip.identity() == student.identity()
        self.needs_images = not (same and learner.facts.cacheable_images)  # rather than the student's features
        self.new_classes = learner.facts.new_classes
        own_width = learner.feature_width == learner.clip.embed_dim
        by_class = learner.facts.classifier == "shared" and not learner.facts.head and own_width
        self.lacks = "" if by_class and same else "uses another backbone" if by_class else OTHERWISE
        self._tower = student if learner.facts.cacheable_images else LearntTower(learner)

    def tower(self, class_names: Sequence[str]) -> FrozenCLIP:
        """The model whose image features belong to its class features; the student's if it has none."""
        self.score_classes(class_names)
        return self.student if self.lacks else self._tower

    def save(self, path: Path, class_names: Sequence[str]) -> None:
        """Save it to a folder."""
        self.score_classes(class_names)
        self.learner.save_pretrained(path)

    def text_features(self, class_names: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
        """Its class features (C, D of its backbone); it has its own templates, so the given ones are ignored."""
        self.score_classes(class_names)
        return self.learner.classifier_matrix()

    def logits(self, batch: Batch, class_names: Sequence[str]) -> Tensor:
        """Logits (B, C) of a student's batch, with the teacher's logit scale, on the student's device."""
        self.score_classes(class_names)
        if not self.needs_images and batch.get("image_features") is not None:
            seen: Batch = {"image_features": batch["image_features"]}
        elif "image" in batch:
            seen = {"image": self._as_own(batch["image"])}
        else:
            raise VlpromptError(
                f"the {self.role} {self.name} has another image tower than the student, so it cannot use the student's "
                "features: give images"
            )
        return self.learner.predict(seen).to(self.student.device)

    def score_classes(self, class_names: Sequence[str]) -> None:
        """Score a student's classes from now on, or raise a ``VlpromptError``."""
        if tuple(class_names) == self.learner.class_names:
            return
        try:
            self.learner.set_class_names(class_names)
        except VlpromptError as error:
            raise VlpromptError(f"the {self.role} {self.name} cannot score these classes: {error}") from error

    @torch.no_grad()
    def _as_own(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in the student's preprocessing, converted to that of the teacher's backbone."""
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
