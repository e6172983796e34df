"""Images that count more than others: ``sample_weight`` and ``class_weight`` in the losses and heads that can."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils.estimator_checks import check_class_weight_classifiers, check_sample_weight_equivalence_on_dense_data
from test_estimator import OnAnyTable, coloured, one_block_clip

from vlprompt import PromptClassifier, VlpromptError, list_methods, method_info
from vlprompt.learner.registration import METHODS

FASTEST: dict[str, Any] = {"device": "cpu", "epochs": 1, "batch_size": 6, "views": 1}
OWN = [name for name in list_methods() if METHODS.get(name).registered.weighs]


@cache
def rows(count: int = 12, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) of three classes, whose labels overlap."""
    generator, labels = np.random.default_rng(0), np.arange(count) % 3
    centres = generator.normal(size=(3, width))
    return (centres[labels] + generator.normal(size=(count, centres.shape[1]))).astype(np.float32), labels


def learnt(X: Any, y: Any, weight: Any = None, **settings: Any) -> dict[str, torch.Tensor]:
    made = PromptClassifier(backbone=one_block_clip(), **{**FASTEST, "method": "kgcoop", **settings})
    return {**made.fit(X, y, sample_weight=weight).learner_.state_dict()}


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one)


@pytest.mark.parametrize("method", sorted({*OWN, "kgcoop", "promptsrc"}))
def test_an_image_that_hardly_counts_has_hardly_a_say(method: str) -> None:
    """Whatever its label is said to be, and not so where it counts as the others do."""
    (X, y), depth = rows(), {"depth": 1, "vision_depth": 1}
    if method == "promptsrc":
        X, y = coloured(4)
    wrong = [*y[:-1], y[0]]
    options = {key: value for key, value in depth.items() if key in method_info(method)["config"]}
    options |= {"steps": 2} if method_info(method)["trains"] else {}
    options |= {"fit_views": 1} if "fit_views" in method_info(method)["config"] else {}
    light = [1.0] * (len(y) - 1) + [1e-9]
    fits = [
        learnt(X, labels, weight, method=method, options=options) for labels in (y, wrong) for weight in (light, None)
    ]
    said, plain = differ(fits[0], fits[2]), differ(fits[1], fits[3])
    assert plain > 1e-6
    assert said < 1e-3 * plain


def test_what_is_fitted_counts_an_image_as_so_many_copies() -> None:
    table = OnAnyTable("gda", one_block_clip(), options={"fit_views": 1}, device="cpu")
    check_sample_weight_equivalence_on_dense_data("gda", table)
    probe = OnAnyTable("linear_probe", one_block_clip(), options={"fit_views": 1}, device="cpu")
    check_class_weight_classifiers("linear_probe", probe)  # which has a bias
    (X, y), counts = rows(), np.arange(12) % 4
    for method in ("gda", "linear_probe"):
        copies = learnt(np.repeat(X, counts, axis=0), np.repeat(y, counts), method=method, options={"fit_views": 1})
        assert differ(learnt(X, y, counts, method=method, options={"fit_views": 1}), copies) < 1e-3


def test_a_trained_loss_takes_weights_relative_to_their_mean() -> None:
    (X, y), weights = rows(), np.linspace(0.5, 2, 12)
    assert differ(learnt(X, y, weights), learnt(X, y, 40 * weights)) < 1e-6
    assert differ(learnt(X, y, weights), learnt(X, y)) > 1e-6


def test_balanced_classes_are_weighted_by_their_rarity() -> None:
    X, y = rows()
    y = np.array([*y[:-2], 0, 0])  # six, three and three
    by_hand = np.where(y == 0, 12 / 3 / 6, 12 / 3 / 3)
    for weighted in ("balanced", {0: 12 / 3 / 6, 1: 12 / 3 / 3, 2: 12 / 3 / 3}):
        assert differ(learnt(X, y, class_weight=weighted, method="gda"), learnt(X, y, by_hand, method="gda")) < 1e-6
    both = learnt(X, y, np.arange(1, 13), class_weight="balanced", method="gda")
    assert differ(both, learnt(X, y, by_hand * np.arange(1, 13), method="gda")) < 1e-6


def test_an_image_without_weight_is_left_out_even_where_it_is_there_twice(tmp_path: Any) -> None:
    images, names = coloured(2)
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    settings = {"method": "kgcoop"}
    twice = learnt([*paths, paths[0]], [*names, names[0]], [1, 1, 1, 1, 1, 1, 0], **settings)
    assert differ(twice, learnt(paths, names, **settings)) == 0
    again = PromptClassifier("kgcoop", one_block_clip(), **FASTEST)
    again.partial_fit(paths, names, sorted(set(names)), sample_weight=[1, 1, 1, 0, 0, 0])
    assert len(again.history_) == 1


