"""Pseudo-labelers: from what a model says of a pool to labels for some of its images, each by a published rule.

A labeler is written as a string, as objectives are: ``top_k(k=16)``, ``leaderboard``, ``threshold(at=0.9)``.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlprompt.base.parts import Part, parse_part
from vlprompt.base.registry import Registry
from vlprompt.errors import VlpromptError, warn
from vlprompt.learner.learning import PseudoLabels


class Labeler(Part):
    """Chooses images of a pool, and a class for each.

    Attributes:
        scale: of the similarities that its probabilities are made of; None takes the model's own.
    """

    scale: float | None = None

    def __call__(self, probabilities: Tensor) -> PseudoLabels:
        """Choose from probabilities (N, C), whose rows are the pool's images in their order."""
        raise NotImplementedError

    def of_round(self, turn: int, rounds: int, images: int, classes: int) -> Labeler:
        """The labeler of a round (0-based) out of ``rounds``, for N images and C classes; by default the same."""
        return self

    def wanted(self, images: int, classes: int) -> int | None:
        """Images of each class that it asks for; None if it asks for no number."""
        return None


LABELERS: Registry[type[Labeler]] = Registry("labeler", shipped="methods")


@LABELERS.register("top_k")
class TopK(Labeler):
    """The K surest images of each predicted class, class by class, the surest first (UPL).

    A class that no image is taken for gets none, and another may get fewer than K; nothing else is asked of them.

    Args:
        k: images a class, at most.
    """

    def __init__(self, k: int = 16):
        self.k = _at_least_one("top_k", k)

    def __call__(self, probabilities: Tensor) -> PseudoLabels:
        """Choose from probabilities (N, C); of several models their mean."""
        confidence, predicted = probabilities.max(dim=1)
        index = []
        for c in range(probabilities.shape[1]):
            of_class = (predicted == c).nonzero().squeeze(1)
            index.append(of_class[confidence[of_class].argsort(descending=True, stable=True)[: self.k]])
        chosen = torch.cat(index)
        return PseudoLabels(chosen, predicted[chosen], confidence[chosen])

    def wanted(self, images: int, classes: int) -> int | None:
        """K."""
        return self.k


@LABELERS.register("leaderboard")
class Leaderboard(Labeler):
    """A board of K places for each class, to which images come in the pool's order (FPL, IFPL, GRIP).

    An image is entered on the board of its most probable class if that has a free place, or if it is surer than the
    board's last entry; the board is then sorted, and what falls off it is offered to no other. An image that its own
    class rejects is offered to every other class in the same way, and may end on several boards: so boards fill up, at
    the price of labels that no model gave. While a board fills, its last entry is the latest and not the weakest.

    Args:
        k: places a class; None sets no limit, so that each image is labelled by its most probable class, in the pool's
            order.
    """

    def __init__(self, k: int | None = 16):
        self.k = None if k is None else _at_least_one("leaderboard", k)

    def __call__(self, probabilities: Tensor) -> PseudoLabels:
        """Choose from probabilities (N, C)."""
        if self.k is None:
            confidence, predicted = probabilities.max(dim=1)
            return PseudoLabels(torch.arange(len(predicted), device=predicted.device), predicted, confidence)
        classes = probabilities.shape[1]
        boards = [_Board(self.k) for _ in range(classes)]
        to_beat = torch.full((classes,), -1.0, dtype=probabilities.dtype)  # the last entry of each full board
        for index, row in enumerate(probabilities.detach().cpu()):
            beaten = row > to_beat
            top = int(row.argmax())
            # each board is a matter of its own, so that the order of the others does not matter
            for c in [top] if beaten[top] else beaten.nonzero().flatten().tolist():
                boards[c].enter(float(row[c]), index)
                to_beat[c] = boards[c].to_beat
        entries = [(index, c) for c, board in enumerate(boards) for _, index in board.entries]
        chosen, label = (torch.tensor(each, device=probabilities.device) for each in zip(*entries, strict=True))
        return PseudoLabels(chosen, label, probabilities[chosen, label])

    def wanted(self, images: int, classes: int) -> int | None:
        """K."""
        return self.k


class _Board:
    """The places of one class: (confidence, index) in the order of arrival, and sorted once somebody was displaced."""

    def __init__(self, places: int):
        self.places = places
        self.entries: list[tuple[float, int]] = []
        self.sorted = False

    @property
    def to_beat(self) -> float:
        return self.entries[-1][0] if len(self.entries) == self.places else -1.0

    def enter(self, confidence: float, index: int) -> None:
        if len(self.entries) < self.places:
            self.entries.append((confidence, index))
            return
        if not self.sorted:
            self.entries.sort(key=_surest_first)
            self.sorted = True
        self.entries.insert(bisect(self.entries, -confidence, key=_surest_first), (confidence, index))
        self.entries.pop()


def _surest_first(entry: tuple[float, int]) -> float:
    return -entry[0]


