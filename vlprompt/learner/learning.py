"""``Feed`` and ``Train``: what ``PromptLearner.learn`` gets as arguments, so that methods import neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor, nn

from vlprompt.data import FeatureBank
from vlprompt.learner.held_out import Selection
from vlprompt.learner.objectives import Batch

if TYPE_CHECKING:
    from vlprompt.clip.frozen import FrozenCLIP

Batches = Callable[[int], Iterable[Batch]]  # from an epoch's index to its batches; see also ``EpochBatches``
History = list[dict[str, Any]]  # a record an epoch
# val is the few-shot draw; whole_val and test are handed out where the authors chose on them and selection=paper
LONGEST = 10**6  # epochs of a training, at most
Source = Literal["labelled", "pool", "val", "whole_val", "test"]


@dataclass(frozen=True)
class EpochBatches:
    """The batches of every epoch, with their number known in advance.

    Attributes:
        draw: maps an epoch's index and a batch size to batches.
        images: images per epoch.
        batch_size: images per batch.
    """

    draw: Callable[[int, int], Iterable[Batch]]
    images: int
    batch_size: int

    def __call__(self, epoch: int) -> Iterable[Batch]:
        """The batches of an epoch."""
        return self.draw(epoch, self.batch_size)

    @property
    def steps(self) -> int:
        """Batches per epoch; an incomplete last batch is dropped unless it is the only one."""
        return max(1, self.images // self.batch_size)

    def redrawn(self, turn: int) -> EpochBatches:
        """The same images in another order and with other augmentations; turn 0 leaves them as they are."""
        return replace(self, draw=lambda epoch, batch_size: self.draw(epoch + turn * LONGEST, batch_size))

    def sized(self, batch_size: int) -> EpochBatches:
        """The same images in batches of another size."""
        return replace(self, batch_size=batch_size)


@dataclass(frozen=True)
class ParameterGroup:
    """Learnables that share optimizer settings.

    Attributes:
        parameters: the tensors.
        lr_scale: factor of the learning rate.
        weight_decay: replaces the recipe's; None keeps it.
    """

    parameters: Sequence[nn.Parameter]
    lr_scale: float = 1.0
    weight_decay: float | None = None


def groups_of(module: nn.Module) -> list[ParameterGroup]:
    """Group a module's learnables by learning rate: a submodule's ``lr_scale`` multiplies the recipe's.

    >>> two = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    >>> two[1].lr_scale = 0.1
    >>> [(group.lr_scale, len(group.parameters)) for group in groups_of(two)]
    [(1.0, 2), (0.1, 2)]
    """
    scales: dict[nn.Parameter, float] = {}
    for part in module.modules():  # submodules come after their parents
        scale = getattr(part, "lr_scale", None)
        scales |= {p: scales.get(p, 1.0) if scale is None else float(scale) for p in part.parameters()}
    learnt = [p for p in module.parameters() if p.requires_grad]
    rates = dict.fromkeys(scales[p] for p in learnt)
    return [ParameterGroup([p for p in learnt if scales[p] == rate], rate) for rate in rates]


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels for images of a pool; an image may be chosen for more than one class.

    Attributes:
        index: positions in the pool (M,).
        label: the class that each was chosen for (M,).
        confidence: the probability of that class (M,).
    """

    index: Tensor
    label: Tensor
    confidence: Tensor


class Feed(Protocol):
    """The training data: labelled images, a pool of unlabelled images, validation images.

    The pool's labels cannot be read here, even if they are known.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, in label order."""

    @property
    def templates(self) -> tuple[str, ...]:
        """The dataset's hand-written templates."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the images' domains, to which ``domain`` of a batch refers; empty if there are none."""

    @property
    def later_names(self) -> tuple[str, ...]:
        """Names of classes that are tested but not trained on, for the few methods that use them."""

    @property
    def selection(self) -> Selection:
        """What hyper-parameters may be chosen on, and what was used; see ``vlprompt.learner.held_out``."""

    def batches(
        self, source: Source = "labelled", *, views: int | str | None = None, every_view: bool = False
    ) -> EpochBatches:
        """Shuffled training batches of a source, in the form that the learner takes: cached features or images.

        Args:
            source: ``pool`` gives batches without ``label``.
            views: views of each image, a number or ``fresh``; by default the run's.
            every_view: use all cached views of an image in every epoch instead of one per epoch.
        """

    def bank(self, source: Source = "labelled", *, views: int = 1, clip: FrozenCLIP | None = None) -> FeatureBank:
        """Frozen features of a source, not normalised, (V, N, D), and labels (N,), which a pool does not have.

        Args:
            source: whose images.
            views: 1 is the evaluation crop; more are drawn from the training transform.
            clip: a frozen model other than the learner's.
        """

    @property
    def pool_classes(self) -> tuple[int, ...]:
        """Labels that the pool's images may have; all C if nothing is known."""

    def count(self, source: Source) -> int:
        """Number of images of a source; may be 0."""

    def in_order(self, source: Source = "pool") -> Iterable[Batch]:
        """The images of a source, once each and in order, transformed as for testing, without labels."""

    def labelled_as(
        self, labels: Tensor | PseudoLabels, weights: Tensor | None = None, *, keep_labelled: bool = False
    ) -> Feed:
        """A feed whose labelled images are those of the pool, with these labels; a run records them.

        Args:
            labels: a labeler's choice, or one label per image of the pool (N,), where -1 leaves an image out.
            weights: weights of the pool's images in the loss (N,).
            keep_labelled: append the images that have true labels; ``pseudo`` of a batch (B,) distinguishes the two.
        """

    def where(self, *, domain: str) -> Feed:
        """A feed of the images of one domain."""

    def beside(self, other: Feed) -> Feed:
        """A feed whose batches also hold, as ``unlabeled``, a batch of another feed's pool or labelled images."""


class Train(Protocol):
    """The training loop, with the run's recipe, checkpoints and progress bar."""

    def __call__(
        self,
        module: nn.Module,
        batches: Batches,
        *,
        stage: str = "",
        score: Callable[[], float] | None = None,
        **options: Any,
    ) -> History:
        """Train a module in place, and return one record per epoch.

        Args:
            module: has ``loss(batch)``, as a learner does.
            batches: maps an epoch to its batches.
            stage: name of this training, if ``learn`` trains several times. Each stage has its own checkpoint; after an
                interruption, a stage that was finished is restored rather than repeated.
            score: accuracy of the module on held-out images, used instead of the learner's when epochs are chosen.
            options: override the recipe, such as ``epochs`` or ``lr``; see ``vlprompt.training.TrainOptions``.
        """
