"""The one road from a batch to logits, which evaluation, prediction, the estimator, exports and training take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlprompt.base.tensor_checks import as_batch, check_features
from vlprompt.clip.naming import spoken
from vlprompt.data.templates import resolve_templates
from vlprompt.errors import VlpromptError
from vlprompt.learner.calibration import Calibration
from vlprompt.learner.ensembling import Ensemble
from vlprompt.learner.fusion import SecondHead, first_kind, rows_of
from vlprompt.learner.method import Method
from vlprompt.learner.names import nearest_names
from vlprompt.learner.objectives import Batch, Outputs, Templates
from vlprompt.learner.teacher import Teacher
from vlprompt.learner.unit import unit


class Road(Method):
    """From a batch to image features, class features and logits, by what a method fills in."""

    ensemble: Ensemble | None
    second_head: SecondHead | None
    teacher: Teacher
    templates: tuple[str, ...]
    calibration: Calibration | None  # what held-out images said of its probabilities
    _cached: tuple[list[Tensor], Tensor] | None  # the state that gave these class features

    def forward(self, batch: Batch | Tensor) -> Outputs | Tensor:
        """Score a batch.

        Args:
            batch: ``image`` (B, 3, H, W) or, where images are cacheable, ``image_features`` (B, D) of its ``tower``;
                or, as a short form that returns the logits (B, C) alone, images.
        """
        found = self.outputs(self.encoded(batch), self.frozen_image_features(batch))
        return found.logits if isinstance(batch, Tensor) else found

    def encoded(self, batch: Batch | Tensor) -> Tensor:
        """Features of a batch, or of images (B, 3, H, W), as ``encode_images`` gives them: what ``outputs`` takes."""
        seen = cast(Batch, as_batch(batch, self.facts, self.clip, self.takes_features))
        cached = seen.get("image_features") if self.takes_features else None
        return self.encode_images(seen) if cached is None else cached.to(self.clip.device)

    def image_features(self, batch: Batch | Tensor) -> Tensor:
        """Normalised features (B, D) of a batch, or of images (B, 3, H, W)."""
        return first_kind(F.normalize(self.encoded(batch), dim=-1))

    def frozen_image_features(self, batch: Batch | Tensor) -> Tensor | None:
        """The frozen tower's normalised features (B, D), where an ensemble asks for them beside other ones."""
        if self.ensemble is None or self.training or self.facts.cacheable_images:
            return None
        images = batch if isinstance(batch, Tensor) else batch.get("image")
        if images is None:  # but features of a tower of its own
            return None
        return F.normalize(self.clip.encode_image(images.to(self.clip.device)), dim=-1)

    def text_features(self, v: Tensor | None = None) -> Tensor:
        """Normalised class features (C, D), or (B, C, D) for normalised image features v (B, D)."""
        return unit(self.encode_text(v))

    def outputs(self, image_features: Tensor, frozen: Tensor | None = None, learning: bool | None = None) -> Outputs:
        """Score the learner's own image features.

        Args:
            image_features: as ``encoded`` gives them. Normalised ones do as well, but to a second head, which sees
                their lengths.
            frozen: as ``frozen_image_features`` gives them.
            learning: whether for a loss, which asks for parts before they are fused; None says by the mode.
        """
        x, learning = image_features.to(self.clip.device), self.training if learning is None else learning
        if self.facts.classifier == "per_image":
            found = self._outputs_per_image(x, learning)
        elif learning and self.second_head is not None:
            raw = self.encode_text()
            found = replace(self.scored(x, F.normalize(raw, dim=-1), learning), raw_text=raw)
        else:
            found = self.scored(x, self.class_features(), learning)
        return self._asked(replace(found, logits=self.ensembled(found.logits, found.image_features, frozen)))

    def scored(self, x: Tensor, t: Tensor, learning: bool = False) -> Outputs:
        """Score image features x, as ``encoded`` gives them, with class features t, as ``text_features`` does."""
        v = F.normalize(x, dim=-1)
        parts = self.parts(v, t)
        if self.second_head is not None and not learning and self.familiar != "new":
            parts[self.second_head.part] = self.second_head(first_kind(x))[:, self._rows]
        fuse = self.fuse if self.second_head is None else self.second_head.fuse
        logits = next(iter(parts.values())) if learning or len(parts) == 1 else fuse(parts)
        return Outputs(first_kind(v), t, logits, parts, first_kind(x))

    @cached_property
    def _rows(self) -> list[int] | slice:
        """The second head's rows of the classes that are scored."""
        if self.learnt_names == self.trained_names:
            return slice(None)
        return rows_of(self.class_names, self.trained_names, self.places)

    def ensembled(self, logits: Tensor, v: Tensor, frozen: Tensor | None = None) -> Tensor:
        """Logits (B, C) with an ensemble's part of the frozen model, but while the learner is trained.

        Args:
            logits: the learner's own.
            v, frozen: normalised, as for ``outputs``.
        """
        if self.ensemble is None or self.training:
            return logits
        if frozen is None and not self.facts.cacheable_images:
            raise VlpromptError(
                f"ensemble={self.config.ensemble} needs images, since {self.method} with these settings has image "
                "features of its own, from which the frozen model's do not follow"
            )
        seen = v if frozen is None else frozen
        return self.ensemble.logits(logits, self.clip.similarity(seen, self.frozen_text()))

    def classify(self, image_features: Tensor) -> Tensor:
        """Logits (B, C) of the learner's own image features (B, D), normalised or not, but for a second head."""
        return self.outputs(check_features(image_features, self.feature_width)).logits

    @property
    def temperature(self) -> float:
        """What its logits are divided by before they become probabilities; 1 unless it was fitted."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (B, C) of its logits, at its temperature: what predictions say."""
        return (logits / self.temperature).softmax(dim=-1)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Logits (B, C) of a test batch; a method that learns from the batch itself replaces it."""
        outputs: Outputs = self(batch)
        return outputs.logits

    @torch.no_grad()
    def predict_all(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Logits of a whole test set, in parts (B, C) in the order of its images; batches carry no labels.

        Batch by batch as they come, so that any number passes; or, of a learner that predicts ``jointly``, all in one
        part (N, C), for which the features of all are held. A method that predicts ``online`` replaces this, and
        begins anew with each call.
        """
        if self.facts.predicts != "jointly":
            yield from map(self.predict, batches)
        elif seen := [self.encoded(batch) for batch in batches]:
            yield self.outputs(torch.cat(seen)).logits

    def _outputs_per_image(self, x: Tensor, learning: bool) -> Outputs:
        """Score each image against class features of its own, ``image_chunk`` images at a time.

        A training step recomputes each chunk for its gradient; evaluation keeps one chunk's class features at a time,
        and returns none of them. What all images share is computed before.
        """
        chunks = x.split(getattr(self.config, "image_chunk", None) or len(x) or 1)
        own = self.text_encoder() if self.second_head is None else self.encode_text
        if len(chunks) == 1 or torch.is_grad_enabled() or learning:  # a loss may ask for all class features
            encode = own if len(chunks) == 1 else _recomputed(own)
            t = torch.cat([encode(F.normalize(chunk, dim=-1)) for chunk in chunks])  # (B, C, D)
            if self.second_head is None:
                return self.scored(x, t, learning)
            return replace(self.scored(x, F.normalize(t, dim=-1), learning), raw_text=t)
        encode = own if self.second_head is None else self.text_features
        found = [self.scored(chunk, encode(F.normalize(chunk, dim=-1))) for chunk in chunks]
        parts = {name: torch.cat([each.parts[name] for each in found]) for name in found[0].parts}
        features, logits = torch.cat([o.image_features for o in found]), torch.cat([o.logits for o in found])
        return Outputs(features, torch.empty(0), logits, parts, x)

    def text_encoder(self) -> Callable[[Tensor], Tensor]:
        """``text_features`` of images, for all chunks of a batch; a method computes here what its images share."""
        _, owners = spoken(self.learnt_names)
        if owners is None or self.config.names_by == "mean":
            return self.text_features
        if self.facts_of(self.config).classifier == "per_image":
            return lambda v: nearest_names(self.text_features(v), v, owners)
        shared = self._text_features()  # (M, D)
        return lambda v: nearest_names(shared, v, owners)

    def linear(self) -> tuple[Tensor, Tensor] | None:
        """``linear_head`` of what is scored with, an ensemble's if there is one; None if no linear map gives it."""
        if self.facts.classifier == "per_image" or (self.facts.parts and self.familiar != "new"):
            return None
        own = self.linear_head(self.class_features())
        if own is None:
            return None
        if self.ensemble is not None:
            if not self.facts.cacheable_images:  # the frozen model looks at other features
                return None
            weight = self.clip.logit_scale * self.frozen_text()
            bias = weight.new_full((len(weight),), self.clip.logit_bias)
            own = self.ensemble.logits(own[0], weight), self.ensemble.logits(own[1], bias)
        return self.of_scored(own[0], dim=0), self.of_scored(own[1], dim=0)

    def class_features(self) -> Tensor:
        """What a shared classifier scores with: ``text_features``, or an ensemble of them but in training.

        Those of all classes that it learnt, where it is bound to them and scores a part. Computed once while nothing is
        learnt and no gradient is asked for.
        """
        if self.training:
            return self.text_features()
        t = self._text_features()
        return t if self.ensemble is None else self.ensemble.class_features(t, self.frozen_text())

    def _text_features(self) -> Tensor:
        """``text_features``, computed once while no gradient is asked for."""
        return self.while_unchanged(self.text_features)

    def while_unchanged(self, compute: Callable[[], Tensor]) -> Tensor:
        """What one function of the learnables alone gives, computed once while no gradient is asked for."""
        if torch.is_grad_enabled():
            return compute()
        # compared by value: writes through .data leave no trace, and learnt numbers are few
        state = [*self.parameters(), *self.buffers()]
        if self._cached is None or not all(map(_equal, self._cached[0], state)):
            self._cached = ([tensor.detach().clone() for tensor in state], compute())
        return self._cached[1]

    def forget(self) -> None:
        """Compute class features anew when they are asked for: something that they follow from has changed."""
        self._cached = None

    @property
    def takes_features(self) -> bool:
        """Whether a batch may hold features of its tower in place of images."""
        return self.facts.cacheable_images or self.tower is not self.clip

    def frozen_text(
        self, templates: Templates = None, normalise_first: bool = True, normalise_last: bool = True
    ) -> Tensor:
        """The frozen model's normalised class features (C, D) over templates; None takes the dataset's own.

        Of all classes that a learner learnt, where it is bound to them and scores a part.

        Args:
            templates: one, a list, the name of a set or a file, as ``vlprompt.data.resolve_templates`` takes them.
            normalise_first: whether each template's feature is normalised before the mean.
            normalise_last: whether the mean is normalised.
        """
        self.teacher.refuse_file(templates)
        chosen = resolve_templates(templates, self)
        return self.teacher.text_features(self.learnt_names, chosen, normalise_first, normalise_last)

    def class_text(self, templates: Templates = None) -> Tensor:
        """``frozen_text``, for class features; of classes that go by several names the features of all (M, D) where
        images are scored with the best.
        """
        every, owners = spoken(self.learnt_names)
        if owners is None or self.config.names_by == "mean":
            return self.frozen_text(templates)
        self.teacher.refuse_file(templates)
        return self.teacher.text_features(every, resolve_templates(templates, self))

    def of_scored(self, values: Tensor, dim: int = -1) -> Tensor:
        """Values of all classes that it learnt, along an axis, of those that it scores."""
        if self.part is None:
            return values
        return values.index_select(dim, torch.tensor(self.part, device=values.device))

    def _asked(self, found: Outputs) -> Outputs:
        """Of what was computed for all classes that it learnt, those that it scores."""
        if self.part is None:
            return found
        t, parts = found.text_features, {name: self.of_scored(each) for name, each in found.parts.items()}
        t = self.of_scored(t, dim=-2) if t.ndim > 1 else t  # of several chunks of images there is none
        return replace(found, text_features=t, logits=self.of_scored(found.logits), parts=parts)


def _recomputed(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``encode`` with activation checkpointing."""
    return lambda part: checkpoint(encode, part, use_reentrant=False)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same numbers of one type on one device."""
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
