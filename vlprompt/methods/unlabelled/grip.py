"""FPL, IFPL and GRIP: enhancing CLIP with CLIP (Menghini et al., NeurIPS 2023, arXiv:2306.01669).

Trained: a text prompt, a visual prompt, or both (UPT), on pseudo-labels of a leaderboard and on labelled images, if
there are any. FPL labels the pool once with zero-shot CLIP; IFPL labels it again in each round, with the prompt of the
previous one; GRIP also uses more images per class from round to round.
Protocols: semi-supervised, unsupervised, transductive zero-shot (where the pool's images are of unseen classes).
Differs from the authors' code: a template's "{}" is filled in (theirs leaves it in what the first labeler reads); γ is
|U|/|L| in every round (theirs uses |L|/|U| in IFPL and GRIP); each round starts from the initial prompt (in theirs text
and joint prompts continue from the last); all pseudo-labels are trained on (theirs holds 20% out where K ≥ 10, for a
validation that chooses nothing); all joint prompts attend to each other (in theirs, in pairs). as_published=true does
all that as theirs does. In neither case are labelled images held out; theirs sets 20% of them aside for the same
validation, and trains on 80% of the two per class, or of the seen classes' images.
The published rate, lr=0.1, is for ViT-B/32. On small models it can end below zero-shot; with labelled images,
selection=fewshot_val and grid={lr: [0.1, 0.01, 0.001]} choose it on held-out images. Without labelled images there is
nothing to choose it on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.base.parts import parse_part
from vlprompt.clip.naming import natural_name
from vlprompt.data import resolve_templates
from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner, register
from vlprompt.learner.attributes import AttributeSettings
from vlprompt.learner.facts import Facts
from vlprompt.learner.labelers import LABELERS, Labeler, label_pool
from vlprompt.learner.learning import Feed, PseudoLabels, Train
from vlprompt.learner.objectives import Batch
from vlprompt.learner.prompts import DEFAULT_N_CTX, TextPrompt, VisualPrompt
from vlprompt.learner.selection import check_training_grid
from vlprompt.methods.unlabelled.upt import JointPrompts

HELD_OUT_FROM, KEPT = 10, 0.8  # as published: from K = 10 per class on, this share of pseudo-labels is trained on
TOWERS = {"text": {"text"}, "visual": {"vision"}, "multimodal": {"text", "vision"}}


@register(
    "grip", paper="arXiv:2306.01669", trains=("text", "vision"), cacheable_images=False, labels="any", fidelity="code"
)
class GRIP(PromptLearner):
    """Grow and refine iteratively pseudo-labels: more in each round, given by the previous round's prompt."""

    @dataclass
    class Config(AttributeSettings, PromptLearner.Config):
        """Settings.

        Attributes:
            prompts: what is learnt, text, visual or multimodal (UPT, both).
            n_ctx: number of learnt tokens; None uses 16, or 4 per tower if multimodal.
            labeler: how images of the pool are pseudo-labelled, see ``vlprompt.learner.labelers``.
            rounds: number of rounds of labelling and training.
            template: for the first labeler, and for the classes with visual prompts; None uses the dataset's own.
            joint_width: width of the layer that mixes multimodal prompts.
            as_published: do as the authors' code does, see above.
            grid: values of lr and weight_decay to choose from on held-out images, each with a complete training.
        """

        prompts: Literal["text", "visual", "multimodal"] = "text"
        n_ctx: int | None = None
        labeler: str = "growing"
        rounds: int = 10
        template: list[str] | None = None
        joint_width: int = 128
        as_published: bool = False
        grid: dict[str, Any] = field(default_factory=dict)

    config: Config

    def setup(self) -> None:
        """Create the prompts: text (n, d_t), visual (n, d_v), or both and the module that mixes them."""
        config, clip = self.config, self.clip
        if config.rounds < 1:
            raise VlpromptError(f"rounds must be at least 1, not {config.rounds}")
        check_training_grid(self.method, config.grid)
        self.labeler = parse_part(config.labeler, LABELERS)
        self.balance = (1.0, 1.0)  # γ of labelled images and λ of pseudo-labels
        n = config.n_ctx or (4 if config.prompts == "multimodal" else DEFAULT_N_CTX)
        if config.prompts != "visual":
            self.prompt = TextPrompt(clip, n, attributes=config)
        elif config.attributes:
            raise VlpromptError("prompts=visual learns no words, and attributes stand among them: take text")
        if config.prompts != "text":
            self.visual_prompt = VisualPrompt(clip, n, 1)
            d_v = clip.visual.width
            start = torch.randn(n, d_v) / math.sqrt(d_v)
            if config.prompts == "multimodal":
                bound = math.sqrt(6 / (3 * math.prod(clip.visual.patch_size) + d_v))
                start = torch.empty(n, d_v).uniform_(-bound, bound)
                self.joint = JointPrompts(clip.text.width, d_v, config.joint_width, config.as_published)
            self.visual_prompt.tokens[0] = nn.Parameter(start)

    @classmethod
    def facts_of(cls, config: Config) -> Facts:
        """Text prompts leave the image tower untouched."""
        trains = frozenset(TOWERS[config.prompts])
        return replace(cls.registered, trains=trains, cacheable_images="vision" not in trains)

    def prepare_classes(self) -> None:
        """Tokenize the bare class names."""
        if self.config.prompts != "visual":
            self.tokens = self.clip.class_tokens(self.class_names, inserted=self.prompt.n_inserted, stop="")

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D); under visual prompts the template's, which are fixed."""
        if self.config.prompts == "visual":
            return self.frozen_text(self.config.template)
        ctx = self._joint()[0] if self.config.prompts == "multimodal" else None
        return self.prompt.encode(self.clip, self.tokens, ctx, self.config.text_chunk, self.edits)[0]

    def encode_images(self, batch: Batch) -> Tensor:
        """Features (B, D) of images, with the learnt visual tokens if any."""
        if self.config.prompts == "text":
            return super().encode_images(batch)
        tokens = self._joint()[1] if self.config.prompts == "multimodal" else self.visual_prompt.tokens[0]
        return self.clip.prompted_image_features(batch["image"], {0: tokens}, edits=self.edits)

    def _joint(self) -> tuple[Tensor, Tensor]:
        mixed: tuple[Tensor, Tensor] = self.joint(self.prompt.ctx, self.visual_prompt.tokens[0])
        return mixed

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """γ·CE(labelled) + λ·CE(pseudo-labelled), each a mean over its images in the batch."""
        if "pseudo" in batch:
            pseudo, (gamma, lam) = batch["pseudo"], self.balance
            weight = torch.where(pseudo, lam / pseudo.sum(), gamma / (~pseudo).sum())
            batch = batch | {"weight": weight * len(pseudo)}
        return super().loss(batch)

    # Learning

    def learn(self, feed: Feed, train: Train) -> None:
        """Label the pool and train on it, round by round; the last round's prompt is kept."""
        rounds, classes = self.config.rounds, feed.pool_classes
        first = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        logits = self._zero_shot(feed)
        for turn in range(rounds):
            labeler = self.labeler.of_round(turn, rounds, len(logits), len(classes))
            chosen = self._held_out(label_pool(labeler, logits, self.clip.logit_scale, classes), labeler, len(classes))
            self.balance = self._balance(len(chosen.index), feed)
            if not self.config.as_published or self.config.prompts == "visual":
                self.load_state_dict(first)
            batches = feed.labelled_as(chosen, keep_labelled=True).batches()
            train(self, batches, stage=f"round {turn + 1}" if rounds > 1 else "")
            if turn + 1 < rounds:
                logits = torch.cat(list(self.eval().predict_all(feed.in_order("pool"))))

    def _zero_shot(self, feed: Feed) -> Tensor:
        """Logits (N, C) of the pool by the frozen model."""
        text = self.frozen_text(self.config.template)
        if self.config.as_published:
            template = resolve_templates(self.config.template, self)[0]
            text = F.normalize(self.clip.encode_text([template + natural_name(n) for n in self.class_names]), dim=-1)
        return self.clip.similarity(F.normalize(feed.bank("pool").features[0], dim=-1), text)

    def _held_out(self, chosen: PseudoLabels, labeler: Labeler, classes: int) -> PseudoLabels:
        """The pseudo-labels to train on: as published, 80% of them if there are at least ten per class."""
        count = len(chosen.index)
        wanted = labeler.wanted(count, classes)
        if not self.config.as_published or wanted is None or wanted < HELD_OUT_FROM:
            return chosen
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        kept = order[: int(KEPT * count)].to(chosen.index.device)
        return PseudoLabels(chosen.index[kept], chosen.label[kept], chosen.confidence[kept])

    def _balance(self, pseudo: int, feed: Feed) -> tuple[float, float]:
        """γ and λ: fewer labelled images weigh more, and so do fewer pseudo-labels of classes without labels."""
        labelled = feed.count("labelled")
        if not labelled:
            return 0.0, 1.0
        unseen_only = len(feed.pool_classes) < len(self.class_names)
        inverted = self.config.as_published and self.config.rounds > 1 and not unseen_only
        ratio = labelled / pseudo if unseen_only or inverted else pseudo / labelled
        if self.config.prompts == "multimodal":
            ratio = math.sqrt(ratio)
        return (1.0, ratio) if unseen_only else (ratio, 1.0)


@register(
    "ifpl", paper="arXiv:2306.01669", trains=("text", "vision"), cacheable_images=False, labels="any", fidelity="code"
)
class IFPL(GRIP):
    """Iterative few pseudo-labels: equally many in each round, given by the previous round's prompt."""

    @dataclass
    class Config(GRIP.Config):
        """Settings, those of GRIP with sixteen images per class in each round."""

        labeler: str = "leaderboard(k=16)"


@register(
    "fpl", paper="arXiv:2306.01669", trains=("text", "vision"), cacheable_images=False, labels="any", fidelity="code"
)
class FPL(GRIP):
    """Few pseudo-labels: given by zero-shot CLIP, for a single training."""

    @dataclass
    class Config(GRIP.Config):
        """Settings, those of GRIP with sixteen images per class in a single round."""

        labeler: str = "leaderboard(k=16)"
        rounds: int = 1
