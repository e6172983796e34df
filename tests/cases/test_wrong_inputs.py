"""What callers hand in by mistake is told in one sentence, at every door of the Python interface."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import vlprompt
from vlprompt import PromptClassifier, VlpromptError, analysis, testing
from vlprompt.base.checks import checked

CLIP = testing.small_clip()
SIDE, WIDTH = CLIP.image_size, CLIP.embed_dim
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
READY = torch.stack([CLIP.preprocess(PHOTO)] * 4)  # (B, 3, S, S)
FEATURES = np.random.default_rng(0).normal(size=(6, WIDTH)).astype(np.float32)
NAMES = ["a", "b"] * 3

IMAGES = {
    "one axis": torch.zeros(5),
    "a single image": READY[0],
    "one channel": READY[:, :1],
    "another size": torch.zeros(2, 3, SIDE + 8, SIDE + 8),
    "not square": torch.zeros(2, 3, SIDE, SIDE + 8),
    "channels last": READY.permute(0, 2, 3, 1),
    "five axes": READY[None],
    "bytes": (READY * 0).byte(),
    "whole numbers": (READY * 0).long(),
    "booleans": READY > 0,
    "complex": READY.to(torch.complex64),
    "sparse": READY.to_sparse(),
    "not a number": READY * torch.nan,
    "infinite": READY + torch.inf,
    "PIL image": PHOTO,
    "list of PIL images": [PHOTO],
    "list of tensors": list(READY),
    "array": READY.numpy(),
    "path": "a.png",
    "None": None,
    "empty list": [],
}
ROWS = {
    "one axis": torch.zeros(WIDTH),
    "another width": torch.zeros(2, WIDTH + 1),
    "three axes": torch.zeros(2, 2, WIDTH),
    "whole numbers": torch.zeros(2, WIDTH, dtype=torch.long),
    "array": np.zeros((2, WIDTH)),
    "list": [[0.0] * WIDTH],
    "not a number": torch.full((2, WIDTH), torch.nan),
    "None": None,
}
NOT_NAMES = {
    "one text": "cat",
    "None": None,
    "number": 5,
    "numbers": [1, 2],
    "none": [],
    "one": ["cat"],
    "an empty one": ["cat", ""],
    "None among them": ["cat", None],
    "bytes": [b"cat", b"dog"],
    "a set has no order": {"cat", "dog"},
    "a dictionary": {"cat": 0, "dog": 1},
    "nested": [["cat"], ["dog"]],
    "a table": np.array([["cat", "dog"]]),
}


def told(ask: Callable[[], Any]) -> None:
    with torch.no_grad(), pytest.raises(VlpromptError) as caught:
        ask()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("method", ["coop", "cocoop", "vpt"])
@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
def test_a_learner_takes_batches_of_ready_images_alone(method: str, images: Any) -> None:
    learner = testing.make(method)
    told(lambda: learner(images))
    told(lambda: learner.image_features(images))


@pytest.mark.parametrize("method", ["coop", "cocoop"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_learner_classifies_rows_of_its_own_width_alone(method: str, rows: Any) -> None:
    told(lambda: testing.make(method).classify(rows))


def test_what_can_be_taken_is_taken() -> None:
    learner = testing.make("coop")
    with torch.no_grad():
        expected = learner(READY)
        features = CLIP.encode_image(READY)
        for images in (READY.double(), READY.half().float(), READY[:, :, :, :].contiguous()):
            torch.testing.assert_close(learner(images), expected, atol=0.05, rtol=0.01)
        torch.testing.assert_close(learner.classify(features.double()), expected)
        assert learner(READY[:0]).shape == (0, len(learner.class_names))
    learner.set_class_names(name for name in ("owl", "fox"))
    assert learner.class_names == ("owl", "fox")


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({}, "a batch to learn from needs label, and this one has nothing"),
        ({"image": READY}, "needs label, and this one has image"),
        ({"label": torch.tensor([0])}, "a batch needs image or image_features, and this one has label"),
        (None, "a batch must be tensors by name"),
        ({"image": READY, "label": [0, 1, 0, 1]}, "a batch must be tensors by name"),
        ({"image": READY, "label": torch.tensor([0, 1, 2, 99])}, r"labels must be from 0 to \d+, not 0 to 99"),
        ({"image": READY, "label": torch.tensor([0, 1, -1, 0])}, r"labels must be from 0 to \d+, not -1 to 1"),
        ({"image": READY, "label": torch.tensor([0, 1])}, r"labels must be whole numbers \(4,\), one an image"),
        ({"image": READY, "label": torch.tensor([0.0, 1, 0, 1])}, "labels must be whole numbers"),
    ],
)
def test_a_loss_needs_whole_labels_in_range(batch: Any, sentence: str) -> None:
    with pytest.raises(VlpromptError, match=sentence):
        testing.make("coop").loss(batch)


@pytest.mark.parametrize("names", NOT_NAMES.values(), ids=NOT_NAMES)
def test_class_names_are_a_list_of_texts(names: Any) -> None:
    told(lambda: testing.make("coop").set_class_names(names))
    told(lambda: vlprompt.create_learner("coop", CLIP, names))


@pytest.mark.parametrize(
    "ask",
    [
        lambda: vlprompt.create_learner(None, CLIP, ["cat", "dog"]),
        lambda: vlprompt.create_learner(["coop"], CLIP, ["cat", "dog"]),
        lambda: vlprompt.create_learner("coop", "vlprompt-tiny", ["cat", "dog"]),
        lambda: vlprompt.create_learner("coop", None, ["cat", "dog"]),
        lambda: vlprompt.create_learner("coop", CLIP.model, ["cat", "dog"]),
        lambda: vlprompt.create_learner("coop", ["cat", "dog"], CLIP),
        *(
            lambda s=s: vlprompt.create_learner("coop", CLIP, ["cat", "dog"], seed=s)
            for s in ("a", None, 1.5, -1, 2**63)
        ),
        *(lambda t=t: vlprompt.create_learner("coop", CLIP, ["cat", "dog"], templates=t) for t in ([], [1], ["x"], 5)),
        *(lambda x=x: CLIP.encode_text(x) for x in ("a cat", None, [], [1], 3)),
        *(lambda x=x: vlprompt.load_clip(x) for x in (None, 5, Path("x"), ["a"], b"ViT-B-32", CLIP)),
        *(lambda x=x: vlprompt.load_clip("vlprompt-tiny", device=x) for x in (None, [], 5, "x")),
        *(lambda x=x: vlprompt.load_clip("vlprompt-tiny", precision=x) for x in (None, 16, ["fp32"])),
        lambda: vlprompt.load_clip("ViT-B-32", pretrained=5),
        lambda: vlprompt.load_clip("ViT-B-32", checkpoint=io.BytesIO()),
        *(lambda x=x: vlprompt.load_folder(x) for x in (None, 5, ["a"], b"/", io.BytesIO(), "nowhere", __file__)),
        *(lambda x=x: vlprompt.load_learner(x) for x in (None, 5, ["a"], b"/", io.BytesIO(), "nowhere", __file__)),
        *(lambda x=x: vlprompt.run(method="coop", clip=x) for x in ("vlprompt-tiny", 5, CLIP.model)),
    ],
)
def test_models_learners_and_folders_are_asked_for_rightly(ask: Callable[[], Any]) -> None:
    told(ask)


@pytest.mark.parametrize(
    "images",
    [
        PHOTO,
        "a.png",
        Path("a.png"),
        b"bytes",
        io.BytesIO(),
        None,
        5,
        {"a": 1},
        np.zeros((2, WIDTH), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        READY[0],
        [None],
        [5],
        [io.BytesIO()],
        [np.zeros((0, 8, 3), np.uint8)],
        [torch.zeros(3, SIDE + 1, SIDE + 1)],
        [READY[0] * torch.nan],
        ["nowhere.png"],
    ],
    ids=lambda images: type(images).__name__,
)
def test_prediction_takes_several_images(images: Any) -> None:
    told(lambda: list(vlprompt.predict_images(testing.make("coop"), images)))
    told(lambda: vlprompt.image_features(CLIP, images))


@pytest.mark.parametrize(
    "settings",
    [
        *({"top": top} for top in (0, "a", None, 1.5, True)),
        *({"batch_size": size} for size in (0, -1, "a", 1.5)),
        *({"threads": threads} for threads in (-1, "a", 0.5)),
        {"on_unreadable": 5},
    ],
    ids=str,
)
def test_prediction_takes_whole_numbers(settings: dict[str, Any]) -> None:
    told(lambda: list(vlprompt.predict_images(testing.make("coop"), [PHOTO], **settings)))


@pytest.mark.parametrize("learner", [None, CLIP, "x", torch.nn.Linear(1, 1)], ids=lambda x: type(x).__name__)
def test_what_is_no_learner_is_told(learner: Any) -> None:
    told(lambda: list(vlprompt.predict_images(learner, [PHOTO])))
    told(lambda: vlprompt.evaluate_learner(learner, "digits"))
    told(lambda: analysis.feature_shift(learner, READY))
    told(lambda: analysis.nearest_words(learner))
    if learner is not CLIP:
        told(lambda: vlprompt.image_features(learner, [PHOTO]))
        told(lambda: analysis.attention_maps(learner, READY))


@pytest.mark.parametrize("dataset", [None, 5, Path("x"), "digit", testing.make("coop")], ids=lambda x: type(x).__name__)
def test_what_is_no_dataset_is_told(dataset: Any) -> None:
    told(lambda: vlprompt.evaluate_learner(testing.make("coop"), dataset))


def test_analysis_is_told_what_it_cannot_draw() -> None:
    learner = testing.make("coop")
    for images in (None, [PHOTO], READY[0], READY.numpy()):
        told(lambda images=images: analysis.attention_maps(learner, images))
        told(lambda images=images: analysis.feature_shift(learner, images))
    for labels in (None, torch.tensor([0, 1, 2, -1]), torch.tensor([0.0, 1, 0, 1]), torch.tensor([0])):
        told(lambda labels=labels: analysis.project_features(learner, READY, labels))
    for draw in (analysis.plot_attention, analysis.plot_feature_shift, analysis.plot_projection):
        told(lambda draw=draw: draw(READY))
    told(lambda: analysis.sample_images(CLIP, "digits", per_class=0))
    told(lambda: analysis.plot_attention(analysis.attention_maps(learner, READY), layer=99))


# The estimator keeps to scikit-learn's conventions: ValueError, of which VlpromptError is one; TypeError for sparse


def classifier(**settings: Any) -> PromptClassifier:
    return PromptClassifier(**{"backbone": CLIP, "epochs": 1, "views": 1, "device": "cpu", **settings})


@pytest.mark.parametrize(
    ("X", "y", "sentence"),
    [
        (PHOTO, NAMES, "X must be a list of images"),
        ((image for image in [PHOTO] * 6), NAMES, "X must be a list of images or a table of features, not generator"),
        ({"a": 1}, NAMES, "X must be a list of images or a table of features, not dict"),
        ([io.BytesIO()] * 6, NAMES, r"X\[0\] is BytesIO: X must hold images throughout"),
        ([b"bytes"] * 6, NAMES, r"X\[0\] is b'bytes'"),
        ([PHOTO, None] * 3, NAMES, r"X\[1\] is None"),
        ([FEATURES[0], PHOTO] * 3, NAMES, r"X\[1\] is Image"),
        (FEATURES[:, :5], NAMES, "X has 5 columns, and image features of .* have"),
        (FEATURES[0], NAMES, "Expected 2D array"),
        (FEATURES * np.nan, NAMES, "Input X contains NaN"),
        ([READY[0] * torch.nan] * 6, NAMES, "not finite"),
        ([], [], "X is empty"),
        (None, NAMES, "Expected 2D array"),
        (FEATURES, None, "requires y to be passed"),
        (FEATURES, NAMES[:2], "inconsistent numbers of samples"),
        (FEATURES, ["a"] * 6, "there is only 1 class, 'a'"),
        (FEATURES, ["a", None] * 3, r"labels must be all names or all numbers, and y\[1\] is None"),
        (FEATURES, ["a", 1] * 3, r"labels must be all names or all numbers, and y\[1\] is 1"),
        (FEATURES, np.array(["a", None] * 3, dtype=object), r"y\[1\] is None"),
        (FEATURES, [0.5, 1.5] * 3, "Unknown label type"),
        (FEATURES, np.zeros((6, 2)), r"y of shape \(6, 2\) is multi-label"),
    ],
)
def test_the_estimator_says_what_cannot_be_learnt_from(X: Any, y: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        classifier().fit(X, y)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": None},
        {"method": []},
        {"backbone": None},
        {"backbone": 5},
        {"backbone": Path("x")},
        {"options": ["n_ctx"]},
        {"options": "n_ctx=4"},
        {"class_names": 5},
        {"class_names": {"x"}},
        {"class_names": ["one"]},
        {"class_names": ["one", None]},
        {"templates": 5},
        {"epochs": 1.5},
        {"batch_size": "x"},
        {"workers": -1},
    ],
    ids=str,
)
def test_the_estimators_settings_are_told_when_it_is_fitted(settings: dict[str, Any]) -> None:
    told(lambda: classifier(**settings).fit(FEATURES, NAMES))


def test_the_estimator_keeps_scikit_learns_conventions() -> None:
    with pytest.raises(NotFittedError):
        classifier().predict(FEATURES)
    with pytest.raises(ValueError, match="Invalid parameter 'foo'"):
        classifier().set_params(foo=1)
    with torch.no_grad():  # whoever calls
        fitted = clone(classifier(epochs=np.int64(1), batch_size=np.int64(4), lr=np.float32(0.01))).fit(FEATURES, NAMES)
    assert fitted.predict(FEATURES.astype(object)).shape == (6,)
    with pytest.raises(ValueError, match="X has 5 features, but PromptClassifier is expecting"):
        fitted.predict(FEATURES[:, :5])
    with pytest.raises(VlpromptError, match="not finite"):
        fitted.predict([READY[0] * torch.nan])
    for name, label in ((None, None), (5, None), ("", None), (["x"], None), ("x", 3), ("x", "a")):
        told(lambda name=name, label=label: fitted.add_class(name, label))
    assert classifier().fit(FEATURES, [3, 7] * 3).predict(FEATURES).tolist()[0] in (3, 7)


def test_tables_of_paths_and_of_features(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "photo.png"
    PHOTO.save(path)
    table = pandas.DataFrame({"path": [str(path)] * 6, "label": NAMES})
    assert classifier().fit(table["path"], table["label"]).predict(table[["path"]]).shape == (6,)
    with pytest.raises(VlpromptError, match=r"X has 2 columns, and 'path' holds texts: give X\['path'\]"):
        classifier().fit(table, NAMES)
    features = pandas.DataFrame(FEATURES, columns=[f"f{i}" for i in range(WIDTH)])
    fitted = classifier().fit(features, NAMES)
    assert fitted.feature_names_in_[0] == "f0"
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.predict(features.rename(columns={"f0": "z"}))


def test_a_function_is_held_to_the_classes_that_it_declares() -> None:
    @checked
    def ask(number: int, path: str | Path, tensor: torch.Tensor | None = None, text: str = "", *, more: int = 0) -> int:
        return number

    assert ask(np.int64(3), Path("x")) == 3
    assert ask(3, "x", None, 5) == 3  # lone texts are left to the function
    for wrong in ((True, "x"), ("3", "x"), (3, b"x"), (3, "x", [1])):
        told(lambda wrong=wrong: ask(*wrong))
    with pytest.raises(TypeError, match="missing"):
        ask(3)
