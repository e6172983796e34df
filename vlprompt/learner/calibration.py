"""Calibration on held-out images: a temperature, and the probability from which a learner answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from vlprompt.base.schema import read_as, strict
from vlprompt.errors import VlpromptError

NO_CALIBRATION, TEMPERATURE = "none", "temperature"
CALIBRATIONS = (NO_CALIBRATION, TEMPERATURE)
MOST_POINTS = 100  # of the curve that is kept
Share = Annotated[float, Field(ge=0, le=1 + 1e-6)]
Percent = Annotated[float, Field(ge=0, le=100 + 1e-6)]
Shares = Annotated[list[Share], Field(min_length=1, max_length=MOST_POINTS)]
SOURCES = {"val": "few-shot val images", "cross_fit": "training images, each scored by a learner that did not see it"}


@strict()
class Curve(TypedDict):
    """Accuracy by coverage, one entry per threshold, the highest first; see ``vlprompt.evaluation.abstention``."""

    threshold: Shares
    coverage: Shares
    accuracy: Shares


@strict()
@dataclass(frozen=True)
class Calibration:
    """Temperature and threshold found on images that the learner was not trained on, none of them a test image.

    Attributes:
        on: ``val``, the few-shot validation draw, or ``cross_fit``, the training images, each scored by a learner that
            was trained without it.
        images: how many.
        curve: accuracy by coverage on them, at the temperature.
        ece_before, ece_after: expected calibration error on them without and with the temperature, in percentage
            points, 15 bins.
        temperature: divisor of the logits before the softmax (Guo et al., ICML 2017, arXiv:1706.04599, §4.2).
        coverage: share of images that the learner is to answer; None for all.
        min_probability: the threshold that follows: images with a lower largest probability are not answered.
    """

    on: Literal["val", "cross_fit"]
    images: Annotated[int, Field(ge=1)]
    curve: Curve = field(repr=False)
    ece_before: Percent
    ece_after: Percent
    temperature: Annotated[float, Field(gt=1e-3, lt=1e3)] = 1.0
    coverage: Annotated[float, Field(gt=0, le=1)] | None = None
    min_probability: Share | None = None


def read_calibration(values: object, where: str) -> Calibration:
    """Make a calibration from JSON values, which may come from anyone.

    Raises:
        VlpromptError: a field has the wrong type or range, or the curve's lists differ in length.
    """
    found = read_as(Calibration, values, where)
    if len({len(found.curve[name]) for name in ("threshold", "coverage", "accuracy")}) > 1:
        raise VlpromptError(f"{where}, curve: its lists differ in length")
    return found


def say_calibration(found: Calibration) -> str:
    """What was fitted on which images and how it changed the calibration error, as a sentence."""
    told = f"temperature {found.temperature:.3g}, " if found.temperature != 1 else ""
    told += f"calibration error {found.ece_before:.1f}"
    told += f" → {found.ece_after:.1f} points" if found.temperature != 1 else " points"
    told += f" on {found.images} {SOURCES[found.on]}"
    if found.min_probability is not None:
        told += f"; answers from {found.min_probability:.3g} on, so that {found.coverage:.0%} of them are answered"
    return told
