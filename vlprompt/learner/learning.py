"""What a method learns from and with: the two things that ``PromptLearner.learn`` is handed, and never imports."""

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
    """Batches that know how many an epoch has.

    Attributes:
        draw: from an epoch's index and a batch size to the batches.
        images: in an epoch.
        batch_size: images a batch.
    """

    draw: Callable[[int, int], Iterable[Batch]]
    images: int
    batch_size: int

    def __call__(self, epoch: int) -> Iterable[Batch]:
        """The batches of an epoch."""
        return self.draw(epoch, self.batch_size)

    @property
    def steps(self) -> int:
        """Batches in an epoch; a short last one is dropped unless it is the only one."""
        return max(1, self.images // self.batch_size)

    def redrawn(self, turn: int) -> EpochBatches:
        """The same images in another order and, where they are augmented, augmented anew; turn 0 is as it is."""
        return replace(self, draw=lambda epoch, batch_size: self.draw(epoch + turn * LONGEST, batch_size))

    def sized(self, batch_size: int) -> EpochBatches:
        """The same images in batches of another size."""
        return replace(self, batch_size=batch_size)


@dataclass(frozen=True)
class ParameterGroup:
    """Learnables that are optimised alike.

    Attributes:
        parameters: the tensors.
        lr_scale: factor of the learning rate.
        weight_decay: in place of the recipe's; None keeps that.
    """

    parameters: Sequence[nn.Parameter]
    lr_scale: float = 1.0
    weight_decay: float | None = None


def groups_of(module: nn.Module) -> list[ParameterGroup]:
    """A module's learnables by learning rate: a part's ``lr_scale`` is a factor of the recipe's.

    >>> two = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    >>> two[1].lr_scale = 0.1
    >>> [(group.lr_scale, len(group.parameters)) for group in groups_of(two)]
    [(1.0, 2), (0.1, 2)]
    """
    scales: dict[nn.Parameter, float] = {}
    for part in module.modules():  # a part stands behind what it is in
        scale = getattr(part, "lr_scale", None)
        scales |= {p: scales.get(p, 1.0) if scale is None else float(scale) for p in part.parameters()}
    learnt = [p for p in module.parameters() if p.requires_grad]
    rates = dict.fromkeys(scales[p] for p in learnt)
    return [ParameterGroup([p for p in learnt if scales[p] == rate], rate) for rate in rates]


@dataclass(frozen=True)
class PseudoLabels:
    """What a labeler says of a pool; an image may be chosen for more than one class.

    Attributes:
        index: places in the pool (M,).
        label: the class that each was chosen for (M,).
        confidence: the probability of that class (M,).
    """

    index: Tensor
    label: Tensor
    confidence: Tensor


class Feed(Protocol):
    """What there is to learn from: labelled images, a pool of images without labels, validation images.

    A pool's labels do not exist here, whatever the files are called.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, in label order."""

    @property
    def templates(self) -> tuple[str, ...]:
        """The dataset's hand-written ones."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the images' domains, which ``domain`` of a batch counts; empty if they have none."""

    @property
    def later_names(self) -> tuple[str, ...]:
        """Names of classes that are tested and not learnt from, for who asks; few methods do."""

    @property
    def selection(self) -> Selection:
        """What hyper-parameters may be chosen on, and the record of what was; see ``vlprompt.learner.selection``."""

    def batches(
        self, source: Source = "labelled", *, views: int | str | None = None, every_view: bool = False
    ) -> EpochBatches:
        """Shuffled training batches of a source, as the learner can use them: cached features, or images.

        Args:
            source: a pool's batches have no ``label``.
            views: of each image, in place of the run's: a number, or ``fresh``.
            every_view: go through all views of an image in each epoch, and not one after another in epochs; fresh ones
                are one an epoch.
        """

    def bank(self, source: Source = "labelled", *, views: int = 1, clip: FrozenCLIP | None = None) -> FeatureBank:
        """Frozen features of a source, not normalised: (V, N, D), and labels (N,), absent for a pool.

        Args:
            source: whose images.
            views: 1 is the evaluation crop; more are draws of the training transform.
            clip: another frozen model than the learner's.
        """

    @property
    def pool_classes(self) -> tuple[int, ...]:
        """Labels that the pool's images may have; all C where nothing is known."""

    def count(self, source: Source) -> int:
        """How many images a source has; none is no error."""

    def in_order(self, source: Source = "pool") -> Iterable[Batch]:
        """The images of a source once each in their order, as a test sees them and without labels."""

    def labelled_as(
        self, labels: Tensor | PseudoLabels, weights: Tensor | None = None, *, keep_labelled: bool = False
    ) -> Feed:
        """A feed whose labelled images are the pool's, with these labels; a run records them.

        Args:
            labels: what a labeler chose, or one for each image of the pool in its order (N,), where -1 leaves it out.
            weights: of the pool's images in the loss (N,).
            keep_labelled: let the images that have labels stand behind the pool's; ``pseudo`` of a batch (B,) tells
                them apart.
        """

    def where(self, *, domain: str) -> Feed:
        """A feed of one domain's images."""

    def beside(self, other: Feed) -> Feed:
        """A feed whose batches carry a batch of another feed's pool, or of its labelled images, as ``unlabeled``."""


class Train(Protocol):
    """The training loop, with the run's recipe, checkpoints and progress behind it."""

    def __call__(
        self,
        module: nn.Module,
        batches: Batches,
        *,
        stage: str = "",
        score: Callable[[], float] | None = None,
        **options: Any,
    ) -> History:
        """Train a module in place, and return a record for each epoch.

        Args:
            module: gives ``loss`` of a batch, as a learner does.
            batches: of an epoch.
            stage: names this training among several of one ``learn``. Each has a checkpoint of its own; a stage that
                was finished before an interruption gives back its end state at once.
            score: of a stage's module on held-out images, in place of the learner's, where epochs are chosen.
            options: in place of the recipe's, such as ``epochs`` or ``lr``; see ``vlprompt.training.TrainOptions``.
        """
