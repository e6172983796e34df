"""Temperature scaling, and from what probability on a learner answers: both chosen on images that are held out."""

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

WIDEST = (-4.0, 4.0)  # of the temperature's logarithm: 0.018 to 55
NEAR = 1e-3  # the end of it


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T with which softmax(logits / T) has the least negative log-likelihood.

    One scalar, as Guo et al. (ICML 2017, arXiv:1706.04599, §4.2) fit it. The likelihood has one optimum, since it is
    concave in 1/T; there is none where all images are right, with which a smaller T is always likelier: then T is 1.

    Args:
        logits: of held-out images (N, C).
        labels: theirs (N,).
    """
    if bool((logits.argmax(dim=1) == labels).all()):
        warn(
            f"all {len(labels)} held-out images are classified correctly, so no temperature can be estimated: it stays "
            "1; more images may help"
        )
        return 1.0
    from scipy.optimize import minimize_scalar

    scores = logits.double()
    found = minimize_scalar(
        lambda log_t: float(F.cross_entropy(scores / math.exp(log_t), labels)),
        bounds=WIDEST,
        method="bounded",
        options={"xatol": 1e-7},
    )
    if found.x > WIDEST[1] - NEAR:
        warn(
            f"on {len(labels)} held-out images the learner is right no more often where it is surer: the temperature "
            f"ends at its largest, {math.exp(WIDEST[1]):.0f}, where all classes are about equally likely"
        )
    return math.exp(found.x)


def calibrate(
    logits: Tensor,
    labels: Tensor,
    on: Literal["val", "cross_fit"],
    *,
    temperature: bool = True,
    coverage: float | None = None,
) -> Calibration:
    """Return what held-out images say of a learner's probabilities.

    Args:
        logits: (N, C), of a learner that was trained on none of the images that it scores.
        labels: (N,).
        on: where the images are from.
        temperature: whether to fit one, see ``fit_temperature``.
        coverage: share in (0, 1] of images to answer; the threshold is the highest with which so many are.

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
    kept = curve.kept(MOST_POINTS)
    lists = Curve(threshold=kept["threshold"], coverage=kept["coverage"], accuracy=kept["accuracy"])
    found = Calibration(on, len(labels), lists, before, after, t)
    return found if coverage is None else replace(found, coverage=coverage, min_probability=_threshold(curve, coverage))


def refuse_facts(asked: str, method: str, facts: Facts) -> None:
    """Refuse learners whose probabilities depend on more than an image, of which held-out ones tell nothing."""
    if facts.predicts != "alone":
        raise VlpromptError(f"{asked} is not possible: {method} predicts an image from the other test images too")
    if "views" in facts.inputs:
        raise VlpromptError(f"{asked} is not possible: {method} is tuned on views of each test image")


def threshold_of(
    found: Calibration | None, min_probability: float | None = None, coverage: float | None = None
) -> float | None:
    """From what largest probability on to answer; None to answer every image.

    Args:
        found: the learner's calibration.
        min_probability: in [0, 1], what is asked for.
        coverage: share in (0, 1] of images to answer, whose threshold the calibration tells.

    Raises:
        VlpromptError: both are asked for, one is out of its range, or the learner has no calibration.
    """
    if min_probability is not None and coverage is not None:
        raise VlpromptError("min_probability and coverage both set the threshold for answering: give one of them")
    if coverage is not None:
        check_share("coverage", coverage)
        if found is None:
            raise VlpromptError(
                "coverage needs a learner that was calibrated on held-out images: train it with calibrate=temperature "
                "(or coverage=), or give min_probability"
            )
        if coverage == found.coverage and found.min_probability is not None:
            return found.min_probability  # of all images, where the curve has a hundred points
        return _threshold(AccuracyCoverage.from_kept(cast(Any, found.curve)), coverage)
    if min_probability is not None:
        return check_share("min_probability", min_probability, least=0)
    return None if found is None else found.min_probability


def threshold_for(
    learner: PromptLearner, min_probability: float | None = None, coverage: float | None = None
) -> float | None:
    """``threshold_of`` a learner, whose calibration is of the classes that it was trained on.

    Raises:
        VlpromptError: as there, or a coverage is asked for among other classes.
    """
    own = set(learner.class_names) == set(learner.trained_names)
    if coverage is not None and learner.calibration is not None and not own:
        raise VlpromptError(
            "coverage is only known for the classes that the learner was trained on: give min_probability"
        )
    return threshold_of(learner.calibration if own else None, min_probability, coverage)


def check_share(name: str, value: object, least: float | None = None) -> float:
    """Return a share: above 0, or from ``least`` on, and at most 1; or raise a ``VlpromptError``."""
    number = isinstance(value, Real) and not isinstance(value, bool)  # NumPy's own, too, as grids hold them
    if not number or not (0 < float(value) <= 1 or value == least):  # type: ignore[arg-type]
        above = "above 0" if least is None else f"of at least {least:g}"
        raise VlpromptError(f"{name} must be a number {above} and at most 1, not {value!r}")
    return float(value)  # type: ignore[arg-type]


def _threshold(curve: AccuracyCoverage, coverage: float) -> float:
    return 0.0 if coverage == 1 else curve.threshold_for(coverage)  # all means all, whatever comes later
