"""A fitted classifier looked at image by image."""

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
    """An inspection of what a learner says of images or of features in hand.

    Args:
        learner: that was fitted.
        predict: returns its probabilities (N, C) of images or features.
        X: the images as a sequence, or their features (N, D).
        labels: (N,) places of the right classes among the learner's.
        check_data: look for label errors and near-duplicates.
        threads: that decode images.
    """
    features = isinstance(X, np.ndarray)
    rows = X if features else image_features(learner.clip, X, threads=threads)
    said = torch.from_numpy(predict(rows if _takes_features(learner) else X))
    zero_shot = create_learner("zero_shot", learner.clip, learner.class_names, templates=learner.templates)
    with torch.no_grad():
        frozen = zero_shot.eval()({"image_features": torch.from_numpy(rows).to(learner.clip.device)}).logits
    names = [str(x) if isinstance(x, PATHS) else f"X[{i}]" for i, x in enumerate([None] * len(X) if features else X)]
    shown = not features and not is_preprocessed(X[0])
    open_image = (lambda place: as_rgb(X[place], names[place])) if shown else None
    classes = learner.class_names
    found = find_in_features(rows, labels, classes, names, [TEST] * len(rows), open_image) if check_data else None
    return Inspection(
        f"{learner.method} on {len(rows):,} images",
        tuple(classes),
        names,
        as_predictions(torch.from_numpy(labels), said, frozen.float().cpu()),
        learner.facts.predicts,
        open_image,
        {"method": learner.method, "backbone": learner.clip.name},
        found,
    )


def _takes_features(learner: PromptLearner) -> bool:
    """Whether the frozen model's features of an image are all that a learner needs of it."""
    plain = learner.test_views is None and "mask" not in learner.facts.inputs and learner.tower is learner.clip
    return plain and not learner.predicts_from_images


def places_of(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The places (N,) of labels among the classes that are known.

    Raises:
        VlpromptError: a label is none of them.
    """
    unknown = np.setdiff1d(y, classes)
    if len(unknown):
        raise VlpromptError(f"the label {unknown.tolist()[0]!r} is not one of the classes that were learnt")
    places: np.ndarray = np.searchsorted(classes, y)
    return places
