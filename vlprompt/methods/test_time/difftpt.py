"""DiffTPT: diverse data augmentation with diffusions for test-time prompt tuning (Feng et al., ICCV 2023,
arXiv:2308.06038).

Tuned, for each test image separately: TPT's context, on views some of which were generated. Of all views, those whose
logits resemble the image's own are kept, and of these the most confident.
Protocols: test-time; the initial context may be a CoOp or CoCoOp learner's, as in TPT.
Differs from the authors' code: fp32; no generator is called: its images are read from a folder (``generated``) as
``<name>_<i>``, and seen through the evaluation crop. Their figures are for five images per class, drawn without a
seed, and are not comparable with those of whole test sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.data import eval_transform
from vlprompt.data.generated import GeneratedViews
from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.learner.learning import Feed, Train
from vlprompt.methods.test_time.tpt import TPT, surest_views


def resembling_views(logits: Tensor, share: float) -> Tensor:
    """Places of the image itself and of the int(V·share) of its V views whose logits (1 + V, C) are most like its own.

    The image, which stands first among the logits, comes first; the others by cosine, the most alike first.
    """
    alike = F.cosine_similarity(logits[1:], logits[:1], dim=1)
    kept = alike.argsort(descending=True, stable=True)[: int(len(alike) * share)] + 1
    return torch.cat([kept.new_zeros(1), kept])


@register("difftpt", paper="arXiv:2308.06038", trains=("text",), labels="none", inputs=("views",))
class DiffTPT(TPT):
    """TPT with additional, generated views."""

    @dataclass
    class Config(TPT.Config):
        """Settings, those of TPT and more.

        Attributes:
            generated: a folder with generated views of the test images, named ``<name>_<i>``.
            n_generated: number of such views per image, in addition to the ``n_views`` crops.
            similar: share of the views to keep, by the similarity of their logits to the image's.
        """

        n_views: int = 65
        fraction: float = 0.3
        steps_per_image: int = 4
        generated: str | None = None
        n_generated: int = 63
        similar: float = 0.8

    config: Config

    def setup(self) -> None:
        """Create the context (n, d_t) that each image starts from."""
        if self.config.n_generated < 1 or not 0 < self.config.similar <= 1:
            raise VlpromptError("difftpt needs n_generated of at least 1, and a share similar above 0 and up to 1")
        super().setup()

    @cached_property
    def _found(self) -> GeneratedViews:
        return GeneratedViews(str(self.config.generated), self.config.n_generated, eval_transform(self.clip))

    @property
    def generated_views(self) -> GeneratedViews | None:
        """The generated views of test images."""
        self.teacher.refuse_file(self.config.generated)
        return self._found if self.config.generated is not None else None

    def learn(self, feed: Feed, train: Train) -> None:
        """Learn nothing before the test, but check that there are generated views."""
        if self.generated_views is None:
            raise VlpromptError(
                "difftpt needs views that a generator made: say generated=FOLDER, which holds them as NAME_0, NAME_1 "
                "and so on; without such views take tpt"
            )

    def choose_views(self, logits: Tensor) -> Tensor:
        """Indices of the views (V, C) to tune on: the most confident of those similar to the first."""
        alike = resembling_views(logits, self.config.similar)
        return alike[surest_views(logits[alike], self.config.fraction)]
