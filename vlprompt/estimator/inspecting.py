"""``PromptClassifier.report``: a fitted classifier evaluated image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vlprompt.analysis.data_findings import TEST, find_in_features
from vlprompt.analysis.inspection import Inspection, as_predictions
from vlprompt.data import as_rgb
from vlprompt.data.streaming import is_preprocessed
from vlprompt.errors import VlpromptError
from vlprompt.estimator.inputs import PATHS
from vlprompt.evaluation.prediction import image_features
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.creation import create_learner


def inspect_classifier(
    learner: PromptLearner,
    predict: Callable[[Any], np.ndarray],
    X: Any,
    labels: np.ndarray,
    check_data: bool,
    threads: int,
) -> Inspection:
    """Evaluate a learner image by image, and compare it with zero-shot CLIP.

    Args:
        learner: fitted.
        predict: returns its probabilities (N, C) for images or features.
        X: the images as a sequence, or their features (N, D).
        labels: indices (N,) of the true classes, in the order of the learner's.
        check_data: look for label errors and near-duplicates.
        threads: number that decode images.
    """
    features = isinstance(X, np.ndarray)
    rows = X if features else image_features(learner.clip, X, threads=threads)
    probabilities = torch.from_numpy(predict(rows if _takes_features(learner) else X))
    zero_shot = create_learner("zero_shot", learner.clip, learner.class_names, templates=learner.templates)
    with torch.no_grad():
        frozen = zero_shot.eval()({"image_features": torch.from_numpy(rows).to(learner.clip.device)}).logits
    names = [str(x) if isinstance(x, PATHS) else f"X[{i}]" for i, x in enumerate([None] * len(X) if features else X)]
    shown = not features and not is_preprocessed(X[0])
    open_image = (lambda index: as_rgb(X[index], names[index])) if shown else None
    classes = learner.class_names
    findings = find_in_features(rows, labels, classes, names, [TEST] * len(rows), open_image) if check_data else None
    return Inspection(
        f"{learner.method} on {len(rows):,} images",
        tuple(classes),
        names,
        as_predictions(torch.from_numpy(labels), probabilities, frozen.float().cpu()),
        learner.facts.predicts,
        open_image,
        {"method": learner.method, "backbone": learner.clip.name},
        findings,
    )


def _takes_features(learner: PromptLearner) -> bool:
    """Whether a learner predicts from the frozen model's image features alone."""
    plain = learner.test_views is None and "mask" not in learner.facts.inputs and learner.tower is learner.clip
    return plain and not learner.predicts_from_images


def positions_of(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The index (N,) of each label among the sorted classes (C,).

    Raises:
        VlpromptError: a label is not among them.
    """
    unknown = np.setdiff1d(y, classes)
    if len(unknown):
        raise VlpromptError(f"the label {unknown.tolist()[0]!r} is not one of the classes that were learnt")
    positions: np.ndarray = np.searchsorted(classes, y)
    return positions
