"""One test of a learner, as a result has it: accuracies, counts by class, reliability."""

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
    """How often a learner is right by its confidence, one entry a bin."""

    images: list[Count]
    confidence: list[Share]
    accuracy: list[Share]


@strict()
class Selective(TypedDict):
    """Accuracy of the images that are answered, the surest first; one entry a share of them."""

    threshold: list[Share]
    coverage: list[Share]
    accuracy: list[Share]


@strict()
class Answered(TypedDict):
    """What a learner answers of a test that is told to leave out what it is not sure of."""

    min_probability: Share
    coverage: Share
    accuracy: Share | None


PerClass = TypedDict(
    "PerClass",
    {"class": list[str], "images": list[Count], "correct": list[Count], "zero_shot_correct": list[Count]},
)
PerClass.__doc__ = "What was right of each class, one entry a class in label order."
strict()(PerClass)


@strict()
@dataclass(frozen=True)
class Row:
    """One test of the learner; accuracies in percent.

    Attributes:
        target: name of the test in its protocol, such as ``base``.
        dataset: whose test images they are.
        n_classes: C, the classes that are told apart.
        n_images: test images that were scored.
        accuracy: top-1.
        macro_accuracy: mean of the classes' own accuracies.
        zero_shot, zero_shot_macro: the same of the frozen model with the dataset's hand-written templates.
        split: SHA-256 of the tested classes and images.
        top5, zero_shot_top5: share of images whose label is among the five likeliest; None below six classes.
        ece, zero_shot_ece: expected calibration error in percentage points, 15 bins.
        per_class: lists ``class``, ``images``, ``correct``, ``zero_shot_correct``, one entry a class in label order.
        reliability: lists ``images``, ``confidence``, ``accuracy`` in [0, 1], one entry a bin of confidence.
        format_spread: zero-shot accuracy by template, if it was asked for.
        draws: accuracies with other draws of what the learner draws at a test, such as noise; None if it draws nothing.
        predicts: whether the learner predicted each image ``alone``, as in all results that do not tell; ``online``; or
            ``jointly`` with the others of the test (see ``vlprompt.learner.facts``).
        order: of what was predicted online, the seed that the order of the test images follows from; else None.
        familiar: what the classes are to the learner: ``trained``, those that it was trained on; ``shifted``, those in
            images of another dataset or domain; or ``new``. None in results that do not tell.
        parts: accuracy of each part of the logits by itself, where several were fused; else None.
        uncalibrated_ece: the learner's ``ece`` without the temperature that was fitted; None if none was.
        aurc, zero_shot_aurc: area under the risk–coverage curve in percent (see ``vlprompt.evaluation.abstention``).
        selective: lists ``threshold``, ``coverage``, ``accuracy`` in [0, 1]: of the images whose largest probability
            is from ``threshold`` on, their share of all and how many of them are right.
        answered: of a learner that is told to leave out what it is not sure of: ``min_probability``, the ``coverage``
            and ``accuracy`` of what it answers; else None.

    What stands after ``split``, but for ``predicts``, is None in results of schema 1, and what stands after ``parts``
    in results of earlier versions.
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
