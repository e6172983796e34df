"""What a learner is, in one object that every room asks: the learner's ``facts``, narrowed by its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Facts:
    """What is true of a method or, narrowed by settings, of one learner.

    Attributes:
        paper: arXiv id or citation.
        trains: of ``text``, ``vision`` and ``head``, what learns by gradient; empty for training-free methods.
        new_classes: whether it can score classes that it did not see.
        cacheable_images: whether the frozen tower's features are all that it needs of an image, so that they can be
            computed once.
        classifier: class features ``shared`` by all images, (C, D), or ``per_image``, (B, C, D).
        head: whether logits are more than similarities of image and class features.
        inputs: what a test batch must carry: ``image``, ``views``, ``mask``.
        labels: whether labelled images are ``needed``, ``some`` of them beside a pool, or ``none``.
        paper_settings: what images the authors chose hyper-parameters on, for ``selection=paper``: ``none``, ``val``
            (a few a class), ``whole_val`` or ``test``; None if that is not recorded.
        paper_epoch: what images they chose the epoch on: ``last`` if on none.
    """

    paper: str
    trains: frozenset[str] = frozenset()
    new_classes: bool = True
    cacheable_images: bool = True
    classifier: Literal["shared", "per_image"] = "shared"
    head: bool = False
    inputs: tuple[str, ...] = ("image",)
    labels: Literal["needed", "some", "none"] = "needed"
    paper_settings: Literal["none", "val", "whole_val", "test"] | None = None
    paper_epoch: Literal["last", "val", "whole_val", "test"] = "last"