@LABELERS.register("prototype_kl")
class PrototypeKL(Labeler):
    """Of the 2K images most probable for a class, the K that lie most central among them (TFUP).

    Central is a small Σ_m KL(p_j ‖ p_m) over the 2K candidates m. Each class ranks all images, so that it always gets
    its K, and an image may be chosen for several classes; its label is the class that chose it. Probabilities are soft,
    softmax(10·cos), or else hardly any two differ.

    Args:
        k: images a class; None takes share·N/C of N images and C classes, between ``least`` and ``most``.
        share, least, most: see ``k``; ``most=None`` sets no upper bound.
        scale: of the cosines that probabilities are made of.
    """

    def __init__(
        self, k: int | None = None, share: float = 0.3, least: int = 9, most: int | None = 16, scale: float = 10.0
    ):
        self.k = None if k is None else _at_least_one("prototype_kl", k)
        self.share, self.least, self.most, self.scale = share, _at_least_one("prototype_kl", least), most, scale

    def __call__(self, probabilities: Tensor) -> PseudoLabels:
        """Choose from probabilities (N, C), class by class, the most central first."""
        images, classes = probabilities.shape
        k = min(self.wanted(images, classes), images)
        # double precision: the sums are differences of numbers that are nearly equal
        p = probabilities.double()
        log_p = p.clamp_min(torch.finfo(torch.double).tiny).log()
        candidates = probabilities.argsort(dim=0, descending=True, stable=True)[: 2 * k]  # (2K, C)
        chosen = []
        for c in range(classes):
            of_class = candidates[:, c]
            mine, logs = p[of_class], log_p[of_class]  # (2K, C)
            apart = len(of_class) * (mine * logs).sum(dim=1) - mine @ logs.sum(dim=0)  # Σ_m KL(p_j ‖ p_m)
            chosen.append(of_class[apart.argsort(stable=True)[:k]])
        index = torch.cat(chosen)
        label = torch.arange(classes, device=index.device).repeat_interleave(k)
        return PseudoLabels(index, label, probabilities[index, label])

    def wanted(self, images: int, classes: int) -> int:
        """K."""
        if self.k is not None:
            return self.k
        share = max(self.least, int(self.share * images / classes))
        return share if self.most is None else min(share, self.most)


@LABELERS.register("threshold")
class Threshold(Labeler):
    """Every image whose largest probability is above a threshold, by its most probable class (TFUP-T, FixMatch).

    Args:
        at: the threshold, which must be exceeded.
    """

    def __init__(self, at: float = 0.9):
        if not 0 <= at < 1:
            raise VlpromptError(f"threshold(at={at}) must be at least 0 and below 1")
        self.at = at

    def __call__(self, probabilities: Tensor) -> PseudoLabels:
        """Choose from probabilities (N, C), in the order of the images."""
        confidence, predicted = probabilities.max(dim=1)
        index = (confidence > self.at).nonzero().squeeze(1)
        return PseudoLabels(index, predicted[index], confidence[index])


@LABELERS.register("growing")
class Growing(Labeler):
    """A labeler whose K grows from round to round until it takes the whole pool (GRIP).

    In round i of I, K = ⌊i·⌊N/I⌋/C⌋, at least 1, of N images and C classes, which are taken to be about equally many.

    Args:
        of: the labeler whose K it sets, ``leaderboard`` or ``top_k``.
    """

    def __init__(self, of: str = "leaderboard"):
        if of not in ("leaderboard", "top_k"):
            raise VlpromptError(f"growing(of={of}) must be of leaderboard or top_k, which have a K that can grow")
        self.of = of

    def __call__(self, probabilities: Tensor) -> PseudoLabels:
        """Choose from probabilities (N, C) as in the only round of one."""
        return self.of_round(0, 1, *probabilities.shape)(probabilities)

    def of_round(self, turn: int, rounds: int, images: int, classes: int) -> Labeler:
        """The labeler with the K of a round."""
        return parse_part(f"{self.of}(k={max(1, growing_shots(rounds, images, classes)[turn])})", LABELERS)


def growing_shots(rounds: int, images: int, classes: int) -> list[int]:
    """GRIP's K of each round, and one more: that of the set which is labelled after the last and trained on by none.

    >>> growing_shots(10, 347, 7)
    [4, 9, 14, 19, 24, 29, 34, 38, 43, 48, 49]
    """
    return [(turn + 1) * (images // rounds) // classes for turn in range(rounds)] + [images // classes]


def label_pool(
    labeler: Labeler, logits: Tensor, model_scale: Tensor | float, classes: Sequence[int] | None = None
) -> PseudoLabels:
    """Label a pool by what a model says of it.

    Args:
        labeler: whose rule it is.
        logits: (N, C) of the pool's images in their order.
        model_scale: the logit scale that is in them.
        classes: labels that the pool's images may have; None allows all C.

    Raises:
        VlpromptError: it chooses no image.
    """
    return label_by(labeler, probabilities_of(labeler, logits, model_scale, classes), classes)


def probabilities_of(
    labeler: Labeler, logits: Tensor, model_scale: Tensor | float, classes: Sequence[int] | None = None
) -> Tensor:
    """Probabilities (N, C of the pool) as a labeler takes them, of which several models' may be averaged; see above."""
    if classes is not None:
        logits = logits[:, torch.tensor(list(classes), device=logits.device)]
    return (logits if labeler.scale is None else logits * (labeler.scale / model_scale)).softmax(dim=1)


def label_by(labeler: Labeler, probabilities: Tensor, classes: Sequence[int] | None = None) -> PseudoLabels:
    """Label a pool by probabilities (N, C of the pool); their columns are those of ``classes``, if given.

    Raises:
        VlpromptError: it chooses no image.
    """
    images, columns = probabilities.shape
    wanted = labeler.wanted(images, columns)
    if wanted is not None and wanted * columns > images:
        warn(
            f"the pool has {images:,} images, fewer than {labeler.name or 'the labeler'} asks for: {wanted} for each "
            f"of {columns} classes"
        )
    found = labeler(probabilities)
    if not len(found.index):
        raise VlpromptError(
            f"{labeler.name or 'the labeler'} chooses none of the pool's {images:,} images: the surest is "
            f"{float(probabilities.max()):.2f} sure"
        )
    if classes is None:
        return found
    return replace(found, label=torch.tensor(list(classes), device=found.label.device)[found.label])


def _at_least_one(name: str, k: int) -> int:
    if k < 1:
        raise VlpromptError(f"{name} must take at least 1 image a class, not {k}")
    return k
