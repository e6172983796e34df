"""Pseudo-labelers: published rules that turn a model's predictions for a pool into labels for some of its images.

Like an objective, a labeler is written as a string: ``top_k(k=16)``, ``leaderboard``, ``threshold(at=0.9)``.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlprompt.base.devices import exact_device
from vlprompt.base.parts import Part, parse_part
from vlprompt.base.registry import Registry
from vlprompt.errors import VlpromptError, warn
from vlprompt.learner.learning import PseudoLabels


class Labeler(Part):
    """Chooses images of a pool, and a class for each.

    Attributes:
        scale: factor of the similarities in its softmax; None uses the model's logit scale.
    """

    scale: float | None = None

    def __call__(self, probabilities: Tensor) -> PseudoLabels:
        """Choose from probabilities (N, C), whose rows are the pool's images in their order."""
        raise NotImplementedError

    def of_round(self, turn: int, rounds: int, images: int, classes: int) -> Labeler:
        """The labeler for a round (0-based) out of ``rounds``, for N images and C classes; by default the same one."""
        return self

    def wanted(self, images: int, classes: int) -> int | None:
        """Number of images per class that it asks for; None if it asks for no number."""
        return None


LABELERS: Registry[type[Labeler]] = Registry("labeler", shipped="methods")


@LABELERS.register("top_k")
class TopK(Labeler):
    """The K most confident images of each predicted class, class by class, the most confident first (UPL).

    A class that no image is predicted as gets none, and others may get fewer than K.

    Args:
        k: maximum number of images per class.
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
    """A leaderboard of K places per class, to which images are offered in the pool's order (FPL, IFPL, GRIP).

    An image enters the board of its most probable class if that has a free place, or if its confidence exceeds that of
    the board's last entry. The board is then sorted, and the entry that drops out is not offered to other boards. An
    image rejected by its own class is offered to every other class in the same way, and may end on several boards:
    boards fill up, at the price of labels that no model predicted. While a board fills, its last entry is the latest
    one rather than the least confident.

    Args:
        k: places per class; None sets no limit, so that each image is labelled with its most probable class, in the
            pool's order.
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
            # boards are independent, so the order of the others does not matter
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
    """Of the 2K most probable images for a class, the K most central among them (TFUP).

    Central means a small Σ_m KL(p_j ‖ p_m) over the 2K candidates m. Each class ranks all images, so it always gets K,
    and an image may be chosen by several classes; its label is the class that chose it. Probabilities are soft,
    softmax(10·cos), since otherwise hardly any two would differ.

    Args:
        k: images per class; None uses share·N/C for N images and C classes, between ``least`` and ``most``.
        share, least, most: see ``k``; ``most=None`` sets no upper bound.
        scale: factor of the cosines in the softmax.
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
        device, probabilities = probabilities.device, probabilities.to(exact_device(probabilities.device))
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
        return PseudoLabels(index.to(device), label.to(device), probabilities[index, label].to(device))

    def wanted(self, images: int, classes: int) -> int:
        """K."""
        if self.k is not None:
            return self.k
        share = max(self.least, int(self.share * images / classes))
        return share if self.most is None else min(share, self.most)


@LABELERS.register("threshold")
class Threshold(Labeler):
    """Every image whose largest probability exceeds a threshold, with its most probable class (TFUP-T, FixMatch).

    Args:
        at: the threshold.
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
    """A labeler whose K grows from round to round until it covers the whole pool (GRIP).

    In round i of I, K = ⌊i·⌊N/I⌋/C⌋, at least 1, for N images and C classes, which are assumed to be balanced.

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
    """GRIP's K of each round, followed by that of a final set, which is labelled but not trained on.

    >>> growing_shots(10, 347, 7)
    [4, 9, 14, 19, 24, 29, 34, 38, 43, 48, 49]
    """
    return [(turn + 1) * (images // rounds) // classes for turn in range(rounds)] + [images // classes]


def label_pool(
    labeler: Labeler, logits: Tensor, model_scale: Tensor | float, classes: Sequence[int] | None = None
) -> PseudoLabels:
    """Label a pool from a model's logits.

    Args:
        labeler: the rule.
        logits: (N, C) for the pool's images, in order.
        model_scale: the logit scale contained in them.
        classes: labels that the pool's images may have; None allows all C.

    Raises:
        VlpromptError: it chooses no image.
    """
    return label_by(labeler, probabilities_of(labeler, logits, model_scale, classes), classes)


def probabilities_of(
    labeler: Labeler, logits: Tensor, model_scale: Tensor | float, classes: Sequence[int] | None = None
) -> Tensor:
    """Probabilities (N, C of the pool) for a labeler, which may be averaged over models; arguments as above."""
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
            f"{labeler.name or 'the labeler'} chooses none of the pool's {images:,} images: the highest "
            f"confidence is {float(probabilities.max()):.2f}"
        )
    if classes is None:
        return found
    return replace(found, label=torch.tensor(list(classes), device=found.label.device)[found.label])


def _at_least_one(name: str, k: int) -> int:
    if k < 1:
        raise VlpromptError(f"{name} must take at least 1 image a class, not {k}")
    return k
