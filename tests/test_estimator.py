"""``PromptClassifier`` keeps scikit-learn's conventions, learns what a run learns, and takes images in any form."""

from __future__ import annotations

import functools
import pickle
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import load_file
from scipy.special import softmax
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.utils.data import Dataset

import vlprompt
from vlprompt import FrozenCLIP, PromptClassifier, VlpromptError
from vlprompt.cli.__main__ import main
from vlprompt.data import few_shot_split
from vlprompt.data.sampling import hold_out
from vlprompt.data.splits import Item
from vlprompt.estimator.settings import learning_of
from vlprompt.evaluation.calibration import fit_temperature
from vlprompt.training.cross_fitting import folds

NAMED = ("vlprompt-tiny", "ViT-B-16")
COLOURS = {"green": (30, 200, 40), "red": (220, 20, 30), "yellow": (230, 220, 30)}
QUICK: dict[str, Any] = {"epochs": 4, "views": 1, "lr": 0.05, "device": "cpu", "options": {"n_ctx": 2}}


@functools.cache
def one_block_clip() -> FrozenCLIP:
    """A model of one block a tower and 32 joint dimensions."""
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 32}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return FrozenCLIP(CLIP(32, vision, text), open_clip.SimpleTokenizer(context_length=16), device="cpu")


@functools.cache
def tiny_clip() -> FrozenCLIP:
    """The embedded model, which can tell colours apart."""
    return vlprompt.load_clip("vlprompt-tiny", device="cpu")


def classifier(**settings: Any) -> PromptClassifier:
    return PromptClassifier(**{"backbone": tiny_clip(), **QUICK, **settings})


def coloured(count: int = 4) -> tuple[list[Image.Image], list[str]]:
    """So many images of each colour, with noise, and the colours."""
    generator, images, names = np.random.default_rng(0), [], []
    for i in range(count * len(COLOURS)):
        name = list(COLOURS)[i % len(COLOURS)]
        pixels = np.array(COLOURS[name]) + generator.normal(0, 25, (32, 32, 3))
        images.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
        names.append(name)
    return images, names


class Pairs(Dataset):
    """(image, label) pairs without an end that Python could find."""

    classes = tuple(COLOURS)

    def __init__(self, transform: Callable[[Image.Image], Any] = lambda image: image, count: int = 4):
        images, names = coloured(count)
        self.images, self.labels, self.transform = images, [self.classes.index(n) for n in names], transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images[index % len(self)]), self.labels[index % len(self)]


# scikit-learn's own checks


