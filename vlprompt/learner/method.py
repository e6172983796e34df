"""What a method fills in, and what it is if it does not."""

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
from vlprompt.learner.constraints import Constraint
from vlprompt.learner.facts import Facts, Familiar
from vlprompt.learner.learning import Feed, ParameterGroup, Train, groups_of
from vlprompt.learner.objectives import (
    Batch,
    DescriptionAnchor,
    LogitObjective,
    Objective,
)
from vlprompt.learner.starts import Length
from vlprompt.learner.teacher import SavedTeacher


class Method(nn.Module):
    """What methods fill in of ``PromptLearner``; everything has a default but ``setup`` and ``encode_text``."""

    method: ClassVar[str] = ""
    registered: ClassVar[Facts]
    published: ClassVar[Mapping[str, str]] = {}  # the authors' names, see ``vlprompt.learner.publishing``
    own_state: ClassVar[tuple[str, ...]] = ()  # buffers of one training or its classes, which no start brings

    @dataclass
    class Config:
        """Settings of every method.

        Attributes:
            objective: the parts of the loss, see ``objectives`` beside this module.
            gradient_rule: what is handed to the optimiser instead of the loss's gradient, see ``gradients``.
            aggregator: how weights are aggregated over epochs, see ``aggregation``; None keeps the last.
            init_from: a saved learner, a run's folder or a ``.safetensors`` file whose learnables to start from.
            init_length: of its prompts, same as theirs, or fit: the first tokens of longer ones, shorter ones repeated.
            text_chunk: classes encoded at a time, with activation checkpointing; auto takes what memory does, None all,
                or what memory does where no gradient is asked for.
            descriptions: a JSON file ``{class: [sentences]}``, for ``description_anchor`` and for methods that put such
                sentences in place of templates; refused where nothing would read it.
            teacher: a saved learner, a run's folder or ``hf://user/name`` whose logits ``logit_kl`` and
                ``distillation`` take in place of the frozen model's; refused where nothing would ask it.
            names: more names of classes, {class: [names]}, a JSON file, or card for the dataset's card's.
            names_by: whether a class's feature is the mean of its names', or an image is scored with the best of them.
            context: what is trained of learnt words, full, lowrank(rank=4), factored(rank=4), multispace or reparam,
                see ``contexts``.
            after_step: what they are held to after each step, such as project(eps=0.1), see ``constraints``.
            edits: what is learnt inside the towers besides, such as lora(rank=4) or layer_norms(tower=vision), see
                ``editing``.
            ensemble: with the frozen model wherever it is tested, logits(weight=0.5) or weights(weight=0.5), see
                ``ensembling``; training is that of the learner alone.
            head: a second one beside the similarities, for the classes that it is trained on, dept or
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
    class_names: tuple[str, ...]  # that it scores
    part: tuple[int, ...] | None  # the places of those among the trained, where it is bound to them and scores some
    places: tuple[int, ...]  # of the classes that it scores among the trained, where that was told; else empty
    edits: list[Edit]
    constraint: Constraint | None
    beneath: SavedTeacher | None
    taught_by: SavedTeacher | None  # see ``vlprompt.saving.teacher``
    trained_names: tuple[str, ...]
    familiar: Familiar  # what the classes that it scores are to it, for ``fuse``

    @property
    def tower(self) -> FrozenCLIP:
        """What makes its image features: the frozen model, or the saved learner that it stands on."""
        return self.clip if self.beneath is None else self.beneath.tower(self.learnt_names)

    @property
    def learnt_names(self) -> tuple[str, ...]:
        """The classes that it computes for: all that it is bound to; the contract takes the part that it scores."""
        return self.class_names if self.part is None else self.trained_names

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
        """Compute what depends on ``self.class_names``: token ids, fixed features. Called when they change."""

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D), not normalised; (B, C, D) given normalised image features v where each has its own."""
        raise NotImplementedError

    def encode_images(self, batch: Batch) -> Tensor:
        """Features (B, D), or (B, K, D) for ``parts``, of a batch's images, not normalised.

        By default the tower's, or the edited one's.
        """
        tower = self.tower
        if tower is self.clip and any(edit.tower == "vision" for edit in self.edits):
            return self.clip.prompted_image_features(batch["image"], {}, edits=self.edits)
        return tower.encode_image(batch["image"])

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C) of image features v (B, D) and class features t as ``text_features`` gives them."""
        return self.clip.similarity(v, t)

    def parts(self, v: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Named parts of the logits (B, C); one, unless ``parts`` of the facts names more, in that order.

        Args:
            v: normalised image features (B, D); (B, K, D) where ``encode_images`` gives K of each image, the first of
                which is what stands beside class features. Whoever has that one alone gives (B, D): then some parts
                may be missing, but not the first.
            t: class features as ``text_features`` gives them.
        """
        return {"similarity": self.score(v, t)}

    def fuse(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) of the parts, where there are several and it is not trained; ``familiar`` says of what classes.

        By default the first part's.
        """
        return next(iter(parts.values()))

    def linear_head(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """Weights (C, D) and biases (C,) with which v·weightsᵀ + biases are the logits, for exports; None if none are.

        Args:
            t: class features as ``text_features`` gives them.
        """
        own = self.facts_of(self.config)  # without an ensemble
        if own.head or own.classifier == "per_image":
            return None
        return self.logit_scale * t, t.new_full((len(t),), self.clip.logit_bias)

    @property
    def logit_scale(self) -> float:
        """Scale of the cosines in its logits: the frozen model's, unless a method learns its own."""
        return self.clip.logit_scale

    def learn(self, feed: Feed, train: Train) -> None:
        """Learn from a feed: by the loop, over its labelled images, unless a method fits itself otherwise.

        Where no objective reads labels, over its pool if it has one.

        Tensors that are fitted and not trained are buffers, so that they are saved, checked and loaded.
        """
        pool = self.facts.labels == "none" and feed.count("pool") > 0
        train(self, feed.batches("pool" if pool else "labelled"))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Learnables that are optimised alike; by default all of them but those of parts with an ``lr_scale``."""
        return groups_of(self)

    def reserve(self, shapes: Mapping[str, torch.Size]) -> None:
        """Make the buffers whose sizes the data decided, so that saved tensors of these shapes can be loaded."""

    def after_step(self) -> None:
        """Called after each step of the optimiser: by default what the setting of that name says."""
        if self.constraint is not None:
            self.constraint(self)

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Called after each epoch (0-based) of ``epochs``: schedules of a method's own."""

    @classmethod
    def facts_of(cls, config: Any) -> Facts:
        """What a learner with these settings, a ``Config`` of its class, is; a method narrows what it registered."""
        return cls.registered

    @classmethod
    def stands_on(cls, config: Any) -> str | None:
        """The saved learner whose class features, and image features where they are its own, take the frozen ones'
        place: a folder, a run's or ``hf://user/name``; None for the frozen model's.
        """
        return None

    @classmethod
    def facts_on(cls, beneath: SavedTeacher, facts: Facts) -> Facts:
        """What a learner of these facts is on a saved one; a method refuses one that is of no use to it."""
        cacheable = facts.cacheable_images and not beneath.needs_images
        new = facts.new_classes and beneath.new_classes
        return replace(facts, cacheable_images=cacheable, new_classes=new)

    @classmethod
    def trained_by_loop(cls, facts: Facts) -> bool:
        """Whether a learner of these facts goes through the training loop, which its objectives and the like are of."""
        return bool(facts.trains) and "views" not in facts.inputs

    @classmethod
    def lacks(cls, config: Any) -> str:
        """What a run with these settings is short of, as the end of a sentence; empty if nothing."""
        return ""

    @classmethod
    def reads_descriptions(cls, objectives: Sequence[Objective]) -> bool:
        """Whether sentences about classes have a use: by default an objective's."""
        return any(isinstance(o, DescriptionAnchor) and o.descriptions is None for o in objectives)

    @classmethod
    def asks_teacher(cls, objectives: Sequence[Objective]) -> bool:
        """Whether a teacher of the user's has a use: by default an objective's."""
        return any(isinstance(o, LogitObjective) for o in objectives)

    @property
    def follows_templates(self) -> bool:
        """Whether its class texts are a dataset's templates, so that a test on another dataset takes that one's."""
        return False

    @property
    def n_views(self) -> int | None:
        """Views of a test image that its settings ask for; None where it sees the evaluation crop alone."""
        views: int | None = getattr(self.config, "n_views", None) if "views" in self.facts.inputs else None
        return views

    @property
    def test_views(self) -> TestViews | None:
        """Makes the views of a test image, mixed where ``augmix`` of its settings says so; None without views."""
        if self.n_views is None:
            return None
        return TestViews(self.tower, self.n_views, augmix=getattr(self.config, "augmix", False))

    @property
    def n_draws(self) -> int:
        """With how many other draws a test is scored too, where chance bears on a prediction; 0 where it does not."""
        return 0

    def draw(self, turn: int) -> None:
        """Predict with another draw of what is drawn; 0 is the learner's own."""

    @property
    def generated_views(self) -> GeneratedViews | None:
        """Views of test images that were generated beforehand and stand behind the others; None if it has no use."""
        return None
