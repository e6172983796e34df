"""``PromptLearner``, the base class of all methods: adds creation, losses and saved state to ``ScoredClasses``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlprompt.base.parts import parse_part
from vlprompt.base.tensor_checks import check_batch
from vlprompt.base.wiring import wired
from vlprompt.clip.edits import Edit
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.errors import VlpromptError
from vlprompt.learner import publishing
from vlprompt.learner.aggregation import AGGREGATORS
from vlprompt.learner.anchors import ImageAnchor, LogitObjective
from vlprompt.learner.attributes import facts_with_attributes
from vlprompt.learner.constraints import make_constraint
from vlprompt.learner.contexts import facts_with_context, parameterise
from vlprompt.learner.editing import edited_facts, make_edits
from vlprompt.learner.ensembling import make_ensemble
from vlprompt.learner.facts import Facts, Familiar
from vlprompt.learner.fusion import facts_with_head, parse_head
from vlprompt.learner.gradients import GRADIENT_RULES, facts_with_rule
from vlprompt.learner.initialization import initialize_from
from vlprompt.learner.method import Method
from vlprompt.learner.names import facts_with_names, named
from vlprompt.learner.objectives import Batch, competing, labels_of, parse_objectives, weighs
from vlprompt.learner.scored_classes import ScoredClasses, checked_names
from vlprompt.learner.teacher import SavedTeacher, Teacher


class PromptLearner(ScoredClasses):
    """A small learnable part added to a frozen CLIP.

    Methods implement ``setup`` and ``encode_text``, and override whatever else of ``Method`` they do differently.
    Parameters are fp32. The ``state_dict`` contains what was learnt or fitted and nothing that depends on the class
    list, unless the method is bound to its classes, which its facts then say.

    Args:
        clip: the frozen model.
        class_names: C names in natural language; underscores become spaces in prompts.
        config: the method's settings.
        templates: the dataset's hand-written templates, for teachers and zero-shot classifiers.
        seed: of the initial weights.
        on: the saved learner that it builds on, see ``builds_on``.
        taught_by: the saved learner that teaches it; not needed to load a trained student.

    Attributes:
        facts: what other code may know about this learner, see ``vlprompt.learner.facts``.
        edits: changes inside the towers (``vlprompt.clip.edits``), which methods pass to every encoding call.
        trained_names: the classes that it is trained on, whatever others it scores later.
        familiar: whether it was trained on the classes that it scores; decided by names unless the evaluator sets it.
        learnt_on: datasets that it was trained on, if that is known of a saved learner.
        calibration: temperature and threshold found on held-out images; None before, and after it is trained again.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        config: Method.Config | None = None,
        templates: Sequence[str] = (DEFAULT_TEMPLATE,),
        seed: int = 1,
        on: SavedTeacher | None = None,
        taught_by: SavedTeacher | None = None,
    ):
        super().__init__()
        self.clip = clip
        self.config = config or self.Config()
        self.built_on = on
        self.set_ensemble(self.config.ensemble)
        self.templates = tuple(templates)
        self.teacher = Teacher(clip)
        self.taught_by = taught_by
        self.taught_by_identity = None if taught_by is None else taught_by.identity  # kept where the teacher is not
        self.objectives = parse_objectives(self.config.objective)
        self.constraint = make_constraint(self.config.after_step)
        rule, aggregator = self.config.gradient_rule, self.config.aggregator
        self.gradient_rule = None if rule is None else parse_part(rule, GRADIENT_RULES)
        self.aggregator = None if aggregator is None else parse_part(aggregator, AGGREGATORS)
        self.last_state: dict[str, Tensor] | None = None  # the last epoch's weights, if others replaced them
        self.batch_accuracy: Tensor | None = None  # accuracy on the last training batch, see ``loss``
        self._cached: tuple[list[Tensor], Tensor] | None = None  # class features, and the state behind them
        self.class_names = self.trained_names = named(self.config, checked_names(class_names))
        self.subset: tuple[int, ...] | None = None
        self.places: tuple[int, ...] = ()
        self.familiar: Familiar = "trained"
        self.learnt_on: tuple[str, ...] = ()
        if isinstance(self.config.text_chunk, int) and self.config.text_chunk < 1:
            raise VlpromptError(f"text_chunk must be at least 1 class, not {self.config.text_chunk}")
        self.edits: list[Edit] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._create_learnables()
        self.to(clip.device)
        self.start: dict[str, Any] | None = None  # where its initial learnables came from
        if self.config.init_from is not None:
            self.start = initialize_from(self, self.config.init_from, self.config.init_length)
        self._check_parts()
        self.prepare_classes()

    def _create_learnables(self) -> None:
        """Create the method's learnables, then those of the settings ``context``, ``edits`` and ``head``."""
        self.setup()
        self._check_edits()
        parameterise(self, self.config.context)
        if self.config.edits:
            self.beside = nn.ModuleList(make_edits(self.config.edits, self.clip, self.edits))
            self.edits.extend(cast(Iterable[Edit], self.beside))
        self.second_head = parse_head(self.config.head)
        if self.second_head is not None:
            self.second_head.setup(self.clip.embed_dim, len(self.trained_names))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PromptLearner:
        """``to``, ``cuda``, ``half`` and the like; refused if the learner would no longer fit its frozen model.

        Raises:
            VlpromptError: its learnables would be elsewhere than the frozen model, or no longer fp32.
        """
        home = self.clip.device
        moved = fn(torch.zeros(1, dtype=torch.float32, device=home))
        if moved.device.type != home.type or moved.dtype != torch.float32:
            raise VlpromptError(
                f"a learner stays in fp32 on {home}, where its frozen model is: give load_clip another device= or "
                "precision=, and make or load the learner with that model"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @classmethod
    def facts_with(cls, config: Any, built_on: SavedTeacher | None = None) -> Facts:
        """``facts_of``, adjusted for a saved learner to build on, edits, a second head and an ensemble.

        Raises:
            VlpromptError: it cannot build on that learner, or cannot have those edits, that head or that ensemble.
        """
        own = cls._own_facts(config, built_on)
        ensemble = make_ensemble(config.ensemble, cls.method, own)
        return ensemble.narrow(own) if ensemble else own

    @classmethod
    def _own_facts(cls, config: Any, built_on: SavedTeacher | None) -> Facts:
        """``facts_with`` except for an ensemble."""
        own = cls.facts_of(config) if built_on is None else cls.facts_on(built_on, cls.facts_of(config))
        own = facts_with_attributes(config, edited_facts(cls, config, own))
        objectives = parse_objectives(config.objective)
        by_loop = bool(own.trains) and (cls.learn, cls.loss) == (PromptLearner.learn, PromptLearner.loss)
        own = replace(own, labels=labels_of(own, objectives, config.head), weighs=own.weighs or by_loop)
        own = replace(own, weighs=weighs(own, objectives, config.head))
        own = facts_with_names(cls, config, own, PromptLearner)
        own = facts_with_rule(config, facts_with_context(config, own))
        return facts_with_head(cls, config, own, PromptLearner)

    def set_ensemble(self, setting: str | None) -> None:
        """Change the ensemble with the frozen model, such as ``logits(weight=0.3)``; None removes it.

        Raises:
            VlpromptError: the ensemble is unknown, or this learner cannot have it.
        """
        config = replace(self.config, ensemble=setting)
        self.facts = self.facts_with(config, self.built_on)
        self.ensemble = make_ensemble(setting, self.method, self._own_facts(config, self.built_on))
        self.config = config
        self.calibration = None  # the previous one was for other logits

    # Learning

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named losses of a batch: each objective's unweighted value, and ``loss``, their weighted sum.

        Args:
            batch: as for ``forward``, with ``label`` (B,) and whatever other keys the objectives use.
        """
        self.refuse_subset()
        checked_batch = cast(Batch, check_batch(batch, len(self.class_names), self.facts))
        batch = _moved(checked_batch, self.clip.device)
        outputs = self.outputs(self.encoded(batch), self.frozen_image_features(batch), learning=True)
        self.batch_accuracy = _accuracy(outputs.logits, batch)
        parts = {o.name: o(self, outputs, batch) for o in self.objectives}
        weights = {o.name: o.weight for o in self.objectives}
        if self.second_head is not None:
            self.second_head.join(parts, weights, outputs, batch["label"])
        total = sum(weight * parts[name] for name, weight in weights.items() if weight)
        return {"loss": cast(Tensor, total), **parts}  # the sum is not empty: at least one part has a weight

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Compute the parameters' gradients from the losses of a batch, with the gradient rule if there is one.

        Raises:
            VlpromptError: the loss does not depend on any learnable tensor.
        """
        if not losses["loss"].requires_grad:
            raise VlpromptError(
                f"the loss of {self.method} depends on none of its learnable tensors, so there is nothing to train: "
                "check which of them the encoders and score use with these settings"
            )
        if self.gradient_rule is None:
            losses["loss"].backward()
        else:
            self.gradient_rule(losses, self.trainable_parameters())

    @property
    def image_keys(self) -> tuple[str, ...]:
        """Images that a training batch must contain: ``image``, ``image_strong`` if an objective uses it, ``mask``."""
        strong = any("image_strong" in o.needs for o in self.objectives)
        masks = ("mask",) if "mask" in self.facts.inputs else ()
        return (("image", "image_strong") if strong else ("image",)) + masks

    @property
    def predicts_from_images(self) -> bool:
        """Whether test batches must contain images, since features of its tower are not enough."""
        return not self.facts.cacheable_images and (self.tower is self.clip or self.ensemble is not None)

    @property
    def learns_from_images(self) -> bool:
        """Whether training batches must contain images, since features of its tower are not enough."""
        frozen = any(isinstance(o, (ImageAnchor, LogitObjective)) for o in self.objectives)  # that is asked too
        taught = self.taught_by is not None and self.taught_by.needs_images
        return not self.takes_features or taught or (frozen and self.tower is not self.clip)

    def _check_edits(self) -> None:
        """Refuse cached image features for a method that edits the image tower: its edits would never be called."""
        if self.facts.cacheable_images and any(edit.tower == "vision" for edit in self.edits):
            raise VlpromptError(
                f"{self.method} edits the image tower, so its image features cannot be cached: register it with "
                "cacheable_images=False"
            )

    def _check_parts(self) -> None:
        """Refuse objectives and rules that make no sense for this method, before any work starts."""
        reason = None if self.constraint is None else self.constraint.refuses(self)
        if reason is not None:
            who = f"{self.method} with these settings"
            raise VlpromptError(f"after_step={self.config.after_step} is not possible: {who} {reason}")
        for objective in self.objectives:
            reason = objective.refuses(self)
            if objective.needs and "mask" in self.facts.inputs:
                reason = "needs a second view of each image, and the mask of a region belongs to one view"
            if reason:
                raise VlpromptError(f"objective {objective.name} {reason}")
        names = [o.name for o in self.objectives]
        rule = self.gradient_rule
        reference = getattr(rule, "reference", None)
        if rule is not None and reference is not None and reference not in names:
            raise VlpromptError(f"{rule.name} needs {reference} among the objectives: add {reference}(weight=0)")

    # State

    def extra_repr(self) -> str:
        """The method, the number of classes, and the learner it builds on, for ``repr``."""
        on = f", on {self.built_on.learner.method}" if self.built_on else ""
        return f"{self.method}, {len(self.class_names)} classes{on}"

    def load_learnables(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load a state dict; raises ``VlpromptError`` naming the first tensor whose name or shape does not fit."""
        self.check_shapes({key: tensor.shape for key, tensor in state.items()}, source)
        self.load_state_dict(state)

    def check_shapes(self, shapes: Mapping[str, torch.Size], source: str) -> None:
        """Raise ``VlpromptError`` for the first tensor whose name or shape is not the learner's."""
        own = self.state_dict()
        odd = sorted(own.keys() ^ shapes.keys())
        if odd:
            raise VlpromptError(f"{source} do not fit {self.method} with these settings: see tensor {odd[0]}")
        for key, shape in shapes.items():
            if shape != own[key].shape:
                raise VlpromptError(
                    f"{source} do not fit {self.method} with these settings: {key} is {tuple(shape)}, "
                    f"{tuple(own[key].shape)} is expected"
                )

    # Shortcuts to functions of packages that build on this one

    def published_state(self) -> dict[str, Tensor]:
        """The learnables under the authors' names, see ``vlprompt.learner.publishing``."""
        return publishing.published_state(self)

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Load learnables given under the authors' names, see ``vlprompt.learner.publishing``."""
        publishing.load_published(self, tensors)

    def save_pretrained(self, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> Path:
        """Save the learner to a folder, see ``vlprompt.saving.save_learner``."""
        saved: Path = wired("save_learner")(self, path, extra)
        return saved

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Share the learner on the Hugging Face Hub, see ``vlprompt.saving.push.push_learner``."""
        address: str = wired("push_learner")(self, repo, **options)
        return address


def _moved(batch: Batch, device: torch.device) -> Batch:
    """A batch, and any batch inside it, on a device."""
    own = cast("Mapping[str, Any]", batch)  # tensors and, under ``unlabeled``, a batch
    moved = {key: _moved(cast(Batch, v), device) if isinstance(v, Mapping) else v.to(device) for key, v in own.items()}
    return cast(Batch, moved)


def _accuracy(logits: Tensor, batch: Batch) -> Tensor | None:
    """Share () of the batch's images that are classified correctly; None without labels."""
    if "label" not in batch:
        return None
    return (competing(logits.detach(), batch).argmax(dim=-1) == batch["label"]).float().mean()