class OnAnyTable(PromptClassifier):
    """Lays a table of any width into the backbone's, with zeros: the checks bring tables of two to thirty columns."""

    def _check_training_input(self, X: Any, y: Any, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = super()._check_training_input(X, y, reset)
        return self._padded(X), y

    def _check_input(self, X: Any, reset: bool) -> Any:
        return self._padded(super()._check_input(X, reset))

    def _padded(self, X: Any) -> Any:
        return np.pad(X, ((0, 0), (0, one_block_clip().embed_dim - X.shape[1])))


EXPECTED_FAILURES = {
    "check_class_weight_classifiers": "without a bias, what is said of x is not said of -x, whatever classes weigh",
    "check_sample_weight_equivalence_on_dense_data": "copies of an image fall into batches of their own",
    "check_estimators_overwrite_params": "it compares pickles, and the tokenizer of a model in hand remembers words",
}
ON_TABLES = OnAnyTable(
    backbone=one_block_clip(),
    device="cpu",
    epochs=10,
    lr=0.05,
    batch_size=64,
    options={"n_ctx": 2, "class_specific": True, "optimizer": "adam"},
)


@parametrize_with_checks([ON_TABLES], expected_failed_checks=lambda estimator: EXPECTED_FAILURES)
def test_scikit_learns_checks_hold_on_features(estimator: PromptClassifier, check: Callable[..., None]) -> None:
    check(estimator)


def test_fitting_leaves_a_backbone_in_hand_as_it_is() -> None:
    before = tiny_clip().weights_hash()
    fitted = classifier().fit(*coloured())
    assert fitted.backbone is tiny_clip()
    assert tiny_clip().weights_hash() == before


def test_it_works_in_pipelines_cross_validation_and_grid_search() -> None:
    images, names = coloured(6)
    folds = StratifiedKFold(2)
    whole = make_pipeline(FunctionTransformer(), classifier())
    assert cross_val_score(whole, images, names, cv=folds).mean() > 0.9
    features = vlprompt.image_features(tiny_clip(), images)
    search = GridSearchCV(classifier(), {"lr": [1e-6, 0.05], "method": ["coop", "kgcoop"]}, cv=folds)
    assert search.fit(features, names).best_score_ > 0.9
    assert search.predict_proba(features).shape == (18, 3)


# What it learns


def test_it_learns_the_weights_that_a_run_learns(tmp_path: Path) -> None:
    settings = {"method": "coop", "epochs": 2, "views": 2, "device": "cpu"}
    run = {"dataset": "digits", "protocol": "few_shot", "shots": 2, "seed": 3, "limit": 1}
    vlprompt.run(**settings, **run, output=str(tmp_path), quiet=True)
    splits = few_shot_split(vlprompt.load_split("digits"), shots=2, seed=3)
    images = [splits.open_image(item) for item in splits.train]
    labels = [item.label for item in splits.train]
    fitted = PromptClassifier(**settings, class_names=splits.class_names, mirror=False, random_state=3)
    fitted.fit(images, labels)
    [file] = tmp_path.rglob("learner.safetensors")
    for name, tensor in load_file(file).items():
        assert torch.equal(tensor, fitted.learner_.state_dict()[name]), name


def test_settings_come_from_the_recipe_for_so_many_images_a_class() -> None:
    few, many = np.repeat([0, 1], 2), np.repeat([0, 1], 50)
    plain = PromptClassifier()
    assert (learning_of(plain, few).config.epochs, learning_of(plain, many).config.epochs) == (100, 200)
    assert learning_of(plain, few).recipe.name == "coop/few_shot"
    given = learning_of(PromptClassifier(epochs=7, options={"n_ctx": 3, "momentum": 0.5}), few).config
    assert (given.epochs, given.n_ctx, given.momentum) == (7, 3, 0.5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"templates": "nowhere.txt"}, "'nowhere.txt' is not a template"),
        ({"options": {"objective": ["ce", "nope"]}}, "unknown objective 'nope'"),
        ({"options": {"aggregator": "nope"}}, "unknown aggregator 'nope'"),
        ({"method": "cop"}, "unknown method 'cop'"),
    ],
)
def test_what_no_backbone_is_needed_for_is_told_before_it_is_loaded(
    settings: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlprompt.estimator.fitting.clip_of", lambda estimator: pytest.fail("the backbone was loaded"))
    with pytest.raises(VlpromptError, match=sentence):
        PromptClassifier(**settings).fit(*coloured(1))


def test_cases_of_a_recipe_for_a_backbone_hold_for_the_one_at_hand() -> None:
    parts = {name: learning_of(PromptClassifier("promptsrc", name), np.arange(2)).config.objective for name in NAMED}
    assert "hand" in str(parts["vlprompt-tiny"])
    assert "hand" not in str(parts["ViT-B-16"])
    models = {"in hand": tiny_clip(), "one block": one_block_clip()}
    found = {name: learning_of(PromptClassifier("promptsrc", model), np.arange(2)) for name, model in models.items()}
    assert found["in hand"].config.objective == parts["vlprompt-tiny"]
    assert found["one block"].config.objective == parts["ViT-B-16"]


@pytest.mark.parametrize("method", ["cocoop", "maple", "vpt", "zero_shot"])
def test_any_method_can_be_fitted(method: str) -> None:
    images, names = coloured(2)
    depth = {"maple": {"depth": 1}, "vpt": {"depth": 1}}.get(method, {})
    fitted = classifier(method=method, epochs=1, options=depth).fit(images, names)
    assert fitted.predict_proba(images).sum(axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    assert len(fitted.history_) == (method != "zero_shot")


def test_a_warm_start_goes_on_and_a_cold_one_starts_again() -> None:
    images, names = coloured()
    cold = classifier().fit(images, names)
    weights = {k: v.clone() for k, v in cold.learner_.state_dict().items()}
    cold.fit(images, names)
    assert all(torch.equal(v, weights[k]) for k, v in cold.learner_.state_dict().items())
    warm = classifier(warm_start=True).fit(images, names).fit(images[:6], names[:6])
    assert [record["epoch"] for record in warm.history_] == list(range(8))
    assert warm.history_[-1]["loss"] < warm.history_[3]["loss"]
    with pytest.raises(VlpromptError, match="the label 'blue' is not one of the classes: add it with add_class"):
        warm.fit(images[:2], ["blue", "red"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"options": {"n_ctx": 4}}, "which has n_ctx=2, not 4"),
        ({"options": {"n_ctx": 2, "objective": ["ce", "text_anchor"]}}, "which has objective="),
        ({"options": {"n_ctx": 2, "head": "dept"}}, "which has head=None, not dept"),
        ({"templates": "art of a {}."}, "which has templates="),
        ({"class_names": {"green": "lime", "red": "red", "yellow": "yellow"}}, "the class name 'green', not 'lime'"),
        ({"class_names": ["green", "cherry", "yellow"]}, "the class name 'red', not 'cherry'"),
        ({"backbone": one_block_clip()}, "which has backbone=vlprompt-tiny, not custom"),
    ],
)
def test_what_goes_on_is_not_another_learner(settings: dict[str, Any], said: str) -> None:
    images, names = coloured(1)
    warm = classifier(warm_start=True, epochs=1).fit(images, names)
    warm.set_params(**settings)
    before = {key: value.clone() for key, value in warm.learner_.state_dict().items()}
    for learn in (warm.fit, warm.partial_fit):
        with pytest.raises(VlpromptError, match=said) as error:
            learn(images, names)
        assert "warm_start=False" in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in warm.learner_.state_dict().items())
    warm.set_params(warm_start=False).fit(images, names)


