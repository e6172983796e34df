"""Probabilities that mean what they say, and images left unanswered: fitted on what is held out, kept, and applied."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vlprompt
from vlprompt import VlpromptError, load_learner, predict_images
from vlprompt.base.sealed import seal
from vlprompt.data import DatasetSplits, splits_from_pairs
from vlprompt.evaluation import evaluate
from vlprompt.evaluation.abstention import AccuracyCoverage
from vlprompt.evaluation.calibration import calibrate, fit_temperature, threshold_of
from vlprompt.evaluation.metrics import Reliability
from vlprompt.learner.calibration import Calibration, Curve, say_calibration
from vlprompt.testing import make, small_clip
from vlprompt.training.cross_fitting import folds

COLOURS = {"green": (30, 200, 40), "red": (220, 20, 30), "yellow": (230, 220, 30)}
generator = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(4000, 5, generator=generator)
MEANT = 2.5  # the temperature at which the labels are drawn
LABELS = torch.multinomial((LOGITS / MEANT).softmax(dim=1), 1, generator=generator).squeeze(1)


# Fitting


def test_the_temperature_that_labels_were_drawn_at_is_found() -> None:
    found = fit_temperature(LOGITS, LABELS)
    assert found == pytest.approx(MEANT, rel=0.05)
    loss = [float(torch.nn.functional.cross_entropy(LOGITS / (found * f), LABELS)) for f in (0.99, 1, 1.01)]
    assert min(loss) == loss[1]
    calibration = calibrate(LOGITS, LABELS, "val", coverage=0.7)
    assert (calibration.temperature, calibration.images) == (found, 4000)
    before, after = (100 * Reliability.of(LABELS, LOGITS / t).expected_calibration_error for t in (1, found))
    assert (calibration.ece_before, calibration.ece_after) == pytest.approx((before, after))
    assert calibration.ece_after < calibration.ece_before / 5
    answered = (LOGITS / found).softmax(dim=1).amax(dim=1) >= calibration.min_probability
    assert float(answered.float().mean()) == pytest.approx(0.7, abs=1e-3)
    assert calibrate(LOGITS, LABELS, "val", temperature=False).temperature == 1
    assert calibrate(LOGITS, LABELS, "val", coverage=1.0).min_probability == 0, "all means all"


def test_images_that_are_all_right_leave_the_temperature_as_it_is() -> None:
    with pytest.warns(
        UserWarning, match="all 3 held-out images are classified correctly, so no temperature can be estimated"
    ):
        assert fit_temperature(torch.eye(3), torch.arange(3)) == 1


def test_images_that_are_right_by_chance_alone_are_told_of() -> None:
    with pytest.warns(UserWarning, match="on 3 held-out images .* the temperature is at its upper bound, 55"):
        assert fit_temperature(torch.eye(3), torch.tensor([1, 2, 0])) == pytest.approx(math.exp(4), rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"min_probability": 0.5, "coverage": 0.5}, "give one of them"),
        ({"coverage": 0.5}, "coverage needs a learner that was calibrated on held-out images"),
        ({"coverage": 0}, "coverage must be a number above 0 and at most 1, not 0"),
        ({"min_probability": 1.5}, "min_probability must be a number of at least 0 and at most 1, not 1.5"),
        ({"min_probability": True}, "min_probability must be a number of at least 0"),
        ({"min_probability": "often"}, "not 'often'"),
    ],
    ids=str,
)
def test_a_threshold_that_cannot_be_is_told(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VlpromptError, match=sentence):
        threshold_of(None, **asked)


# Kept with a learner


def calibrated(temperature: float = 2.0, min_probability: float | None = None) -> Calibration:
    curve = AccuracyCoverage.of([0.9, 0.6, 0.4, 0.3], [True, True, False, True]).to_lists()
    lists = Curve(threshold=curve["threshold"], coverage=curve["coverage"], accuracy=curve["accuracy"])
    coverage = None if min_probability is None else 0.5
    return Calibration("val", 4, lists, 12.0, 3.0, temperature, coverage, min_probability)


def images() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


def test_a_calibration_is_saved_loaded_and_applied(tmp_path: Path) -> None:
    learner = make("coop", n_ctx=2).eval()
    bare = list(predict_images(learner, images(), top=5))
    learner.calibration = calibrated(min_probability=0.6)
    found = load_learner(learner.save_pretrained(tmp_path), clip=small_clip())
    assert found.calibration == learner.calibration
    assert "temperature 2, calibration error 12.0 → 3.0 points on 4 few-shot val images" in (
        tmp_path / "README.md"
    ).read_text(encoding="utf-8")
    for before, after in zip(bare, predict_images(found, images(), top=5, min_probability=0), strict=True):
        assert before.classes == after.classes
        expected = (torch.tensor(before.probabilities).log() / 2).softmax(dim=0)  # softmax(z / T) of softmax(z)
        assert after.probabilities == pytest.approx(expected.tolist(), abs=1e-5)
        assert after.answer == after.classes[0]
    for asked, threshold in (({}, 0.6), ({"coverage": 0.25}, 0.9), ({"coverage": 0.8}, 0.3), ({"coverage": 1}, 0)):
        answers = [(p.answer, p.sure) for p in predict_images(found, images(), **asked)]
        sure = [p.probabilities[0] >= threshold for p in predict_images(found, images(), min_probability=0)]
        assert [answer is not None for answer, _ in answers] == [each for _, each in answers] == sure


def test_a_calibration_is_of_one_state_and_of_its_classes() -> None:
    learner = make("coop", n_ctx=2).eval()
    learner.calibration = calibrated(min_probability=0.99)
    learner.set_class_names(["okapi", "tapir"])
    assert [p.sure for p in predict_images(learner, images())] == [True] * 6, "the threshold is of other classes"
    with pytest.raises(VlpromptError, match="for the classes that the learner was trained on"):
        list(predict_images(learner, images(), coverage=0.5))
    learner.set_ensemble("logits(weight=0.5)")
    assert learner.calibration is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"temperature": 0}, "field 'temperature' is not right"),
        ({"temperature": float("nan")}, "calibration: field 'temperature' is not right"),
        ({"on": "test"}, "field 'on' is not right"),
        ({"min_probability": 7}, "field 'min_probability' is not right"),
        ({"curve": {"threshold": [0.5], "coverage": [1.0], "accuracy": []}}, "accuracy"),
        ({"curve": {"threshold": [0.5, 0.4], "coverage": [1.0], "accuracy": [1.0]}}, "its lists differ in length"),
        ({"more": 1}, "unknown field 'more'"),
    ],
    ids=str,
)
def test_a_calibration_of_a_strangers_is_held_to_its_kind(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    learner = make("coop", n_ctx=2)
    learner.calibration = calibrated()
    file = learner.save_pretrained(tmp_path) / "config.json"
    content = json.loads(file.read_text())
    content["calibration"] |= change
    file.write_text(json.dumps(seal(content)))
    with pytest.raises(VlpromptError, match=sentence):
        load_learner(tmp_path, clip=small_clip())


# Of a run


def coloured(per_class: int, seed: int) -> list[tuple[Image.Image, int]]:
    """Noisy images of three colours, of which every fifth is labelled as another."""
    random, pairs = np.random.default_rng(seed), []
    for i in range(per_class * len(COLOURS)):
        label = i % len(COLOURS)
        shown = (label + 1) % len(COLOURS) if i % 5 == 4 else label
        pixels = np.array(list(COLOURS.values())[shown]) * 0.3 + random.normal(80, 90, (32, 32, 3))
        pairs.append((Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), label))
    return pairs


def dataset(val: int = 6, other_labels: bool = False) -> DatasetSplits:
    test = [(image, (label + other_labels) % 3) for image, label in coloured(8, 3)]
    return splits_from_pairs(coloured(6, 1), list(COLOURS), coloured(val, 2) if val else (), test)


def run(splits: DatasetSplits, folder: Path, **settings: Any) -> vlprompt.evaluation.Result:
    options = {"method": "gda", "protocol": "few_shot", "shots": 6, "calibrate": "temperature", "name": "one"}
    return vlprompt.run(clip=small_clip(), dataset=splits, output=str(folder), quiet=True, **options | settings)


def test_a_run_is_calibrated_on_its_validation_images(tmp_path: Path) -> None:
    splits = dataset()
    result = run(splits, tmp_path, coverage=0.6)
    [row], said = result.rows, result.calibration
    assert said is not None
    assert (said["on"], said["images"], said["coverage"]) == ("val", 12, 0.6)  # up to four a class
    learner = load_learner(tmp_path / "one/learner", clip=small_clip())
    assert learner.calibration is not None
    assert learner.temperature == said["temperature"] != 1
    assert said["ece_after"] != said["ece_before"]
    logits = logits_of(learner, splits.test, splits)
    labels = torch.tensor([item.label for item in splits.test])
    for name, t in (("uncalibrated_ece", 1.0), ("ece", said["temperature"])):
        error = 100 * Reliability.of(labels, logits / t).expected_calibration_error
        assert getattr(row, name) == pytest.approx(error, abs=1e-3)
    sure = (logits / learner.temperature).softmax(dim=1).amax(dim=1) >= said["min_probability"]
    assert row.answered["coverage"] == pytest.approx(float(sure.float().mean()), abs=1e-6)
    assert row.selective["coverage"][-1] == 1
    assert row.selective["accuracy"][-1] == pytest.approx(row.accuracy / 100)
    again = evaluate(learner, splits).row
    assert (again.ece, again.uncalibrated_ece, again.answered) == (row.ece, row.uncalibrated_ece, row.answered)


def logits_of(learner: vlprompt.PromptLearner, items: Any, splits: DatasetSplits) -> Tensor:
    with torch.no_grad():
        return learner(torch.stack([learner.clip.preprocess(splits.open_image(item)) for item in items]))


def test_test_images_decide_nothing_even_where_they_are_the_validation_images(tmp_path: Path) -> None:
    told = [run(dataset(0, other), tmp_path / str(other)).calibration for other in (False, True)]
    assert told[0] == told[1], "other test labels, and the same temperature"
    assert (told[0]["on"], told[0]["images"]) == ("cross_fit", 18)
    whole = dataset(0)
    same = replace(whole, val=list(whole.test))  # as ImageNet's validation images are tested
    assert run(same, tmp_path / "same").calibration["on"] == "cross_fit"
    plain = run(dataset(), tmp_path / "plain", calibrate="none")
    assert (plain.calibration, plain.rows[0].uncalibrated_ece, plain.rows[0].answered) == (None, None, None)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"calibrate": "platt"}, "unknown calibrate 'platt'"),
        ({"coverage": 1.5}, "coverage must be"),
        ({"protocol": "unsupervised", "method": "upl"}, "needs labelled images, and protocol=unsupervised has none"),
        ({"method": "tda"}, "is not possible: tda predicts an image from the other test images too"),
        ({"shots": 1}, "has a single training image"),
    ],
    ids=str,
)
def test_what_cannot_be_calibrated_is_told_before_any_work(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    shots = {} if settings.get("protocol") == "unsupervised" else {"shots": 6}
    with pytest.raises(VlpromptError, match=sentence):
        vlprompt.run(
            **{"method": "gda", "protocol": "few_shot", "calibrate": "temperature", **shots, **settings},
            clip=small_clip(),
            dataset=dataset(0),
            output=str(tmp_path),
            quiet=True,
        )


def test_parts_keep_classes_together_and_an_image_in_one_of_them() -> None:
    splits = dataset(0)
    items = [*splits.train, splits.train[0]]
    parts = folds(items, seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(19))
    for part in parts:
        assert {items[i].label for i in part} == {0, 1, 2}
        assert (0 in part) == (18 in part)


def test_learning_anew_drops_what_was_found_before(tmp_path: Path) -> None:
    images_, labels = zip(*coloured(4, 1), strict=True)
    classifier = vlprompt.PromptClassifier("gda", small_clip(), calibrate="temperature", warm_start=True)
    classifier.fit(list(images_), labels)
    assert classifier.calibration_.on == "cross_fit"
    assert say_calibration(classifier.calibration_).endswith("each scored by a learner that did not see it")
    classifier.set_params(calibrate="none").fit(list(images_), labels)
    assert classifier.calibration_ is None
