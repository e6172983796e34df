"""TransCLIP: boosting vision-language models with transduction (Zanella et al., NeurIPS 2024, arXiv:2406.01837).

Fitted, for all test images jointly: their assignments z to classes, which agree with the text classifier, with
Gaussians over image features that share a diagonal covariance, and with the assignments of the most similar images.
With ``support=true`` labelled images, whose assignments are known, take part.
Protocols: test-time (without labels), few-shot; both also on top of a saved learner (``text=``).
Differs from the authors' code, which gives labelled images' votes to images other than their neighbours and skips the
nearest; tries each γ from where the last one ended; overwrites, as it goes, the probabilities of a learner that it
starts from; and uses only the first template. as_published=true does all that. To choose among several γ, theirs gives
each validation image the assignment of its nearest test image; ours assigns the validation images jointly, so that the
choice is made before the test.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.base.devices import exact_device
from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.learner.facts import Facts
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.objectives import Batch
from vlprompt.learner.selection import choose, grid_points, keep_settings, refitted
from vlprompt.methods.heads.neighbours import most_similar
from vlprompt.methods.heads.on_text import BesideZeroShot
from vlprompt.methods.heads.transduction import Gaussians, Labelled, Votes

KEPT = ("support", "support_labels", "val", "val_labels")  # buffers of labelled images


@register(
    "transclip",
    paper="arXiv:2406.01837",
    labels="none",
    head=True,
    predicts="jointly",
    paper_settings="val",
    fidelity="code",
)
class TransCLIP(BesideZeroShot):
    """Assigns all test images to classes jointly, from text, Gaussians and neighbouring images."""

    takes_probabilities = True

    @dataclass
    class Config(BesideZeroShot.Config):
        """Settings.

        Attributes:
            support: whether labelled images take part.
            text_weight: weight λ of the text classifier; published are 1, and 0.5 with labelled images.
            gamma: weight γ of labelled images in the Gaussians.
            neighbours: number of most similar test images whose assignments count.
            temperature: temperature τ of the Gaussians in the assignments.
            confident: number of most confident images per class that its mean starts from, if there are no labelled
                ones.
            rounds: number of rounds, between which the Gaussians are fitted anew.
            sweeps: updates of the assignments within a round.
            grid: values of gamma to choose from on held-out images.
            as_published: do as the authors' code does, see above.
        """

        support: bool = False
        text_weight: float = 1.0
        gamma: float = 0.02
        neighbours: int = 3
        temperature: float = 50.0
        confident: int = 8
        rounds: int = 11
        sweeps: int = 5
        grid: dict[str, Any] = field(default_factory=dict)
        as_published: bool = False

    config: Config
    gamma: Tensor

    @classmethod
    def facts_of(cls, config: Config) -> Facts:
        """With labelled images, it is bound to their classes."""
        return replace(cls.registered, labels="needed", new_classes=False) if config.support else cls.registered

    def setup(self) -> None:
        """Create buffers for labelled images, empty until their number is known."""
        super().setup()
        c = self.config
        for name in ("neighbours", "confident", "rounds", "sweeps"):
            if getattr(c, name) < 1:
                raise VlpromptError(f"transclip needs {name} of at least 1, not {getattr(c, name)}")
        if not (c.temperature > 0 and c.gamma > 0):
            raise VlpromptError("transclip needs a temperature and a gamma above 0")
        keep_settings(self, "gamma")
        self.reserve({})

    def reserve(self, shapes: Mapping[str, torch.Size]) -> None:
        """Create buffers for normalised features (S, D) and labels (S,) of labelled and validation images."""
        for name in KEPT if self.config.support else ():
            empty = (0,) if name.endswith("labels") else (0, self.clip.embed_dim)
            self.register_buffer(name, torch.zeros(shapes.get(name, empty), device=self.clip.device))

    def learn(self, feed: Feed, train: Train) -> None:
        """Keep the labelled images, and choose γ if there is a selection."""
        if not self.config.support:
            return
        bank, source = feed.bank(), feed.selection.settings
        assert bank.labels is not None  # of labelled images
        if len(bank.labels.unique()) < len(self.learnt_names):
            raise VlpromptError("transclip with support=true needs a labelled image of each class")
        self.support, self.support_labels = F.normalize(bank.features[0], dim=-1), bank.labels.float()
        if not self.config.as_published:
            choose(self, feed, refitted(lambda point: partial(self.with_gamma, point["gamma"])))
        elif self.config.grid and source is not None:
            val = feed.bank(source)
            assert val.labels is not None
            self.val, self.val_labels = F.normalize(val.features[0], dim=-1), val.labels.float()

    def with_gamma(self, gamma: float, v: Tensor) -> Tensor:
        """Log z (Q, C) of images v (Q, D) for a given γ."""
        return self.solve(v, self.log_y({"image_features": v}), [gamma])[0]

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (C, D) of zero-shot, or of the saved learner."""
        first = self.config.as_published and self.config.template is None and self.built_on is None
        return self.frozen_text(self.templates[:1]) if first else super().encode_text(v)

    def log_y(self, batch: Batch) -> Tensor:
        """Log ŷ (B, C) of a batch by class features, or by a saved learner that has none."""
        if self.built_on is not None and self.built_on.lacks:
            return self.built_on.logits(batch, self.learnt_names).log_softmax(dim=1)
        return super().score(self.image_features(batch), self.text_features()).log_softmax(dim=1)

    @torch.no_grad()
    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Log z (Q, C), whose softmax is z, of all images v (Q, D) of a test."""
        return self.assign(v, super().score(v, t).log_softmax(dim=1))

    @torch.no_grad()
    def predict_all(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Log z (Q, C) of all images of a test."""
        if self.built_on is None or not self.built_on.lacks:
            yield from super().predict_all(batches)
        elif seen := [(self.image_features(batch), self.log_y(batch)) for batch in batches]:
            v, log_y = map(torch.cat, zip(*seen, strict=True))
            yield self.select_scored(self.assign(v, log_y, of_a_learner=True))

    def predict(self, batch: Batch) -> Tensor:
        """Log z (B, C) of a batch that is a whole test."""
        return torch.cat(list(self.predict_all([batch])))

    def assign(self, v: Tensor, log_y: Tensor, of_a_learner: bool = False) -> Tensor:
        """Log z (Q, C) of images.

        Args:
            v: normalised features (Q, D) of all images of a test.
            log_y: log ŷ (Q, C) of the text classifier or of a saved learner.
            of_a_learner: whether ŷ are a learner's probabilities, which the authors' code overwrites.
        """
        if not self.config.support or not len(self.val):
            return self.solve(v, log_y, [float(self.gamma)], of_a_learner)[0]
        found = self.solve(v, log_y, [point["gamma"] for point in grid_points(self.config.grid)], of_a_learner)
        nearest = most_similar(self.val, v, 1).index[:, 0]
        right = [int((log_z[nearest].argmax(dim=1) == self.val_labels).sum()) for log_z in found]
        return found[right.index(max(right))]

    def solve(self, v: Tensor, log_y: Tensor, gammas: Sequence[float], of_a_learner: bool = False) -> list[Tensor]:
        """Log z (Q, C) for each γ, which has no effect without labelled images."""
        device = exact_device(v.device)  # for sparse matrices
        v, log_y, labelled = v.to(device), log_y.to(device), self.labelled(device)
        c, found = self.config, []
        votes = Votes.of(v, c.neighbours, labelled, c.as_published)
        log_z, fitted = start = log_y, Gaussians.first(v, log_y.exp(), c.confident, labelled)
        for gamma in gammas:
            log_z, fitted = (log_z, fitted) if c.as_published else start
            for i in range(c.rounds):
                fixed = fitted.log_likelihood(v) / c.temperature + votes.labelled
                for _ in range(c.sweeps):
                    text = log_z if of_a_learner and c.as_published else log_y
                    heard = torch.sparse.mm(votes.own, log_z.exp())
                    log_z = torch.add(heard, text, alpha=c.text_weight).add_(fixed).log_softmax(dim=1)
                if i < c.rounds - 1:
                    fitted = Gaussians.of(v, log_z.exp(), c.temperature * gamma, labelled)
            found.append(log_z.to(self.clip.device))
        return found

    def labelled(self, device: torch.device) -> Labelled | None:
        """The labelled images on a device, if they are used."""
        if not self.config.support:
            return None
        return Labelled(self.support.to(device), self.support_labels.long().to(device), len(self.learnt_names))
