"""SPG: soft prompt generation for domain generalization (Bai et al., ECCV 2024, arXiv:2404.19286).

Trained, in two stages: CoOp's context for each source domain, called its prompt label; then a conditional GAN, whose
generator makes contexts from noise and an image feature, and whose discriminator tells them from the prompt labels. At
test time a context is generated for each image. The second stage has no classification loss, and both stages need only
the features of an image.
Protocols: domain generalization, with a domain held out or from a single one; without domains, all images are one.
Predictions depend on the noise, which is the method's weakness. ``noise=drawn`` draws it for each image, as published;
``fixed`` uses one draw for all; ``averaged`` averages the contexts of several. Results report how much the accuracy
varies with other draws. Differs from the authors' code: images are tested in batches of any size (theirs uses the first
image's prompt for a whole batch); the held-out domain has no stage of its own; fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner, create_learner, register
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.objectives import Batch
from vlprompt.learner.prompts import TextPrompt
from vlprompt.methods.prompts.cgan import Adversaries, Discriminator, Generator, in_turns

# options of the first stage, which replace the recipe's (those of the second)
FIRST = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "schedule": "dassl", "warmup_epochs": 1}
OF_LABELS = ("objective", "gradient_rule", "aggregator", "text_chunk", "descriptions", "teacher", "names")


@register(
    "spg",
    paper="arXiv:2404.19286",
    trains=("text",),
    classifier="per_image",
    paper_settings="none",
    paper_epoch="whole_val",
    fidelity="code",
)
class SPG(PromptLearner):
    """Contexts made for each image by a generator, which is trained on contexts learnt in several domains."""

    published: ClassVar = {"generator.": ""}

    @dataclass
    class Config(PromptLearner.Config):
        """Settings; ``objective``, ``gradient_rule`` and ``aggregator`` apply to the first stage.

        Attributes:
            n_ctx: number of tokens of a context; None uses as many as ``ctx_init`` has.
            ctx_init: phrase that initializes the first stage.
            label_epochs: epochs of the first stage, per domain; None uses those of the second. Its optimizer is CoOp's.
            label_lr: learning rate of the first stage.
            noise: noise at test time, one draw ``fixed`` for all images, one ``drawn`` for each, or contexts
                ``averaged`` over ``draws``.
            draws: number of draws to average over.
            test_draws: number of other draws with which each test is scored again, to report the variation.
            noise_width: width z of the noise.
            generator_width: w of the generator's hidden layers w/2, w, 2w and 4w.
            discriminator_width: width of the discriminator's hidden layers.
            clipping: maximum gradient norms of single tensors in the second stage, see ``cgan``; empty does not clip.
            image_chunk: images whose prompts are encoded at a time; None takes the whole batch.
        """

        n_ctx: int | None = None
        ctx_init: str | None = "a photo of a"
        label_epochs: int | None = None
        label_lr: float = 2e-3
        noise: Literal["fixed", "drawn", "averaged"] = "fixed"
        draws: int = 10
        test_draws: int = 4
        noise_width: int = 100
        generator_width: int = 256
        discriminator_width: int = 512
        clipping: dict[str, float] = field(default_factory=dict)
        image_chunk: int | None = 8

    config: Config
    own_noise: Tensor

    def setup(self) -> None:
        """Create the generator z+D -> n·d_t, and its own noise (draws, z) for testing."""
        config = self.config
        least = min(config.draws, config.noise_width, config.generator_width, config.discriminator_width)
        if least < 1 or config.test_draws < 0:
            raise VlpromptError("draws, noise_width and the widths must be 1 or more, and test_draws 0 or more")
        self.prompt = TextPrompt(self.clip, config.n_ctx, config.ctx_init)
        self.shape = (self.prompt.n_ctx, self.clip.text.width)
        del self.prompt.ctx  # replaced by what is generated
        made = Generator(self.clip.embed_dim, config.noise_width, config.generator_width, self.shape)
        self.generator = made.eval()  # see ``train``
        self.register_buffer("own_noise", torch.randn(config.draws, config.noise_width))
        self._turn = 0
        self._stream: torch.Generator | None = None  # of noise, while a test is predicted

    def prepare_classes(self) -> None:
        """Tokenize the class prompts."""
        self.tokens = self.prompt.tokenize(self.clip, self.class_names)

    def train(self, mode: bool = True) -> SPG:
        """As usual, except that batch norms are in training mode only in the second stage."""
        super().train(mode)
        self.generator.eval()
        return self

    # Learning

    def learn(self, feed: Feed, train: Train) -> None:
        """Learn a context (the prompt label) for each domain, and then to generate such contexts."""
        labels = torch.stack([self._label(feed, domain, train) for domain in feed.domains or ("",)])
        config, width = self.config, self.clip.embed_dim
        discriminator = Discriminator(width, config.discriminator_width, self.shape).to(labels.device)
        adversaries = Adversaries(
            self.generator, discriminator, labels, config.noise_width, self.image_features, config.clipping
        )
        train(adversaries, in_turns(feed.batches()), stage="generator")

    def _label(self, feed: Feed, domain: str, train: Train) -> Tensor:
        """The context (n, d_t) that CoOp learns on a domain's images, of the epoch best on validation images if any."""
        config, own = self.config, feed.where(domain=domain) if domain else feed
        settings: dict[str, Any] = {name: getattr(config, name) for name in OF_LABELS}
        settings |= {"n_ctx": self.prompt.n_ctx, "ctx_init": config.ctx_init}
        names, templates = self.class_names, self.templates
        coop = create_learner("coop", self.clip, names, templates=templates, shared_names=True, **settings)
        epochs = {} if config.label_epochs is None else {"epochs": config.label_epochs, "steps": None}

        @torch.no_grad()
        def score() -> float:
            assert feed.selection.epoch  # else no epoch is selected
            bank = own.bank(feed.selection.epoch)
            right: Tensor = coop.classify(bank.features[0]).argmax(dim=1).eq(cast(Tensor, bank.labels))
            return float(right.float().mean())

        train(coop, own.batches(), stage=f"prompt {domain}".strip(), score=score, lr=config.label_lr, **FIRST, **epochs)
        return coop.get_parameter("prompt.ctx").detach().clone()

    # Testing

    @property
    def n_draws(self) -> int:
        """Number of additional draws of noise to score a test with."""
        return self.config.test_draws

    def draw(self, turn: int) -> None:
        """Predict with other noise."""
        self._turn = turn

    def predict_all(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Logits of a whole test set; an image's noise depends only on its position, not on the batches."""
        self._stream = torch.Generator().manual_seed(self._turn)
        try:
            yield from super().predict_all(batches)
        finally:
            self._stream = None

    def noise_for(self, count: int) -> Tensor:
        """Noise (B, R, z) for B images: R draws each, whose contexts are averaged."""
        own, kind = self.own_noise, self.config.noise
        if kind == "drawn":
            each = [torch.randn(own.shape[1:], generator=self._stream) for _ in range(count)]
            return torch.stack(each).unsqueeze(1).to(own.device)
        if self._turn:
            generator = torch.Generator().manual_seed(self._turn)
            own = torch.randn(own.shape, generator=generator).to(own.device)
        return own[: 1 if kind == "fixed" else None].expand(count, -1, -1)

    def contexts(self, v: Tensor) -> Tensor:
        """Contexts (B, n, d_t) of normalised image features v (B, D)."""
        noise = self.noise_for(len(v))  # (B, R, z)
        rows = v.unsqueeze(1).expand(-1, noise.shape[1], -1)  # (B, R, D)
        made: Tensor = self.generator(noise.flatten(0, 1), rows.flatten(0, 1))  # (B·R, n, d_t)
        averaged: Tensor = made.unflatten(0, noise.shape[:2]).mean(dim=1)
        return averaged

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (B, C, D) for each normalised image feature v (B, D)."""
        if v is None:
            raise VlpromptError("spg's class features depend on each image, so there are none without one")
        return self.prompt.encode(self.clip, self.tokens, self.contexts(v), self.config.text_chunk, self.edits)
