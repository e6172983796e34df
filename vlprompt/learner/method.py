"""``Method``: what a method implements, with the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlprompt.clip.edits import Edit
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data.generated import GeneratedViews
from vlprompt.data.transforms import TestViews
from vlprompt.learner.anchors import DescriptionAnchor, LogitObjective
from vlprompt.learner.constraints import Constraint
from vlprompt.learner.facts import Facts, Familiar
from vlprompt.learner.initialization import Length
from vlprompt.learner.learning import Feed, ParameterGroup, Train, groups_of
from vlprompt.learner.objectives import Batch, Objective
from vlprompt.learner.teacher import SavedTeacher


class Method(nn.Module):
    """The part of ``PromptLearner`` that methods implement; only ``setup`` and ``encode_text`` have no default."""

    method: ClassVar[str] = ""
    registered: ClassVar[Facts]
    published: ClassVar[Mapping[str, str]] = {}  # the authors' names, see ``vlprompt.learner.publishing``
    own_state: ClassVar[tuple[str, ...]] = ()  # buffers of one training or its classes, which no start brings
    by_name: ClassVar[bool] = True  # whether class features are those of names, of which a class may have several

    @dataclass
    class Config:
        """Settings of every method.

        Attributes:
            objective: the terms of the loss, see ``objectives``.
            gradient_rule: how the gradient of the loss is modified before the optimizer step, see ``gradients``.
            aggregator: how weights are aggregated over epochs, see ``aggregation``; None uses the last epoch's.
            init_from: a saved learner, the folder of a run or a ``.safetensors`` file with learnables to start from.
            init_length: length of the prompts if init_from has others; same keeps theirs, fit truncates or repeats
                them.
            text_chunk: classes encoded at a time, with activation checkpointing; auto takes as many as fit in memory.
                None encodes all classes at once, or as many as fit in memory where no gradient is needed.
            descriptions: a JSON file ``{class: [sentences]}``, for ``description_anchor`` and for methods that use such
                sentences instead of templates; refused if nothing would read it.
            teacher: a saved learner, the folder of a run or ``hf://user/name`` whose logits ``logit_kl`` and
                ``distillation`` use instead of the frozen model's; refused if nothing would use it.
            names: more names for classes, {class: [names]}, a JSON file, or card for those on the dataset's card.
            names_by: how several names of a class are combined, mean averages their features, best scores each image
                with the most similar.
            context: how the learnt words are parameterised, full, lowrank(rank=4), factored(rank=4), multispace or
                reparam, see ``contexts``.
            after_step: a constraint on the learnt words that is applied after each step, such as project(eps=0.1), see
                ``constraints``.
            edits: what is learnt inside the towers in addition, such as lora(rank=4) or layer_norms(tower=vision), see
                ``editing``.
            ensemble: ensemble with the frozen model at test time, logits(weight=0.5) or weights(weight=0.5), see
                ``ensembling``; training is not affected.
            head: a second classifier besides the similarities, for the classes it is trained on, dept or
                dept(weight=0.7, lr_scale=6.5), see ``fusion``.
        """

        objective: list[str] = field(default_factory=lambda: ["ce"])
        gradient_rule: str | None = None
        aggregator: str | None = None
        init_from: str | None = None
        init_length: Length = "same"
        text_chunk: int | Literal["auto"] | None = None
        descriptions: str | None = None
        teacher: str | None = None
        names: dict[str, list[str]] | str | None = None
        names_by: Literal["mean", "best"] = "mean"
        context: str = "full"
        after_step: str | None = None
        edits: list[str] = field(default_factory=list)
        ensemble: str | None = None
        head: str | None = None

    clip: FrozenCLIP
    config: Config
    facts: Facts
    class_names: tuple[str, ...]  # the classes that it scores
    subset: tuple[int, ...] | None  # their positions among the trained classes, if it is bound to those and scores some
    places: tuple[int, ...]  # their positions among the trained classes, if given; else empty
    edits: list[Edit]
    constraint: Constraint | None
    built_on: SavedTeacher | None  # the saved learner that this one builds on, see ``builds_on``
    taught_by: SavedTeacher | None  # see ``vlprompt.saving.teacher``
    trained_names: tuple[str, ...]
    familiar: Familiar  # whether it was trained on the classes that it scores, for ``fuse``

    @property
    def beneath(self) -> SavedTeacher | None:
        """``built_on``, under the name that results have for it."""
        return self.built_on

    @property
    def tower(self) -> FrozenCLIP:
        """The model that computes its image features: the frozen model, or the saved learner it builds on."""
        return self.clip if self.built_on is None else self.built_on.tower(self.learnt_names)

    @property
    def learnt_names(self) -> tuple[str, ...]:
        """The classes that it computes features for: all of those it is bound to, even if it scores only some."""
        return self.class_names if self.subset is None else self.trained_names

    @property
    def feature_width(self) -> int:
        """Width D of the features that it scores with: the frozen model's, unless a method projects them."""
        return self.clip.embed_dim

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The learnable tensors; empty for training-free methods."""
        return [p for p in self.parameters() if p.requires_grad]

    def setup(self) -> None:
        """Create the learnable tensors: fp32, sizes read from ``self.clip``."""
        raise NotImplementedError

    def prepare_classes(self) -> None:
        """Compute what depends on ``self.class_names``: token ids, fixed features. Called whenever they change."""

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D), not normalised; (B, C, D) if they depend on the normalised image features v (B, D)."""
        raise NotImplementedError

    def encode_images(self, batch: Batch) -> Tensor:
        """Features (B, D) of a batch's images, or (B, K, D) for ``parts``, not normalised.

        By default those of the tower, with the learner's edits.
        """
        tower = self.tower
        if tower is self.clip and any(edit.tower == "vision" for edit in self.edits):
            return self.clip.prompted_image_features(batch["image"], {}, edits=self.edits)
        return tower.encode_image(batch["image"])

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C) from image features v (B, D) and class features t, as returned by ``text_features``."""
        return self.clip.similarity(v, t)

    def parts(self, v: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Named parts of the logits, (B, C) each; a single one unless ``parts`` of the facts names more, in that order.

        Args:
            v: normalised image features (B, D); (B, K, D) if ``encode_images`` returns K per image, of which the first
                is compared with class features. Callers that have only the first pass (B, D): then other parts may be
                missing, but not the first.
            t: class features, as returned by ``text_features``.
        """
        return {"similarity": self.score(v, t)}

    def fuse(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Combine several parts into logits (B, C) at test time; ``familiar`` says if the classes were trained on.

        By default the first part alone.
        """
        return next(iter(parts.values()))

    def linear_head(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """Weights (C, D) and biases (C,) such that v·weightsᵀ + biases are the logits, for exports; None if not linear.

        Args:
            t: class features, as returned by ``text_features``.
        """
        own = self.facts_of(self.config)  # without an ensemble
        if own.head or own.classifier == "per_image":
            return None
        return self.logit_scale * t, t.new_full((len(t),), self.clip.logit_bias)

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine similarities in the logits: the frozen model's, unless a method learns its own."""
        return self.clip.logit_scale

    def learn(self, feed: Feed, train: Train) -> None:
        """Learn from a feed: by default in the training loop, on its labelled images.

        If no objective uses labels and the feed has a pool, on the pool. Tensors that are fitted rather than trained
        must be buffers, so that they are saved, checked and loaded.
        """
        pool = self.facts.labels == "none" and feed.count("pool") > 0
        train(self, feed.batches("pool" if pool else "labelled"))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Learnables with their optimizer settings; by default one group, and one per ``lr_scale`` of a module."""
        return groups_of(self)

    def reserve(self, shapes: Mapping[str, torch.Size]) -> None:
        """Create buffers whose sizes depend on the training data, so that saved tensors can be loaded into them."""

    def after_step(self) -> None:
        """Called after each optimizer step; by default applies the constraint in the setting of that name."""
        if self.constraint is not None:
            self.constraint(self)

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Called after each epoch (0-based) of ``epochs``, for a method's own schedules."""

    @classmethod
    def facts_of(cls, config: Any) -> Facts:
        """Facts of a learner with these settings (a ``Config`` of its class); by default those registered."""
        return cls.registered

    @classmethod
    def builds_on(cls, config: Any) -> str | None:
        """The saved learner (a folder, of a run too, or ``hf://user/name``) whose features replace the frozen model's.

        Its image features are used as well if it changes the image tower. None uses the frozen model.
        """
        return None

    @classmethod
    def facts_on(cls, built_on: SavedTeacher, facts: Facts) -> Facts:
        """Facts of a learner built on a saved one; methods raise ``VlpromptError`` for one that they cannot use."""
        cacheable = facts.cacheable_images and not built_on.needs_images
        new = facts.new_classes and built_on.new_classes
        return replace(facts, cacheable_images=cacheable, new_classes=new)

    @classmethod
    def trained_by_loop(cls, facts: Facts) -> bool:
        """Whether a learner with these facts is trained by the loop, so that its objectives and the like have a use."""
        return bool(facts.trains) and "views" not in facts.inputs

    @classmethod
    def lacks(cls, config: Any) -> str:
        """What is missing for a run with these settings, as the end of a sentence; empty if nothing."""
        return ""

    @classmethod
    def reads_descriptions(cls, objectives: Sequence[Objective]) -> bool:
        """Whether descriptions of classes would be used; by default, by an objective."""
        return any(isinstance(o, DescriptionAnchor) and o.descriptions is None for o in objectives)

    @classmethod
    def asks_teacher(cls, objectives: Sequence[Objective]) -> bool:
        """Whether a teacher would be used; by default, by an objective."""
        return any(isinstance(o, LogitObjective) for o in objectives)

    @property
    def follows_templates(self) -> bool:
        """Whether its class texts are a dataset's templates, so that a test on another dataset takes that one's."""
        return False

    @property
    def n_views(self) -> int | None:
        """Number of views of a test image, according to the settings; None if only the evaluation crop is used."""
        views: int | None = getattr(self.config, "n_views", None) if "views" in self.facts.inputs else None
        return views

    @property
    def test_views(self) -> TestViews | None:
        """Transform that makes the views of a test image, with AugMix if ``augmix`` is set; None without views."""
        if self.n_views is None:
            return None
        return TestViews(self.tower, self.n_views, augmix=getattr(self.config, "augmix", False))

    @property
    def n_draws(self) -> int:
        """Number of additional random draws to score a test with, if predictions are random; else 0."""
        return 0

    def draw(self, turn: int) -> None:
        """Predict with another random draw from now on; 0 is the learner's own."""

    @property
    def generated_views(self) -> GeneratedViews | None:
        """Generated views of test images, made in advance and appended to the others; None if not used."""
        return None
