"""``Row``: one test of a learner in a result: accuracies, counts by class, reliability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from vlprompt.base.schema import strict
from vlprompt.learner.facts import Familiar, Predicts

Count = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100 + 1e-9)]
Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]


@strict()
class Reliability(TypedDict):
    """Accuracy of a learner by its confidence, one entry per bin."""

    images: list[Count]
    confidence: list[Share]
    accuracy: list[Share]


@strict()
class Selective(TypedDict):
    """The accuracy–coverage curve, one entry per threshold."""

    threshold: list[Share]
    coverage: list[Share]
    accuracy: list[Share]


@strict()
class Answered(TypedDict):
    """Coverage and accuracy of a learner that leaves images below a threshold unanswered."""

    min_probability: Share
    coverage: Share
    accuracy: Share | None


PerClass = TypedDict(
    "PerClass",
    {"class": list[str], "images": list[Count], "correct": list[Count], "zero_shot_correct": list[Count]},
)
PerClass.__doc__ = "Images and correct predictions of each class, in label order."
strict()(PerClass)


@strict()
@dataclass(frozen=True)
class Row:
    """One test of the learner; accuracies in percent.

    Attributes:
        target: name of the test in its protocol, such as ``base``.
        dataset: name of the dataset that is tested on.
        n_classes: C, the number of classes among which images are classified.
        n_images: number of test images.
        accuracy: top-1.
        macro_accuracy: mean over classes of their accuracies.
        zero_shot, zero_shot_macro: the same for the frozen model with the dataset's hand-written templates.
        split: SHA-256 of the tested classes and images.
        top5, zero_shot_top5: share of images whose label is among the five most likely; None below six classes.
        ece, zero_shot_ece: expected calibration error in percentage points, with 15 bins.
        per_class: lists ``class``, ``images``, ``correct``, ``zero_shot_correct``, one entry per class in label order.
        reliability: lists ``images``, ``confidence``, ``accuracy`` in [0, 1], one entry per bin of confidence.
        format_spread: zero-shot accuracy by template, if requested.
        draws: accuracies with other draws of what the learner draws in a test, such as noise; None if it draws nothing.
        predicts: whether the learner predicted each image ``alone``, ``online``, or ``jointly`` with the others of the
            test (see ``vlprompt.learner.facts``).
        order: for online prediction, the seed of the order of the test images; else None.
        familiar: whether the classes were ``trained`` on, trained on in another dataset or domain (``shifted``), or are
            ``new``; None in older results.
        parts: accuracy of each part of the logits alone, if several were fused; else None.
        uncalibrated_ece: ``ece`` without the fitted temperature; None if none was fitted.
        aurc, zero_shot_aurc: area under the risk–coverage curve in percent (see ``vlprompt.evaluation.abstention``).
        selective: lists ``threshold``, ``coverage``, ``accuracy`` in [0, 1]: the share of images whose largest
            probability is at least ``threshold``, and the accuracy on them.
        answered: if there is a threshold for answering, ``min_probability``, and the ``coverage`` and ``accuracy`` of
            the answered images; else None.

    Fields after ``split``, except ``predicts``, are None in results of schema 1; fields after ``parts`` are None in
    results of earlier versions.
    """

    target: str
    dataset: str
    n_classes: Annotated[int, Field(ge=1)]
    n_images: Annotated[int, Field(ge=1)]
    accuracy: Percent
    macro_accuracy: Percent
    zero_shot: Percent
    zero_shot_macro: Percent
    split: str
    top5: Percent | None = None
    zero_shot_top5: Percent | None = None
    ece: Percent | None = None
    zero_shot_ece: Percent | None = None
    per_class: PerClass | None = None
    reliability: Reliability | None = None
    format_spread: dict[str, Percent] | None = None
    draws: list[Percent] | None = None
    predicts: Predicts = "alone"
    order: int | None = None
    familiar: Familiar | None = None
    parts: dict[str, Percent] | None = None
    uncalibrated_ece: Percent | None = None
    aurc: Percent | None = None
    zero_shot_aurc: Percent | None = None
    selective: Selective | None = None
    answered: Answered | None = None
