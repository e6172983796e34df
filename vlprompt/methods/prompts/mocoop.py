"""MoCoOp: mixture of prompt learning (Du et al., 2024, arXiv:2409.12011).

Trained: an expert per group of hand-written templates, which is a context in place of the words of the group's first
template, before and after the class name; a vector w that is added to every class feature; and a router, which chooses
two experts for each image and mixes their class features by a softmax of its two scores. Experts are kept close to
their groups' templates, and the router learns from the similarity of the image to the templates of its class.
Protocols: few-shot, base-to-new.
Two things that published runs mix in are settings here, off by default and recorded in the result: training the image
tower's norms too (``tune_vit_ln``), and keeping experts close to the names of classes that are tested later
(``new_class_names_in_text_loss``). Differs from the authors' code: the groups are ours, since their templates are not
known here; fp32; each expert's prefix is encoded once for all classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.base.checks import check_templates
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.prompt_inputs import ClassTokens
from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner, register
from vlprompt.learner.edits import LayerNorms
from vlprompt.learner.facts import Facts
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.names import named
from vlprompt.learner.objectives import OBJECTIVES, Batch, Objective, Outputs
from vlprompt.learner.prompts import TextPrompt

# similar templates among those that CLIP's authors wrote for ImageNet; the dataset's own form another group
GROUPS: dict[str, list[str]] = {
    "photo": ["a photo of a {}.", "a photo of the {}.", "a photo of one {}.", "a photo of my {}."],
    "itap": ["itap of a {}.", "itap of the {}.", "itap of my {}."],
    "quality": ["a bad photo of the {}.", "a low resolution photo of the {}.", "a blurry photo of the {}."],
    "art": ["art of the {}.", "a drawing of the {}.", "a painting of the {}.", "a {} in a video game."],
    "size": ["a photo of the large {}.", "a photo of the small {}.", "a close-up photo of the {}."],
}
LN_SHARE = 0.1  # of the learning rate, as published


class Expert(TextPrompt):
    """A context in place of a template's words, before and after the class name.

    Args:
        clip: the frozen model.
        template: with one ``{}``; its full stop counts as a word.
    """

    def __init__(self, clip: FrozenCLIP, template: str):
        before, behind = (clip.word_embeddings(words.strip()) for words in template.split("{}"))
        super().__init__(clip, len(before) + len(behind))
        self.ctx = nn.Parameter(torch.cat([before, behind]))
        self.start = self.ctx.detach().clone()
        self.before = len(before)

    def tokenize(self, clip: FrozenCLIP, class_names: Sequence[str]) -> ClassTokens:
        """Token ids of the class names, with room for the context."""
        return clip.class_tokens(class_names, inserted=self.n_ctx, stop="")


class _OfExperts(Objective):
    """An objective on a mixture of experts."""

    def refuses(self, learner: PromptLearner) -> str | None:
        """Other designs have a single prompt and no router."""
        return None if isinstance(learner, MoCoOp) else "is over a mixture of experts, which only mocoop learns"


@OBJECTIVES.register("expert_text")
class ExpertText(_OfExperts):
    """Cross-entropy between each expert's class features and the classes of its group's templates (MoCoOp).

    The logits are plain cosines, without a temperature.
    """

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean over experts and classes."""
        assert isinstance(learner, MoCoOp)  # or it was refused
        names = named(learner.config, (*learner.class_names, *learner.later_names))
        t, h = learner.experts(), learner.prototypes(names)  # (G, C, D), (G, C', D)
        if learner.later_names:
            t = torch.cat([t, learner.expert_features(learner.later_tokens)], dim=1)
        cosines = t @ h.mT  # (G, C', C')
        return F.cross_entropy(cosines.flatten(0, 1), torch.arange(len(names), device=t.device).repeat(len(t)))


