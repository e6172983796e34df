"""PromptLearner: the contract that a method fills in, and how learners are registered and made."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from torch import Tensor, nn

from vlprompt.aggregation import AGGREGATORS
from vlprompt.clip import FrozenCLIP
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.data.templates import resolve_templates
from vlprompt.errors import VlpromptError, nearest
from vlprompt.gradients import GRADIENT_RULES
from vlprompt.objectives import Batch, Outputs, Templates, parse_objectives
from vlprompt.parts import parse_part
from vlprompt.registry import Registry
from vlprompt.schema import assign, structured, to_object
from vlprompt.teacher import Teacher

METHODS: Registry[type[PromptLearner]] = Registry("method")


class PromptLearner(nn.Module):
    """Small learnable prompts on a frozen CLIP.

    A method fills in ``setup`` and ``encode_text``, and ``encode_images`` where it prompts the image tower. Its
    parameters are fp32 and its ``state_dict`` holds them and nothing that depends on the class list, unless the method
    is bound to its classes (and then says so, see ``new_classes``).

    Args:
        clip: the frozen model.
        class_names: C natural-language names; underscores become spaces in prompts.
        config: the method's settings.
        templates: the dataset's hand-written templates, for teachers and zero-shot classifiers.
        seed: of the initial weights.
    """

    method: ClassVar[str] = ""
    facts: ClassVar[dict[str, Any]] = {}

    @dataclass
    class Config:
        """Settings of every method.

        Attributes:
            objective: the parts of the loss, see ``vlprompt.objectives``.
            gradient_rule: what is handed to the optimiser instead of the loss's gradient, see ``vlprompt.gradients``.
            aggregator: how weights are aggregated over epochs, see ``vlprompt.aggregation``; None keeps the last.
            init_from: a saved learner, a run's folder or a ``.safetensors`` file whose learnables to start from.
            text_chunk: classes encoded at a time, with activation checkpointing; None takes all at once.
        """

        objective: list[str] = field(default_factory=lambda: ["ce"])
        gradient_rule: str | None = None
        aggregator: str | None = None
        init_from: str | None = None
        text_chunk: int | None = None

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        config: Config | None = None,
        templates: Sequence[str] = (DEFAULT_TEMPLATE,),
        seed: int = 1,
    ):
        super().__init__()
        self.clip = clip
        self.config = config or self.Config()
        self.templates = tuple(templates)
        self.teacher = Teacher(clip)
        self.objectives = parse_objectives(self.config.objective)
        rule, aggregator = self.config.gradient_rule, self.config.aggregator
        self.gradient_rule = parse_part(rule, GRADIENT_RULES) if rule else None
        self.aggregator = parse_part(aggregator, AGGREGATORS) if aggregator else None
        self.last_state: dict[str, Tensor] | None = None  # the last weights, where the aggregated ones took their place
        self._cached: tuple[tuple, Tensor] | None = None
        self.class_names = _checked_names(class_names)
        if self.config.text_chunk is not None and self.config.text_chunk < 1:
            raise VlpromptError(f"text_chunk must be at least 1 class, not {self.config.text_chunk}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.setup()
        self.to(clip.device)
        if self.config.init_from:
            from vlprompt.saving import read_learnables  # it builds on this module

            start = Path(self.config.init_from)
            self.load_learnables(read_learnables(start), f"the tensors of {start}")
        self._check_objectives()
        self.prepare_classes()

    # What a method fills in

    def setup(self) -> None:
        """Create the learnable tensors: fp32, sizes read from ``self.clip``."""
        raise NotImplementedError

    def prepare_classes(self) -> None:
        """Compute what depends on ``self.class_names``: token ids, fixed features. Called when they change."""

    def encode_text(self) -> Tensor:
        """Class features (C, D) of the current class names, not normalised."""
        raise NotImplementedError

    def encode_images(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W), not normalised; by default the frozen tower's."""
        return self.clip.encode_image(images)

    def outputs(self, image_features: Tensor) -> Outputs:
        """Score image features (B, D), normalised or not, against the classes; a per-image classifier replaces it."""
        v = F.normalize(image_features.to(self.clip.device), dim=-1)
        t = self._text_features()
        return Outputs(v, t, self.clip.similarity(v, t))

    def published_names(self) -> dict[str, str]:
        """The authors' name of each learnable tensor."""
        return {name: name for name, _ in self.named_parameters()}

    @property
    def new_classes(self) -> bool:
        """Whether the learner can score classes that it was not trained on."""
        return self.facts["new_classes"]

    # What follows from it

    @property
    def cacheable_images(self) -> bool:
        """Whether the image tower is untouched, so that image features can be computed once."""
        return self.facts["cacheable_images"]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, H, W)."""
        return self.logits(images)

    def text_features(self) -> Tensor:
        """Normalised class features (C, D) of the current class names."""
        return F.normalize(self.encode_text(), dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        """Normalised features (B, D) of images (B, 3, H, W)."""
        return F.normalize(self.encode_images(images), dim=-1)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, H, W)."""
        return self.classify(self.image_features(images))

    def classify(self, image_features: Tensor) -> Tensor:
        """Logits (B, C) of image features (B, D), normalised or not."""
        return self.outputs(image_features).logits

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named losses of a batch: each objective's un-weighted part, and ``loss``, their weighted sum.

        Args:
            batch: ``label`` (B,), and ``image`` (B, 3, H, W) or, where images are cacheable, ``image_features`` (B, D).
                It may carry more keys, which objectives ask for.
        """
        batch = {key: value.to(self.clip.device) for key, value in batch.items()}
        cached = batch.get("image_features") if self.cacheable_images else None
        outputs = self.outputs(self.image_features(batch["image"]) if cached is None else cached)
        parts = {o.name: o(self, outputs, batch) for o in self.objectives}
        return {"loss": sum(o.weight * parts[o.name] for o in self.objectives if o.weight), **parts}

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Fill the parameters' gradients from the losses of a batch, by the gradient rule if there is one."""
        if self.gradient_rule is None:
            losses["loss"].backward()
        else:
            self.gradient_rule(losses, self.trainable_parameters())

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Called after each epoch (0-based) of ``epochs``: aggregates; a method adds schedules of its own."""
        if self.aggregator is None:
            return
        learnt = {name: p for name, p in self.named_parameters() if p.requires_grad}
        self.aggregator.update(learnt, epoch, epochs)
        if epoch == epochs - 1:
            self.last_state = {key: value.clone() for key, value in self.state_dict().items()}
            self.load_state_dict(self.state_dict() | self.aggregator.total)

    def training_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the learnables, so that a resumed run equals the uninterrupted one."""
        total = self.aggregator.total if self.aggregator else {}
        parts = {"total": total, "last": self.last_state or {}}
        return {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``training_state`` gave."""
        parts = {"total": {}, "last": {}}
        for key, value in state.items():
            part, name = key.split(".", 1)
            parts[part][name] = value.to(self.clip.device)
        if self.aggregator:
            self.aggregator.total = parts["total"]
        self.last_state = parts["last"] or None

    @property
    def views(self) -> tuple[str, ...]:
        """Views of each image that a batch must carry: ``image``, and ``image_strong`` if an objective asks for it."""
        strong = any("image_strong" in o.needs for o in self.objectives)
        return ("image", "image_strong") if strong else ("image",)

    def frozen_text(self, templates: Templates = None, normalise_first: bool = True) -> Tensor:
        """The frozen model's normalised class features (C, D) over templates; None takes the dataset's own.

        Args:
            templates: one, a list, the name of a set or a file, as ``vlprompt.data.resolve_templates`` takes them.
            normalise_first: whether each template's feature is normalised before the mean.
        """
        self.teacher.refuse_file(templates)
        chosen = resolve_templates(templates, self)
        return self.teacher.text_features(self.class_names, chosen, normalise_first)

    def _check_objectives(self) -> None:
        """Refuse what says nothing on this design, before any work starts."""
        for objective in self.objectives:
            if "vision" in objective.needs and self.cacheable_images:
                raise VlpromptError(
                    f"objective {objective.name} compares prompted with frozen image features, and {self.method} "
                    "leaves the image tower alone; use it on a method that trains vision, such as ivlp or maple"
                )
        names = [o.name for o in self.objectives]
        reference = getattr(self.gradient_rule, "reference", None)
        if reference is not None and reference not in names:
            raise VlpromptError(
                f"{self.gradient_rule.name} needs {reference} among the objectives: add {reference}(weight=0)"
            )

    def set_class_names(self, class_names: Sequence[str]) -> None:
        """Score other classes from now on; refused by learners that are bound to their classes."""
        names = _checked_names(class_names)
        if names == self.class_names:
            return
        if not self.new_classes:
            raise VlpromptError(
                f"{self.method} with these settings learns one context a class and cannot score new class names; "
                "use class_specific=false, or train on all classes"
            )
        previous, self.class_names = self.class_names, names
        try:
            self.prepare_classes()
        except VlpromptError:
            self.class_names = previous
            self.prepare_classes()
            raise
        self._cached = None

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The learnable tensors; empty for training-free methods."""
        return [p for p in self.parameters() if p.requires_grad]

    def classifier_matrix(self) -> Tensor:
        """The class features (C, D) as a plain tensor, normalised: a zero-shot head for any user of the backbone."""
        with torch.no_grad():
            return self._text_features().clone()

    def _text_features(self) -> Tensor:
        """``text_features``, computed once while nothing is learnt and no gradient is asked for."""
        if torch.is_grad_enabled():
            return self.text_features()
        key = tuple((p.data_ptr(), p._version) for p in self.parameters())
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, self.text_features())
        return self._cached[1]

    # The authors' names

    def published_state(self) -> dict[str, Tensor]:
        """The learnables under the authors' names."""
        state = self.state_dict()
        return {theirs: state[ours].clone() for ours, theirs in self.published_names().items()}

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Load learnables that go by the authors' names; other tensors (class buffers) are ignored."""
        ours = {mine: tensors[theirs] for mine, theirs in self.published_names().items() if theirs in tensors}
        missing = [theirs for mine, theirs in self.published_names().items() if mine not in ours]
        if missing:
            raise VlpromptError(f"{self.method}: the tensors lack {', '.join(missing)}")
        self.load_learnables(self.state_dict() | ours, "the published tensors")

    def load_learnables(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load a state dict of learnables; one sentence names the first tensor whose name or shape does not fit."""
        self.check_shapes({key: tensor.shape for key, tensor in state.items()}, source)
        self.load_state_dict(state)

    def check_shapes(self, shapes: Mapping[str, torch.Size], source: str) -> None:
        """Raise one sentence for the first tensor whose name or shape is not the learner's."""
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

    # Keeping

    def save_pretrained(self, path: str | os.PathLike, extra: Mapping[str, Any] | None = None) -> Path:
        """Write ``learner.safetensors`` (learnables only), ``config.json`` and a model card into a folder.

        Args:
            path: the folder; made if need be.
            extra: JSON-able facts to keep beside the configuration: dataset, recipe, results.
        """
        from vlprompt.saving import save_learner  # it builds on this module

        return save_learner(self, path, extra)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        license: str | None = None,
        extra: Mapping[str, Any] | None = None,
        dry_run: bool = False,
    ) -> str:
        """Share the learner as a model on the Hugging Face Hub and return its address.

        Args:
            repo: ``user/name``; made if need be.
            private: whether a repository that is made is private.
            license: of the learnt weights, such as ``mit``.
            extra: JSON-able facts to keep beside the configuration.
            dry_run: only check what would be sent.

        Raises:
            VlpromptError: the name is not right, nobody is logged in, or the Hub cannot be reached.
        """
        from vlprompt.sharing import push_folder  # as is that

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, extra)
            return push_folder(folder, repo, private=private, license=license, dry_run=dry_run)


