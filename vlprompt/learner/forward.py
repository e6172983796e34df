"""From a batch to logits, the same way in training, evaluation, prediction, the estimator and exports."""

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
from vlprompt.clip.naming import names_and_owners
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


class ForwardPass(Method):
    """Computes image features, class features and logits from what a method implements."""

    ensemble: Ensemble | None
    second_head: SecondHead | None
    teacher: Teacher
    templates: tuple[str, ...]
    calibration: Calibration | None  # what held-out images said of its probabilities
    _cached: tuple[list[Tensor], Tensor] | None  # the state that gave these class features

    def forward(self, batch: Batch | Tensor) -> Outputs | Tensor:
        """Score a batch.

        Args:
            batch: with ``image`` (B, 3, H, W) or, if images are cacheable, ``image_features`` (B, D) of its ``tower``.
                Images alone are accepted too; then the logits (B, C) alone are returned.
        """
        found = self.outputs(self.encoded(batch), self.frozen_image_features(batch))
        return found.logits if isinstance(batch, Tensor) else found

    def encoded(self, batch: Batch | Tensor) -> Tensor:
        """Features of a batch, or of images (B, 3, H, W), as from ``encode_images``: the input of ``outputs``."""
        seen = cast(Batch, as_batch(batch, self.facts, self.clip, self.takes_features))
        cached = seen.get("image_features") if self.takes_features else None
        return self.encode_images(seen) if cached is None else cached.to(self.clip.device)

    def image_features(self, batch: Batch | Tensor) -> Tensor:
        """Normalised features (B, D) of a batch, or of images (B, 3, H, W)."""
        return first_kind(F.normalize(self.encoded(batch), dim=-1))

    def frozen_image_features(self, batch: Batch | Tensor) -> Tensor | None:
        """The frozen tower's normalised features (B, D), if an ensemble needs them in addition to the learner's."""
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
        """Score image features of the learner.

        Args:
            image_features: as returned by ``encoded``. They may be normalised, unless a second head needs their
                lengths.
            frozen: as returned by ``frozen_image_features``.
            learning: whether for a loss, which needs the parts before they are combined; None goes by the training
                mode.
        """
        x, learning = image_features.to(self.clip.device), self.training if learning is None else learning
        if self.facts.classifier == "per_image":
            found = self._outputs_per_image(x, learning)
        elif learning and self.second_head is not None:
            raw = self.encode_text()
            found = replace(self.scored(x, F.normalize(raw, dim=-1), learning), raw_text=raw)
        else:
            found = self.scored(x, self.class_features(), learning)
        return self._restricted(replace(found, logits=self.in_ensemble(found.logits, found.image_features, frozen)))

    def scored(self, x: Tensor, t: Tensor, learning: bool = False) -> Outputs:
        """Score image features x (as from ``encoded``) against class features t (as from ``text_features``)."""
        v = F.normalize(x, dim=-1)
        parts = self.parts(v, t)
        if self.second_head is not None and not learning and self.familiar != "new":
            parts[self.second_head.part] = self.second_head(first_kind(x))[:, self._rows]
        fuse = self.fuse if self.second_head is None else self.second_head.fuse
        logits = next(iter(parts.values())) if learning or len(parts) == 1 else fuse(parts)
        return Outputs(first_kind(v), t, logits, parts, first_kind(x))

    @cached_property
    def _rows(self) -> list[int] | slice:
        """The second head's rows for the classes that are scored."""
        if self.learnt_names == self.trained_names:
            return slice(None)
        return rows_of(self.class_names, self.trained_names, self.places)

    def in_ensemble(self, logits: Tensor, v: Tensor, frozen: Tensor | None = None) -> Tensor:
        """Logits (B, C) combined with the frozen model's in an ensemble, except in training.

        Args:
            logits: the learner's own.
            v, frozen: normalised, as for ``outputs``.
        """
        if self.ensemble is None or self.training:
            return logits
        if frozen is None and not self.facts.cacheable_images:
            raise VlpromptError(
                f"ensemble={self.config.ensemble} needs images: {self.method} with these settings has its own image "
                "features, from which the frozen model's cannot be computed"
            )
        seen = v if frozen is None else frozen
        return self.ensemble.logits(logits, self.clip.similarity(seen, self.frozen_text()))

    def classify(self, image_features: Tensor) -> Tensor:
        """Logits (B, C) of the learner's image features (B, D), which may be normalised unless it has a second head."""
        return self.outputs(check_features(image_features, self.feature_width)).logits

    @property
    def temperature(self) -> float:
        """Divisor of the logits before the softmax; 1 unless it was fitted."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (B, C) of logits, at the learner's temperature."""
        return (logits / self.temperature).softmax(dim=-1)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Logits (B, C) of a test batch; methods that learn from the batch itself override this."""
        outputs: Outputs = self(batch)
        return outputs.logits

    @torch.no_grad()
    def predict_all(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Logits of a whole test set, in parts (B, C) in the order of its images; batches have no labels.

        Batch by batch, so that any number of images fits in memory; a learner that predicts ``jointly`` keeps the
        features of all images and yields one part (N, C). Methods that predict ``online`` override this, and start
        afresh with each call.
        """
        if self.facts.predicts != "jointly":
            yield from map(self.predict, batches)
        elif seen := [self.encoded(batch) for batch in batches]:
            yield self.outputs(torch.cat(seen)).logits

    def _outputs_per_image(self, x: Tensor, learning: bool) -> Outputs:
        """Score each image against its own class features, ``image_chunk`` images at a time.

        A training step recomputes each chunk for its gradient; evaluation keeps the class features of one chunk at a
        time and returns none of them. What all images share is computed once beforehand.
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
        """``text_features`` as a function of v, for all chunks of a batch; methods precompute here what is shared."""
        _, owners = names_and_owners(self.learnt_names)
        if owners is None or self.config.names_by == "mean":
            return self.text_features
        if self.facts_of(self.config).classifier == "per_image":
            return lambda v: nearest_names(self.text_features(v), v, owners)
        shared = self._text_features()  # (M, D)
        return lambda v: nearest_names(shared, v, owners)

    def linear(self) -> tuple[Tensor, Tensor] | None:
        """``linear_head`` of what is scored with, including an ensemble; None if the classifier is not linear."""
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
        return self.select_scored(own[0], dim=0), self.select_scored(own[1], dim=0)

    def classifier_matrix(self) -> Tensor:
        """The class features (C, D) that the learner scores with, as a plain tensor, for users of the backbone.

        Rows have unit length if the method's do. ProDA's are means over prompts and shorter; normalising them would
        change its predictions.

        Raises:
            VlpromptError: class features depend on the image, or logits are more than similarities.
        """
        if self.facts.classifier == "per_image":
            raise VlpromptError(
                f"{self.method}'s class features depend on each image, so it has no (C, D) classifier matrix"
            )
        if self.facts.head and not (self.facts.parts and self.familiar == "new"):
            raise VlpromptError(
                f"{self.method} scores with more than class features, so it has no (C, D) classifier matrix"
            )
        with torch.no_grad():
            return self.select_scored(self.class_features(), dim=0).clone()

    def class_features(self) -> Tensor:
        """The class features of a shared classifier, including an ensemble's except in training.

        If the learner is bound to its classes and scores some of them, those of all. Cached while nothing is trained
        and no gradient is needed.
        """
        if self.training:
            return self.text_features()
        t = self._text_features()
        return t if self.ensemble is None else self.ensemble.class_features(t, self.frozen_text())

    def _text_features(self) -> Tensor:
        """``text_features``, cached while no gradient is needed."""
        return self.cached_while_unchanged(self.text_features)

    def cached_while_unchanged(self, compute: Callable[[], Tensor]) -> Tensor:
        """The value of a function that depends on the learnables alone, cached while no gradient is needed."""
        if torch.is_grad_enabled():
            return compute()
        # compared by value: writes through .data leave no trace, and learnt numbers are few
        state = [*self.parameters(), *self.buffers()]
        if self._cached is None or not all(map(_equal, self._cached[0], state)):
            self._cached = ([tensor.detach().clone() for tensor in state], compute())
        return self._cached[1]

    def clear_cache(self) -> None:
        """Drop cached class features, after something that they depend on has changed."""
        self._cached = None

    @property
    def takes_features(self) -> bool:
        """Whether a batch may contain features of its tower instead of images."""
        return self.facts.cacheable_images or self.tower is not self.clip

    def frozen_text(
        self, templates: Templates = None, normalise_first: bool = True, normalise_last: bool = True
    ) -> Tensor:
        """The frozen model's normalised class features (C, D), averaged over templates; None uses the dataset's.

        If the learner is bound to its classes and scores some of them, those of all.

        Args:
            templates: one, a list, the name of a set or a file, as for ``vlprompt.data.resolve_templates``.
            normalise_first: whether each template's feature is normalised before averaging.
            normalise_last: whether the mean is normalised.
        """
        self.teacher.refuse_file(templates)
        chosen = resolve_templates(templates, self)
        return self.teacher.text_features(self.learnt_names, chosen, normalise_first, normalise_last)

    def class_text(self, templates: Templates = None) -> Tensor:
        """``frozen_text``; of all names (M, D) if classes have several and images are scored with the best of them."""
        every, owners = names_and_owners(self.learnt_names)
        if owners is None or self.config.names_by == "mean":
            return self.frozen_text(templates)
        self.teacher.refuse_file(templates)
        return self.teacher.text_features(every, resolve_templates(templates, self))

    def select_scored(self, values: Tensor, dim: int = -1) -> Tensor:
        """Select, along an axis over all classes it learnt, the classes that it scores."""
        if self.subset is None:
            return values
        return values.index_select(dim, torch.tensor(self.subset, device=values.device))

    def _restricted(self, found: Outputs) -> Outputs:
        """Restrict what was computed for all classes it learnt to those that it scores."""
        if self.subset is None:
            return found
        t, parts = found.text_features, {name: self.select_scored(each) for name, each in found.parts.items()}
        t = self.select_scored(t, dim=-2) if t.ndim > 1 else t  # of several chunks of images there is none
        return replace(found, text_features=t, logits=self.select_scored(found.logits), parts=parts)


def _recomputed(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``encode`` with activation checkpointing."""
    return lambda part: checkpoint(encode, part, use_reentrant=False)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same numbers of one type on one device."""
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
