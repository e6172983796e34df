"""Scores, and a learner's accuracy on any dataset."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlprompt import VlpromptError, create_learner, testing
from vlprompt.data import load_split
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.evaluation import Scores, evaluate, evaluate_learner, limited, save_predictions, score


def test_accuracy_counts_images_and_macro_accuracy_counts_classes() -> None:
    labels = torch.tensor([0, 0, 0, 2])  # class 1 has no test image
    logits = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 9, 0]])
    scores = Scores(labels, logits)
    assert scores.accuracy == 0.5
    assert scores.macro_accuracy == pytest.approx((2 / 3 + 0) / 2)


def test_a_limit_takes_evenly_spaced_items() -> None:
    items = list(range(10))
    assert limited(items, None) == limited(items, 99) == items
    assert limited(items, 5) == [0, 2, 4, 6, 8]
    assert limited(items, 3) == [0, 3, 6]


@pytest.mark.parametrize("method", ["coop", "maple"])
def test_a_learner_is_scored_on_a_datasets_own_classes_and_keeps_its_names(method: str) -> None:
    learner = create_learner(
        method, testing.small_clip(), ["cat", "dog"], **({"depth": 2} if method == "maple" else {})
    )
    accuracy = evaluate_learner(learner, "digits", half="new", limit=30)
    assert learner.class_names == ("cat", "dog")
    part = load_split("digits").select("new")
    learner.set_class_names(part.class_names)
    images = torch.stack([testing.small_clip().preprocess(part.open_image(i)) for i in limited(part.test, 30)])
    with torch.no_grad():
        right = learner(images).argmax(dim=1) == torch.tensor([i.label for i in limited(part.test, 30)])
    assert accuracy == int(right.sum()) / 30 == score(learner, part, limit=30).accuracy


@pytest.mark.parametrize(("method", "given"), [("zero_shot", ["a {}."]), ("mmrl", "a {}."), ("clip_lora", "a {}.")])
def test_class_texts_of_templates_are_the_tested_datasets_own_unless_they_were_given(
    method: str, given: object
) -> None:
    own, other = ("a sketch of a {}.",), ("{} texture.", "a {}.")
    learner = testing.make(method, templates=own).eval()
    before, new = learner.class_features(), testing.NEW_NAMES
    expected = testing.make(method, templates=other).eval()
    for names in (testing.NAMES, new):
        with learner.scoring(names, (), other):
            expected.set_class_names(names)
            assert torch.equal(learner.class_features(), expected.class_features())
            assert not testing.close(learner.class_features()[:3], before[:3], 1e-2)
        assert learner.templates == own
        assert torch.equal(learner.class_features(), before)
    told, plain = (testing.make(method, template=given, templates=each).eval() for each in (own, other))
    with told.scoring(new, (), other), plain.scoring(new):
        assert torch.equal(told.class_features(), plain.class_features())


def test_zero_shot_on_another_dataset_is_what_stands_beside_a_learner_unless_that_has_no_words() -> None:
    splits = load_split("digits")
    learner = testing.make("zero_shot", templates=["a symbol of a {}."])
    found = evaluate(learner, splits, target="digits", limit=20)
    assert torch.equal(found.learnt.logits, found.frozen.logits)
    asked = evaluate(learner, splits, target="digits", limit=20, templates="a {}.")
    assert torch.equal(asked.learnt.logits, found.frozen.logits), "these are zero-shot's alone"
    unsaid = replace(splits, name="mine", templates=(DEFAULT_TEMPLATE,))
    own = evaluate(learner, unsaid, target="mine", limit=20)
    assert not testing.close(own.learnt.logits, own.frozen.logits, 1e-2)
    learner.learnt_on = ("digits",)
    assert not testing.close(evaluate(learner, splits, limit=20).learnt.logits, found.frozen.logits, 1e-2)


def test_a_learner_bound_to_its_classes_is_not_scored_on_others() -> None:
    learner = create_learner("coop", testing.small_clip(), ["cat", "dog"], class_specific=True)
    with pytest.raises(VlpromptError, match="cannot score new class names"):
        evaluate_learner(learner, "digits")


def test_every_metric_is_in_the_row_beside_zero_shots() -> None:
    learner = create_learner("coop", testing.small_clip(), ["cat", "dog"])
    found = evaluate(learner, load_split("digits"), limit=40, spread=["a {}.", "{}"])
    row, n = found.row, 40
    assert (row.n_images, row.n_classes, sum(row.per_class["images"])) == (n, 10, n)
    assert row.accuracy == pytest.approx(100 * sum(row.per_class["correct"]) / n)
    assert row.zero_shot == pytest.approx(100 * sum(row.per_class["zero_shot_correct"]) / n)
    assert row.accuracy <= row.top5 <= 100
    assert sum(row.reliability["images"]) == n
    assert row.format_spread.keys() == {"a {}.", "{}"}
    assert torch.equal(found.predictions.predicted.long(), found.learnt.logits.argmax(1))
    assert learner.class_names == ("cat", "dog")


def test_other_class_names_are_in_label_order_and_more_are_distractors() -> None:
    learner, splits = create_learner("coop", testing.small_clip(), ["cat", "dog"]), load_split("digits")
    names = [f"the digit {i}" for i in range(10)]
    assert evaluate(learner, splits, class_names=[*names, "a letter"], limit=10).row.n_classes == 11
    with pytest.raises(VlpromptError, match="9 class names were given, and digits has 10 classes"):
        evaluate(learner, splits, class_names=names[:9])


def test_predictions_are_the_same_in_csv_and_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    learner = create_learner("zero_shot", testing.small_clip(), ["cat", "dog"])
    found = evaluate(learner, load_split("digits").select("base"), limit=8)
    save_predictions([found], tmp_path / "p.csv")
    save_predictions([found], tmp_path / "p.parquet")
    with open(tmp_path / "p.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert [{k: str(v) for k, v in row.items()} for row in table] == lines
    assert [row["correct"] for row in table] == (found.learnt.predicted == found.learnt.labels).tolist()
    with pytest.raises(VlpromptError, match=r"as \.csv or \.parquet, not to p\.xlsx"):
        save_predictions([found], tmp_path / "p.xlsx")