@OBJECTIVES.register("routing")
class Routing(_OfExperts):
    """Cross-entropy between the router's scores and the similarity of the image to each group's templates (MoCoOp).

    Args:
        weight: its factor.
        boost: added to the cosines of the nearest groups, as many as are mixed, so that they get nearly all the weight.
    """

    def __init__(self, weight: float = 1.0, boost: float = 10.0):
        super().__init__(weight)
        self.boost = boost

    def __call__(self, learner: PromptLearner, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean over the batch."""
        assert isinstance(learner, MoCoOp)  # or it was refused
        v, h = outputs.image_features, learner.prototypes(learner.class_names)[:, batch["label"]]  # (B, D), (G, B, D)
        near = torch.einsum("bd,gbd->bg", v.detach(), h)
        boosted = near.scatter_add(1, near.topk(learner.config.active).indices, torch.full_like(near, self.boost))
        return F.cross_entropy(learner.router(v), boosted.softmax(dim=-1))


@register("mocoop", paper="arXiv:2409.12011", trains=("text",), classifier="per_image", fidelity="code")
class MoCoOp(PromptLearner):
    """Contexts initialized from groups of templates, and a router that mixes two of them for each image."""

    @dataclass
    class Config(PromptLearner.Config):
        """Settings.

        Attributes:
            groups: templates by group, one expert each; None uses the dataset's own as the first group, and five
                others.
            active: number of experts mixed for an image.
            image_chunk: images whose mixtures are held at a time; None takes the whole batch.
            tune_vit_ln: also train the norms in the image tower's blocks, at a tenth of the learning rate, as the
                authors' code does; image features then cannot be cached.
            new_class_names_in_text_loss: include in expert_text the names of classes that are tested but not trained
                on, as the authors' base-to-new runs do; other methods do not see these names.
        """

        objective: list[str] = field(default_factory=lambda: ["ce", "expert_text(weight=5)", "routing"])
        groups: dict[str, list[str]] | None = None
        active: int = 2
        image_chunk: int | None = 64
        tune_vit_ln: bool = False
        new_class_names_in_text_loss: bool = False

    config: Config

    def setup(self) -> None:
        """Create an expert (n_g, d_t) per group, w (1, D), and the router D -> G."""
        groups = {"own": list(self.templates), **GROUPS} if self.config.groups is None else self.config.groups
        if not 1 <= self.config.active <= len(groups):
            raise VlpromptError(f"active={self.config.active} must be 1 or more, and at most the {len(groups)} groups")
        self.groups = [check_templates(templates) for templates in groups.values()]
        self.prompts = nn.ModuleList(Expert(self.clip, templates[0]) for templates in self.groups)
        self.w = nn.Parameter(torch.zeros(1, self.clip.embed_dim))
        self.router = nn.Linear(self.clip.embed_dim, len(groups))
        if self.config.tune_vit_ln:
            self.norms = LayerNorms(self.clip, "vision", LN_SHARE)
            self.edits.append(self.norms)
        self.later_names: tuple[str, ...] = ()
        self.later_tokens: list[ClassTokens] = []
        self._experts: Tensor | None = None  # of the current training step

    @classmethod
    def facts_of(cls, config: Config) -> Facts:
        """If its norms are trained, the image tower is."""
        if not config.tune_vit_ln:
            return cls.registered
        return replace(cls.registered, trains=frozenset({"text", "vision"}), cacheable_images=False)

    def prepare_classes(self) -> None:
        """Tokenize the class names for each expert."""
        self.tokens = self._tokenize(self.class_names)

    def _tokenize(self, names: Sequence[str]) -> list[ClassTokens]:
        return [expert.tokenize(self.clip, names) for expert in self._by_group()]

    def _by_group(self) -> list[Expert]:
        """The experts: ``prompts`` with their type."""
        return [expert for expert in self.prompts if isinstance(expert, Expert)]

    def learn(self, feed: Feed, train: Train) -> None:
        """Learn from the labelled images, using the names of later classes if so set."""
        if self.config.new_class_names_in_text_loss:
            self.see_names(feed.later_names)
        train(self, feed.batches())

    def see_names(self, names: Sequence[str]) -> None:
        """Let expert_text include classes that are not trained on."""
        if not names:
            raise VlpromptError(
                "new_class_names_in_text_loss=true needs classes that are tested and not trained on: use "
                "protocol=base_to_new, or leave it out"
            )
        self.later_names = named(self.config, tuple(names))
        self.later_tokens = self._tokenize(self.later_names)

    def prototypes(self, names: Sequence[str]) -> Tensor:
        """h, normalised mean features (G, C, D) of each group's templates."""
        return torch.stack([self.teacher.text_features(names, templates) for templates in self.groups])

    def expert_features(self, tokens: Sequence[ClassTokens]) -> Tensor:
        """t, normalised class features (G, C, D) of every expert, with w added before."""
        found = [
            expert.encode(self.clip, each, chunk=self.config.text_chunk, edits=self.edits)[0]
            for expert, each in zip(self._by_group(), tokens, strict=True)
        ]
        return F.normalize(torch.stack(found) + self.w, dim=-1)

    def experts(self) -> Tensor:
        """``expert_features`` of the learner's classes, once per training step, or once while nothing changes."""
        if self._experts is not None:
            return self._experts
        return self.cached_while_unchanged(lambda: self.expert_features(self.tokens))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch, for which experts are encoded once."""
        self._experts = self.expert_features(self.tokens)
        try:
            return super().loss(batch)
        finally:
            self._experts = None

    def mixed(self, experts: Tensor, v: Tensor) -> Tensor:
        """For each image, a mixture of the experts (G, C, D) that the router selects: (B, C, D), not normalised."""
        best, chosen = self.router(v).topk(self.config.active)
        shares = best.new_zeros(len(v), len(experts)).scatter(1, chosen, best.softmax(dim=-1))  # (B, G)
        mixed: Tensor = (shares @ experts.flatten(1)).unflatten(1, experts.shape[1:])
        return mixed

    def text_encoder(self) -> Callable[[Tensor], Tensor]:
        """``mixed``, with the experts encoded once."""
        return partial(self.mixed, self.experts())

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (B, C, D) for each normalised image feature v (B, D)."""
        if v is None:
            raise VlpromptError("mocoop mixes class features for each image, so there are none without one")
        return self.text_encoder()(v)

    def text_features(self, v: Tensor | None = None) -> Tensor:
        """``encode_text``: a mixture of normalised features is not normalised again."""
        return self.encode_text(v)