def test_what_trains_may_change_from_one_fit_to_the_next() -> None:
    images, names = coloured(1)
    warm = classifier(warm_start=True, epochs=1, class_names=["green", "red", "yellow"]).fit(images, names)
    warm.add_class("blue")
    warm.set_params(options={"n_ctx": np.int64(2), "optimizer": "adam"}, lr=0.1, epochs=2, backbone="vlprompt-tiny")
    warm.fit(images, names).partial_fit(images, names)
    assert (len(warm.history_), len(warm.classes_)) == (4, 4)


def test_an_interrupted_fit_leaves_a_learner_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    images, names = coloured(1)
    fitted = classifier(epochs=1).fit(images, names)
    fitted.searches_ = fitted.history_  # as if it had any

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vlprompt.PromptLearner, "backward", stop)
        with pytest.raises(KeyboardInterrupt):
            fitted.fit(images[1:], names[1:])
    assert (fitted.searches_, fitted.pseudo_labels_, fitted.history_) == ([], [], [])
    assert not fitted.learner_.training  # so that it scores as in a test
    assert len(fitted.predict(images)) == len(images)
    again = classifier(epochs=1).fit(images, names)
    assert np.array_equal(fitted.fit(images, names).decision_function(images), again.decision_function(images))


def test_a_selection_holds_out_images_and_chooses_on_them() -> None:
    images, names = coloured(5)
    features = vlprompt.image_features(tiny_clip(), images)
    head = classifier(method="gda", selection="fewshot_val", options={"grid": {"alpha": [0.01, 1.0]}})
    head.fit(features, names)
    [search] = head.searches_
    assert (search.n_images, len(search.points)) == (len(COLOURS), 2)
    assert float(head.learner_.alpha) == pytest.approx(search.chosen["alpha"])
    held = set(hold_out(names, 1))
    alone = [i for i in range(len(names)) if i not in held]
    same = classifier(method="gda", options={"alpha": search.chosen["alpha"]})
    same.fit(features[alone], [names[i] for i in alone])
    assert np.allclose(head.predict_proba(features), same.predict_proba(features), atol=1e-5)
    trained = classifier(selection="fewshot_val").fit(images, names)
    assert [0 <= record["selection"] <= 1 for record in trained.history_] == [True] * 4
    assert trained.learner_.last_state is not None  # beside the epoch that was best


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"selection": "paper"}, "and X has none"),
        ({"selection": "fewshot"}, "did you mean fewshot_val"),
        ({"selection": "fewshot_val", "method": "zero_shot", "options": {}}, "does not learn from labelled images"),
        ({"selection": "fewshot_val", "method": "gda", "options": {"grid": {}}}, "chooses among the points of a grid"),
        ({"selection": "fewshot_val", "options": {"aggregator": "gpa(mean=2,std=1)"}}, "weights of one epoch"),
        ({"selection": "fewshot_val"}, "no class has two images"),
    ],
)
def test_a_selection_without_a_choice_is_told(settings: dict[str, Any], sentence: str) -> None:
    images, names = coloured(1)
    with pytest.raises(VlpromptError, match=sentence):
        classifier(**settings).fit(images, names)


