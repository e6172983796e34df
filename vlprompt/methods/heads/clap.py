"""ZS-LP and CLAP: a closer look at few-shot adaptation of large VLMs (Silva-Rodríguez et al., CVPR 2024).

Trained: a prototype w_c per class, initialized to zero-shot CLIP's class feature t_c; both are normalised for scoring.
ZS-LP trains only these. CLAP adds the constraint mean_c λ_c‖w_c - t_c‖², where λ_c is the mean zero-shot probability of
the class over its own training images: the better the text classifier is on a class, the closer it stays to it.
Nothing is chosen on validation images.
Protocols: few-shot, domain generalization; also on top of a saved learner (``text=``). An epoch goes through all views
of each image.
Differs from the authors' code: fp32; a class without images has λ_c = 1, where theirs is undefined.
Prototypes and anchors are the text tower's unnormalised features. Their norm, about 10 for OpenAI's models, determines
the effect of lr=0.1 and the strength of the constraint: try other rates on other backbones. Class features of a saved
learner are scaled to the same norms.
The schedule is long: with 1,000 classes, 16 shots and 20 views it has 375,000 steps, whose products alone are 197
TFLOP, or 12 minutes on two cores at 280 GFLOP a second (docs/methods/heads.md); steps=12000 costs three per cent of it.
zs_lp with variant=cones starts from normalised class features. It is the classification analogue of ConES (concept
embedding search), which learns the text tower's output itself; only its abstract was available, and no code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.learner import register
from vlprompt.learner.learning import Feed, Train
from vlprompt.learner.objectives import Batch
from vlprompt.methods.heads.on_text import OnText

Constraint = Literal["l2", "l2_constant", "l2_corrected", "l2_balanced"]


def multipliers(logits: Tensor, labels: Tensor, constraint: Constraint) -> Tensor:
    """λ (C,) of CLAP's constraint, §4.2: how reliable zero-shot CLIP is for each class.

    Args:
        logits: zero-shot CLIP's logits (N, C).
        labels: (N,).
        constraint: ``l2``, the mean probability of class c over the samples of class c; ``l2_constant``, the mean of
            these for all classes; ``l2_corrected``, these scaled to a mean of one; ``l2_balanced``, ones.
    """
    n_classes = logits.shape[1]
    ones = logits.new_ones(n_classes)
    if constraint == "l2_balanced":
        return ones
    own = logits.softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)  # (N,)
    counts = torch.bincount(labels, minlength=n_classes)
    found = torch.where(counts > 0, torch.zeros_like(ones).index_add(0, labels, own) / counts, ones)
    if constraint == "l2_constant":
        return ones * found.mean()
    return found / found.mean() if constraint == "l2_corrected" else found


@register(
    "zs_lp",
    paper="arXiv:2312.12730",
    trains=("head",),
    new_classes=False,
    paper_settings="none",
    weighs=True,
    fidelity="code",
)
class ZSLP(OnText):
    """A linear probe initialized with the zero-shot classifier."""

    @dataclass
    class Config(OnText.Config):
        """Settings.

        Attributes:
            variant: zs_lp, or cones, which starts from normalised class features.
        """

        variant: Literal["zs_lp", "cones"] = "zs_lp"

    config: Config
    anchor: Tensor

    def setup(self) -> None:
        """Create the prototypes (C, D)."""
        text = self.start_text(normalise_first=False, normalise_last=self.config.variant == "cones")
        self.register_buffer("anchor", text.float(), persistent=False)
        self.prototypes = nn.Parameter(self.anchor.clone())

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """The prototypes (C, D)."""
        return self.prototypes

    def learn(self, feed: Feed, train: Train) -> None:
        """Train on every view of the labelled images."""
        train(self, feed.batches(every_view=True))


@register("clap", paper="arXiv:2312.12730", trains=("head",), new_classes=False, paper_settings="none", fidelity="code")
class CLAP(ZSLP):
    """A linear probe that stays close to the zero-shot classifier on classes where that is right."""

    @dataclass
    class Config(ZSLP.Config):
        """Settings, those of ZS-LP and more.

        Attributes:
            constraint: l2 as in the paper, or l2_constant, l2_corrected or l2_balanced, see ``multipliers``.
            fit_views: views of each training image that λ is averaged over.
        """

        constraint: Constraint = "l2"
        fit_views: int = 20

    config: Config
    strength: Tensor

    def setup(self) -> None:
        """Create the prototypes (C, D), and λ (C,), which only training needs."""
        super().setup()
        self.register_buffer("strength", torch.ones(len(self.class_names)), persistent=False)

    def learn(self, feed: Feed, train: Train) -> None:
        """Compute λ from zero-shot CLIP's predictions, and train."""
        bank = feed.bank(views=self.config.fit_views)
        assert bank.labels is not None  # of labelled images
        v = F.normalize(bank.features.flatten(0, 1), dim=-1)
        zero_shot = self.clip.similarity(v, F.normalize(self.anchor, dim=-1))  # (V·N, C)
        self.strength.copy_(multipliers(zero_shot, bank.labels.repeat(bank.views), self.config.constraint))
        super().learn(feed, train)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named losses of a batch, with the constraint mean_c λ_c‖w_c - t_c‖² (eq. 7)."""
        losses = super().loss(batch)
        constraint = (self.strength * (self.prototypes - self.anchor).square().sum(dim=1)).mean()
        return {**losses, "loss": losses["loss"] + constraint, "constraint": constraint}
