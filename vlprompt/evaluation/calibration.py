"""Temperature scaling, and the probability threshold for answering, both fitted on held-out images."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor

from vlprompt.errors import VlpromptError, warn
from vlprompt.evaluation.abstention import AccuracyCoverage
from vlprompt.evaluation.metrics import Reliability
from vlprompt.learner.calibration import MOST_POINTS, Calibration, Curve
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.facts import Facts

BOUNDS = (-4.0, 4.0)  # of the temperature's logarithm: 0.018 to 55
NEAR = 1e-3  # distance from the upper bound that counts as reaching it


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T that minimises the negative log-likelihood of softmax(logits / T).

    It is a single scalar, as in Guo et al. (ICML 2017, arXiv:1706.04599, §4.2). The log-likelihood is concave in 1/T,
    so it has one optimum, unless all images are classified correctly: then a smaller T is always better, and T is 1.

    Args:
        logits: of held-out images (N, C).
        labels: of these images (N,).
    """
    if bool((logits.argmax(dim=1) == labels).all()):
        warn(
            f"all {len(labels)} held-out images are classified correctly, so no temperature can be estimated: it stays "
            "1; more images may help"
        )
        return 1.0
    from scipy.optimize import minimize_scalar

    scores = logits.double()
    minimum = minimize_scalar(
        lambda log_t: float(F.cross_entropy(scores / math.exp(log_t), labels)),
        bounds=BOUNDS,
        method="bounded",
        options={"xatol": 1e-7},
    )
    if minimum.x > BOUNDS[1] - NEAR:
        warn(
            f"on {len(labels)} held-out images the learner is not more often right where it is more confident: the "
            f"temperature is at its upper bound, {math.exp(BOUNDS[1]):.0f}, where all classes are about equally likely"
        )
    return math.exp(minimum.x)


def calibrate(
    logits: Tensor,
    labels: Tensor,
    on: Literal["val", "cross_fit"],
    *,
    temperature: bool = True,
    coverage: float | None = None,
) -> Calibration:
    """Fit the calibration of a learner on held-out images.

    Args:
        logits: (N, C), of images that the learner was not trained on.
        labels: (N,).
        on: where the images come from.
        temperature: whether to fit one, see ``fit_temperature``.
        coverage: share in (0, 1] of images to answer; the threshold is the highest at which at least so many are.

    Raises:
        VlpromptError: there are no images.
    """
    if not len(labels):
        raise VlpromptError("no image is held out to calibrate the learner on")
    logits, labels = logits.detach().float().cpu(), labels.cpu()
    t = fit_temperature(logits, labels) if temperature else 1.0
    confidence, predicted = (logits / t).softmax(dim=1).max(dim=1)
    curve = AccuracyCoverage.of(confidence.numpy(), (predicted == labels).numpy())
    before, after = (100 * Reliability.of(labels, logits / each).expected_calibration_error for each in (1.0, t))
    kept = curve.to_lists(MOST_POINTS)
    lists = Curve(threshold=kept["threshold"], coverage=kept["coverage"], accuracy=kept["accuracy"])
    calibration = Calibration(on, len(labels), lists, before, after, t)
    if coverage is None:
        return calibration
    return replace(calibration, coverage=coverage, min_probability=_threshold(curve, coverage))


def refuse_facts(asked: str, method: str, facts: Facts) -> None:
    """Raise a ``VlpromptError`` for learners whose probabilities depend on other test images or on tuning.

    Args:
        asked: the setting that asks for a calibration, for the error.
        method: its name.
        facts: the learner's facts.
    """
    if facts.predicts != "alone":
        raise VlpromptError(f"{asked} is not possible: {method} predicts an image from the other test images too")
    if "views" in facts.inputs:
        raise VlpromptError(f"{asked} is not possible: {method} is tuned on views of each test image")


def threshold_of(
    calibration: Calibration | None, min_probability: float | None = None, coverage: float | None = None
) -> float | None:
    """Return the smallest probability with which an image is answered; None answers all.

    Args:
        calibration: the learner's.
        min_probability: the threshold, in [0, 1]; None takes that of the calibration, if it has one.
        coverage: share in (0, 1] of images to answer, from which the calibration gives the threshold.

    Raises:
        VlpromptError: both are given, one is out of its range, or a coverage is given without a calibration.
    """
    if min_probability is not None and coverage is not None:
        raise VlpromptError("min_probability and coverage both set the threshold for answering: give one of them")
    if coverage is not None:
        check_share("coverage", coverage)
        if calibration is None:
            raise VlpromptError(
                "coverage needs a learner that was calibrated on held-out images: train it with calibrate=temperature "
                "(or coverage=), or give min_probability"
            )
        if coverage == calibration.coverage and calibration.min_probability is not None:
            return calibration.min_probability  # exact, while the saved curve has at most a hundred points
        return _threshold(AccuracyCoverage.from_lists(cast(Any, calibration.curve)), coverage)
    if min_probability is not None:
        return check_share("min_probability", min_probability, least=0)
    return None if calibration is None else calibration.min_probability


def threshold_for(
    learner: PromptLearner, min_probability: float | None = None, coverage: float | None = None
) -> float | None:
    """``threshold_of`` a learner, whose calibration is valid only for the classes that it was trained on.

    Raises:
        VlpromptError: as ``threshold_of``, or a coverage is given for other classes.
    """
    own = set(learner.class_names) == set(learner.trained_names)
    if coverage is not None and learner.calibration is not None and not own:
        raise VlpromptError(
            "coverage is only known for the classes that the learner was trained on: give min_probability"
        )
    return threshold_of(learner.calibration if own else None, min_probability, coverage)


def check_share(name: str, value: object, least: float | None = None) -> float:
    """Return a number in (0, 1], or one that equals ``least``; raise a ``VlpromptError`` otherwise."""
    number = isinstance(value, Real) and not isinstance(value, bool)  # also NumPy's, as grids contain them
    if not number or not (0 < float(value) <= 1 or value == least):  # type: ignore[arg-type]
        above = "above 0" if least is None else f"of at least {least:g}"
        raise VlpromptError(f"{name} must be a number {above} and at most 1, not {value!r}")
    return float(value)  # type: ignore[arg-type]


def _threshold(curve: AccuracyCoverage, coverage: float) -> float:
    return 0.0 if coverage == 1 else curve.threshold_for(coverage)  # 1 means all images, also those to come