@pytest.fixture(scope="module")
def mislabelled() -> tuple[np.ndarray, np.ndarray]:
    """Features of images, and labels of which every seventh is another's."""
    images, names = coloured(7)
    labels = np.array([names[(i + 1) % len(names)] if i % 7 == 3 else name for i, name in enumerate(names)])
    return vlprompt.image_features(tiny_clip(), images), labels


def test_its_temperature_is_that_of_cross_fitting_on_the_training_images(
    mislabelled: tuple[np.ndarray, np.ndarray],
) -> None:
    features, labels = mislabelled
    fitted = classifier(method="gda", options={}, calibrate="temperature", coverage=0.6).fit(features, labels)
    places = np.searchsorted(fitted.classes_, labels)
    parts = folds([Item(str(i), label, "") for i, label in enumerate(places.tolist())], seed=1)
    logits = np.empty((len(labels), 3), dtype=np.float32)
    for held in parts:
        others = np.setdiff1d(np.arange(len(labels)), held)
        part = classifier(method="gda", options={}).fit(features[others], labels[others])
        logits[held] = part.decision_function(features[held])
    expected = fit_temperature(torch.from_numpy(logits), torch.from_numpy(places))
    assert fitted.calibration_.on == "cross_fit"
    assert fitted.calibration_.temperature == pytest.approx(expected, rel=1e-4) != 1
    scores = fitted.decision_function(features) / expected
    np.testing.assert_allclose(fitted.predict_proba(features), softmax(scores, axis=1), atol=1e-4)
    held_out = classifier(method="gda", options={}, calibrate="temperature", selection="fewshot_val")
    assert held_out.set_params(options={"grid": {"alpha": [0.1, 1.0]}}).fit(features, labels).calibration_.on == "val"


def test_what_it_is_not_sure_of_is_left_unanswered_in_the_words_asked_for(
    mislabelled: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    features, labels = mislabelled
    fitted = classifier(method="gda", options={}, coverage=0.6).fit(features, labels)
    plain = classifier(method="gda", options={}).fit(features, labels)
    sure = fitted.predict_proba(features).max(axis=1) >= fitted.calibration_.min_probability
    for unsure, kind in ((None, "O"), ("not sure at all", "U"), (-1, "O")):
        said = fitted.set_params(unsure=unsure).predict(features)
        assert said.dtype.kind == kind
        assert said.tolist() == [
            y if answered else unsure for y, answered in zip(plain.predict(features), sure, strict=True)
        ]
    kept = PromptClassifier.from_pretrained(fitted.save_pretrained(tmp_path), tiny_clip()).set_params(unsure=-1)
    assert kept.predict(features).tolist() == said.tolist()
    assert fitted.score(features, labels) == plain.score(features, labels)
    curve = fitted.accuracy_coverage(features, labels)
    assert curve.accuracy[-1] == pytest.approx(plain.score(features, labels))
    assert fitted.accuracy_coverage(features, np.array(labels)[:, None]).aurc == curve.aurc, "a column, as in fit"
    for compare in (fitted.score, fitted.accuracy_coverage):
        with pytest.raises(VlpromptError, match="labels are numbers, as 0, and the classes are names"):
            compare(features, [0] * len(labels))
        with pytest.raises(VlpromptError, match="y is None"):
            compare(features, None)
    single = classifier(method="gda", options={}, min_probability=np.float32(0.5)).fit(features, labels)
    assert single.predict(features).dtype.kind == "O", "a number of NumPy's is one"
    numbers = classifier(method="gda", options={}, min_probability=1.0, unsure=-1)
    assert set(numbers.fit(features, np.unique(labels, return_inverse=True)[1]).predict(features)) <= {-1, 0, 1, 2}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"calibrate": "platt"}, "unknown calibrate 'platt'"),
        ({"coverage": 0}, "coverage must be a number above 0"),
        ({"coverage": 0.5, "min_probability": 0.5}, "give one of them"),
        ({"min_probability": 2}, "min_probability must be a number of at least 0"),
    ],
)
def test_an_abstention_that_cannot_be_is_told(
    settings: dict[str, Any], sentence: str, mislabelled: tuple[np.ndarray, np.ndarray]
) -> None:
    features, labels = mislabelled
    with pytest.raises(VlpromptError, match=sentence):
        classifier(method="gda", options={}, **settings).fit(features, labels)