def register(
    name: str,
    *,
    paper: str,
    trains: tuple[str, ...],
    new_classes: bool = True,
    cacheable_images: bool = True,
    **facts: Any,
) -> Callable[[type[PromptLearner]], type[PromptLearner]]:
    """Register a method.

    Args:
        name: as in ``create_learner(name, …)``.
        paper: arXiv id or citation.
        trains: of ``text``, ``vision``; empty for training-free methods.
        new_classes: whether it can score classes it was not trained on.
        cacheable_images: whether the image tower is untouched.
        facts: more to know about it.
    """
    facts |= {"paper": paper, "trains": trains, "new_classes": new_classes, "cacheable_images": cacheable_images}

    def file(cls: type[PromptLearner]) -> type[PromptLearner]:
        cls.method, cls.facts = name, facts
        return METHODS.register(name, **facts)(cls)

    return file


def list_methods(pattern: str = "*") -> list[str]:
    """Names of the registered methods that match a shell-style pattern."""
    return METHODS.names(pattern)


def method_info(name: str) -> dict[str, Any]:
    """What is known of a method: summary, paper, what it trains, and its settings with their defaults."""
    entry = METHODS.info(name)
    return {
        "name": name,
        "summary": entry.summary,
        **entry.facts,
        "config": dataclasses.asdict(entry.value.Config()),
    }