@pytest.mark.parametrize(
    ("settings", "weight", "sentence"),
    [
        ({"method": "tip_adapter"}, [1.0] * 12, "tip_adapter with these settings takes all labelled images alike"),
        ({"method": "zero_shot", "class_weight": "balanced"}, None, "zero_shot .* learns from no labelled images"),
        ({"method": "proda"}, [1.0] * 12, "proda .* alike"),
        ({"options": {"head": "dept"}}, [1.0] * 12, "kgcoop .* alike"),
        ({"method": "gda", "options": {"synthesise": True}}, [1.0] * 12, "gda .* alike"),
        ({}, [1.0] * 3, "sample_weight must be 12 numbers of 0 or more"),
        ({}, [-1.0] * 12, "sample_weight must be 12 numbers of 0 or more"),
        ({}, [0.0] * 12, "sample_weight must be 12 numbers of 0 or more"),
        ({"class_weight": {0: 0, 1: 0, 2: 0}}, None, "all images have a weight of 0"),
        ({"class_weight": "even"}, None, "class_weight must be None, 'balanced' or a dictionary, not 'even'"),
        ({"class_weight": {7: 1.0}}, None, "class_weight has the label 7, which does not occur"),
        (
            {"method": "linear_probe", "class_weight": {2: 0}, "class_names": ["ant", "bee", "owl"]},
            None,
            "and 'owl' has none",
        ),
        ({"class_weight": {1: -1}}, None, r"class_weight\[1\] must be a number of 0 or more"),
    ],
)
def test_weights_that_are_none_or_of_no_use_are_one_sentence(settings: Any, weight: Any, sentence: str) -> None:
    with pytest.raises(VlpromptError, match=sentence):
        learnt(*rows(), weight, **settings)


def test_parts_of_the_images_have_no_classes_to_balance() -> None:
    with pytest.raises(VlpromptError, match="partial_fit sees only some"):
        PromptClassifier(backbone=one_block_clip(), class_weight="balanced").partial_fit(*rows(), [0, 1, 2])
    some = partial(PromptClassifier, "coop", one_block_clip(), options={"n_ctx": 2}, **FASTEST)
    X, y = rows()
    with pytest.raises(VlpromptError, match="class_weight has the label 3, which does not occur"):
        some(class_weight={3: 2.0}).partial_fit(X, y, [0, 1, 2])
    lacking = some(class_weight={0: 2.0, 3: 5.0}).partial_fit(X[y > 0], y[y > 0], [0, 1, 2, 3])
    plain = some().partial_fit(X[y > 0], y[y > 0], [0, 1, 2, 3])
    assert differ({**lacking.learner_.state_dict()}, {**plain.learner_.state_dict()}) < 1e-6, "0 and 3 are not there"
    some(class_weight={9: 2.0}, class_names={0: "ant", 1: "bee", 2: "owl", 9: "elk"}).fit(X, y)


@pytest.mark.parametrize(
    "several", [np.eye(3, dtype=int)[[0, 1, 2] * 4], [["a", "b"], ["a"]] * 6, [(0, 1)] * 12, [{0, 1}] * 12]
)
def test_several_labels_an_image_are_one_sentence(several: Any) -> None:
    with pytest.raises(VlpromptError, match="is multi-label"):
        PromptClassifier(backbone=one_block_clip()).fit(rows()[0], several)


def test_a_part_of_a_feed_keeps_its_counts() -> None:
    from vlprompt.data.splits import DatasetSplits, Item
    from vlprompt.training.feed import ImageFeed, Loading

    items = [Item(str(i), i % 2, "", "ab"[i % 2]) for i in range(6)]
    data = DatasetSplits("it", ("x", "y"), items, (), (), lambda item: Image.new("RGB", (32, 32)))
    feed = ImageFeed(data, one_block_clip(), Loading(batch_size=3, views=1), counts=torch.arange(6.0))
    part = feed.where(domain="b")
    assert part.bank().counts.tolist() == [1, 3, 5]
    [batch] = part.batches()(0)
    assert dict(zip(batch["index"].tolist(), batch["weight"].tolist(), strict=True)) == pytest.approx(
        {0: 1 / 3, 1: 1, 2: 5 / 3}
    )
    assert replace(part, counts=None).bank().counts is None