def test_calibration_asks_for_other_images_than_were_learnt_from(
    mislabelled: tuple[np.ndarray, np.ndarray],
) -> None:
    features, labels = mislabelled
    with pytest.raises(VlpromptError, match="has a single training image"):
        classifier(method="gda", options={}, coverage=0.5).fit(features[:3], ["a", "b", "c"])
    with pytest.raises(VlpromptError, match="use fit, without warm_start"):
        classifier(calibrate="temperature").partial_fit(features, labels, sorted(COLOURS))
    plain = classifier(method="gda", options={}).fit(features, labels)
    with pytest.raises(VlpromptError, match="coverage needs a learner that was calibrated"):
        plain.set_params(coverage=0.5).predict(features)


def test_partial_fit_chooses_nothing() -> None:
    images, names = coloured(2)
    with pytest.raises(VlpromptError, match="partial_fit trains one epoch"):
        classifier(selection="fewshot_val").partial_fit(images, names, sorted(COLOURS))


def test_partial_fit_goes_through_the_images_once() -> None:
    images, names = coloured()
    with pytest.raises(VlpromptError, match="needs classes"):
        classifier().partial_fit(images, names)
    growing = classifier().partial_fit(images[:2], names[:2], classes=list(COLOURS))
    for _ in range(4):
        growing.partial_fit(images, names)
    assert len(growing.history_) == 5
    assert {record["lr"] for record in growing.history_} == {0.05}
    assert growing.score(images, names) == 1


# Labels and class names


def test_labels_may_be_names_or_integers() -> None:
    images, names = coloured()
    numbers = [list(COLOURS).index(name) for name in names]
    by_name, by_number = classifier().fit(images, names), classifier(class_names=list(COLOURS)).fit(images, numbers)
    assert by_name.classes_.tolist() == sorted(COLOURS)
    assert by_number.classes_.tolist() == [0, 1, 2]
    assert by_number.learner_.class_names == tuple(COLOURS) == by_name.learner_.class_names
    assert by_name.predict(images).tolist() == [list(COLOURS)[i] for i in by_number.predict(images)]


def test_names_for_labels_may_have_classes_without_images() -> None:
    images, names = coloured()
    described = {"green": "a meadow", "red": "a rose", "yellow": "a lemon", "blue": "the sea"}
    fitted = classifier(class_names=described).fit(images, names)
    assert fitted.classes_.tolist() == sorted(described)
    assert fitted.learner_.class_names == ("the sea", "a meadow", "a rose", "a lemon")
    with pytest.raises(VlpromptError, match="class_names must be 3 names"):
        classifier(class_names=["a"]).fit(images, names)


def test_a_class_can_be_added_where_the_method_carries_to_new_ones() -> None:
    images, names = coloured()
    fitted = classifier().fit(images, names)
    before = fitted.decision_function(images)
    fitted.add_class("okapi")
    assert fitted.classes_.tolist() == ["green", "okapi", "red", "yellow"]
    np.testing.assert_allclose(fitted.decision_function(images)[:, [0, 2, 3]], before, rtol=1e-4, atol=1e-4)
    with pytest.raises(VlpromptError, match="there is already a class 'red'"):
        fitted.add_class("red")
    numbers = classifier().fit(images, [len(name) for name in names]).add_class("okapi")
    assert numbers.classes_.tolist() == [3, 5, 6, 7]
    bound = classifier(options={"class_specific": True}).fit(images, names)
    with pytest.raises(VlpromptError, match="cannot score new class names"):
        bound.add_class("okapi")
    assert bound.classes_.tolist() == sorted(COLOURS)


# Images in any form