def make_config(method: str, settings: Mapping[str, Any]) -> PromptLearner.Config:
    """Check settings against a method's ``Config``; an unknown key or ill-typed value is one clear sentence."""
    schema = structured(METHODS.get(method).Config)
    for key, value in settings.items():
        try:
            assign(schema, key, value)
        except ConfigKeyError:
            raise VlpromptError(f"{method} has no setting '{key}': {nearest(key, schema)}") from None
        except OmegaConfBaseException as error:
            raise VlpromptError(f"{method}: {key}={value!r} is not right: {str(error).splitlines()[0]}") from None
    return to_object(schema)


def create_learner(
    method: str,
    clip: FrozenCLIP,
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    seed: int = 1,
    **settings: Any,
) -> PromptLearner:
    """Create a learner of a registered method.

    Args:
        method: one of ``list_methods()``.
        clip: the frozen model.
        class_names: C natural-language names.
        templates: the dataset's hand-written templates.
        seed: of the initial weights.
        settings: the method's ``Config``, such as ``n_ctx=16``.

    >>> create_learner("coop", load_clip("vlprompt-tiny"), ["cat", "dog"], n_ctx=4)  # doctest: +SKIP
    """
    return METHODS.get(method)(clip, class_names, make_config(method, settings), templates, seed)


def _checked_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Class names as a tuple: at least two, none empty. ImageNet has two names twice, so that is allowed."""
    names = tuple(class_names)
    if isinstance(class_names, str) or len(names) < 2:
        raise VlpromptError(f"a classifier needs at least two class names, got {class_names!r}")
    if not all(isinstance(n, str) and n.strip() for n in names):
        raise VlpromptError(f"class names must be non-empty strings, got {list(names)[:5]}")
    return names