def test_images_in_every_form_give_the_same(tmp_path: Path) -> None:
    images, names = coloured(2)
    paths = [str(tmp_path / f"{i}.png") for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    arrays = [np.asarray(image) for image in images]
    tensors = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    clip = tiny_clip()
    forms = {
        "paths": paths,
        "pathlib": [Path(path) for path in paths],
        "an array of paths": np.array(paths),
        "a column of paths": np.array(paths, dtype=object)[:, None],
        "PIL": images,
        "arrays": arrays,
        "an array": np.stack(arrays),
        "tensors": tensors,
        "preprocessed": torch.stack([clip.preprocess(image) for image in images]),
        "a dataset": Pairs(count=2),
        "samples": list(zip(images, range(len(images)), strict=True)),
        "features": vlprompt.image_features(clip, images),
    }
    expected = classifier().fit(images, names).decision_function(images)
    for form, X in forms.items():
        fitted = classifier().fit(X, names)
        np.testing.assert_allclose(fitted.decision_function(X), expected, rtol=1e-3, atol=1e-3, err_msg=form)


def test_a_torch_dataset_brings_its_labels_and_class_names() -> None:
    fitted = classifier().fit(Pairs())
    assert fitted.classes_.tolist() == [0, 1, 2]
    assert fitted.learner_.class_names == Pairs.classes
    assert fitted.score(Pairs(), Pairs().labels) == 1


@pytest.mark.parametrize(
    ("X", "settings", "sentence"),
    [
        ("cat.jpg", {}, "X must be a list of images"),
        (["no.jpg"] * 6, {}, "no.jpg"),
        ([], {}, "X is empty"),
        (np.zeros((32, 32, 3), np.uint8), {}, "is a single image: write \\[image\\]"),
        (np.zeros((6, 7), np.float32), {}, "X has 7 columns, and image features of vlprompt-tiny have 192"),
        (np.ones((6, 192), np.float32), {"method": "vpt"}, "vpt prompts the image tower, so it needs images"),
        (torch.rand(6, 3, 64, 64), {}, "did not go through clip.preprocess: give bytes"),
        (torch.randn(6, 3, 64, 64), {"method": "vpt"}, "needs images and not tensors that were cropped"),
        (np.random.randn(6, 32, 32, 3), {}, "is no image, path or array of \\(H, W, 3\\) bytes"),
        (coloured(2)[0], {"options": {"n_ctxx": 3}}, "unknown option 'n_ctxx' for method=coop: did you mean n_ctx?"),
        (coloured(2)[0], {"method": "cop"}, "did you mean coop"),
        (coloured(2)[0], {"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_what_is_not_right_is_one_sentence(X: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        classifier(**settings).fit(X, ["a", "b"] * 3)


def test_one_class_and_no_fit_are_told() -> None:
    images, _ = coloured(1)
    with pytest.raises(VlpromptError, match="there is only 1 class"):
        classifier().fit(images, ["a"] * 3)
    with pytest.raises(NotFittedError):
        classifier().predict(images)


# Copies


def test_a_fitted_classifier_is_pickled_without_a_backbone_that_has_a_name(tmp_path: Path) -> None:
    images, names = coloured(1)
    features = vlprompt.image_features(vlprompt.load_clip("vlprompt-tiny", device="cpu"), images)
    fitted = PromptClassifier(**QUICK).fit(features, names)
    pickled = pickle.dumps(fitted)
    assert len(pickled) < 200_000
    for other in (pickle.loads(pickled), joblib.load(joblib.dump(fitted, tmp_path / "it.joblib")[0])):
        assert np.array_equal(other.predict_proba(features), fitted.predict_proba(features))
        assert other.learner_.clip.model is fitted.learner_.clip.model
    fitted.learner_.save_pretrained(tmp_path / "kept")
    loaded = vlprompt.load_learner(tmp_path / "kept", device="cpu")
    with torch.no_grad():
        probabilities = loaded.classify(torch.from_numpy(features)).softmax(dim=1)
    np.testing.assert_allclose(probabilities, fitted.predict_proba(features), atol=1e-6)


def test_a_model_in_hand_is_shared_by_clones_and_kept_in_pickles() -> None:
    images, names = coloured(1)
    fitted = classifier(backbone=one_block_clip()).fit(images, names)
    assert clone(fitted).backbone is one_block_clip()
    assert not hasattr(clone(fitted), "learner_")
    other = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(other.predict_proba(images), fitted.predict_proba(images))


# Features, folders, datasets


def test_features_come_in_order_and_equal_the_models(tmp_path: Path) -> None:
    clip = tiny_clip()
    images, names = coloured()
    images = [image.resize((clip.image_size, clip.image_size)) for image in images]
    with torch.no_grad():
        expected = clip.encode_image(torch.stack([clip.preprocess(image) for image in images])).numpy()
    for threads in (0, 3):
        features = vlprompt.image_features(clip, images, batch_size=5, threads=threads)
        assert (features.shape, features.dtype) == ((12, 192), np.float32)
        np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-3)
    pairs = Pairs(lambda image: image.resize((clip.image_size, clip.image_size)))
    assert np.array_equal(vlprompt.image_features(clip, pairs, batch_size=5), features)
    learner = classifier().fit(features, names).learner_
    np.testing.assert_allclose(np.linalg.norm(vlprompt.image_features(learner, images), axis=1), 1, rtol=1e-5)
    assert vlprompt.image_features(clip, []).shape == (0, 192)
    with pytest.raises(VlpromptError, match=r"write \['cat.jpg'\]"):
        vlprompt.image_features(clip, "cat.jpg")


def test_a_folder_of_class_folders_gives_paths_and_names(tmp_path: Path) -> None:
    for folder, count in (("red_fox", 1), ("cat", 2)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{i}.jpg")
    paths, names = vlprompt.load_folder(tmp_path)
    assert [Path(path).relative_to(tmp_path).as_posix() for path in paths] == [
        "cat/0.jpg",
        "cat/1.jpg",
        "red_fox/0.jpg",
    ]
    assert names == ["cat", "cat", "red fox"]
    with pytest.raises(VlpromptError, match="no folder"):
        vlprompt.load_folder(tmp_path / "none")
    (tmp_path / "parts/train").mkdir(parents=True)
    (tmp_path / "parts/test").mkdir()
    with pytest.raises(VlpromptError, match="has its classes in train and test: give one of them"):
        vlprompt.load_folder(tmp_path / "parts")


def test_the_readmes_five_lines_and_its_command_classify_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Your own photos")[2].partition("\n## ")[0]
    [code] = re.findall(r"```python\n(.*?)```", section, re.S)
    command = re.findall(r"^vlprompt (predict .*)$", section, re.M)[0]
    assert sum(bool(line) for line in code.splitlines()) == 5
    monkeypatch.chdir(tmp_path)
    splits = vlprompt.load_split("emoji")
    for name in ("ground transport", "household item", "mammal"):
        Path("photos", name).mkdir(parents=True)
        for i, item in enumerate([i for i in splits.train if splits.class_names[i.label] == name][:2]):
            splits.open_image(item).save(Path("photos", name, f"{i}.png"))
    Path("more-photos").mkdir()
    item = next(item for item in splits.test if splits.class_names[item.label] == "mammal")
    for path in ("another.jpg", "more-photos/1.jpg"):
        splits.open_image(item).save(path)
    exec(code, {})
    assert capsys.readouterr().out == "['mammal']\n"
    assert main(shlex.split(command)) == 0
    assert Path("found.csv").read_text().splitlines()[1].startswith("more-photos/1.jpg,mammal,")


def test_runs_and_evaluation_take_a_torch_dataset(tmp_path: Path) -> None:
    data, settings = Pairs(count=8), {"protocol": "few_shot", "shots": 2, "epochs": 1, "views": 1, "quiet": True}
    result = vlprompt.run(clip=tiny_clip(), dataset=data, output=str(tmp_path), **settings)
    assert (result.rows[0].n_classes, result.rows[0].n_images) == (3, 9)
    fitted = classifier().fit(data)
    assert vlprompt.evaluate_learner(fitted.learner_, data) == 1
    nameless = Pairs(count=2)
    nameless.classes = ()
    assert vlprompt.evaluate_learner(fitted.learner_, nameless) == 1
    with pytest.raises(VlpromptError, match="the dataset has no classes: give splits_from_pairs"):
        vlprompt.run(clip=tiny_clip(), dataset=nameless, output=str(tmp_path), **settings)
