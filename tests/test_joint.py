"""Learners that predict all images of a test jointly: what they are handed, and that their results are marked."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_results import make_result, write_results
from PIL import Image
from rich.console import Console

from vlprompt import FrozenCLIP, PromptClassifier, VlpromptError, load_clip, load_learner, load_split, predict_images
from vlprompt.cli.predict import main as predict
from vlprompt.data import FeatureBank
from vlprompt.evaluation import evaluate
from vlprompt.evaluation.results import Result, headline, read_result
from vlprompt.evaluation.tables import metrics_table, result_table
from vlprompt.learner import METHODS, PromptLearner, method_facts
from vlprompt.learner.held_out import Selection
from vlprompt.report import make_report
from vlprompt.saving.card import model_card
from vlprompt.saving.description import read_description
from vlprompt.saving.export import export_learner
from vlprompt.saving.teacher import LearnerTeacher
from vlprompt.testing import NAMES, make, small_clip

JOINT = [("transclip", {}), ("zlap", {})]
CLASSES, WIDTH = len(NAMES), 64


@pytest.fixture(scope="module")
def tiny() -> FrozenCLIP:
    return load_clip("vlprompt-tiny", device="cpu")


def each_joint(function):
    return pytest.mark.parametrize(("method", "settings"), JOINT, ids=[name for name, _ in JOINT])(function)


def features(n: int, seed: int = 0) -> torch.Tensor:
    """Normalised image features (n, D) around the zero-shot class features."""
    generator = torch.Generator().manual_seed(seed)
    centres = make("zero_shot").text_features()[torch.arange(n) % CLASSES]
    return F.normalize(centres + 0.2 * torch.randn(n, WIDTH, generator=generator), dim=1)


class Feed:
    """A feed over features in hand, and labels."""

    def __init__(self, rows: torch.Tensor, labels: torch.Tensor, source: Any = None):
        self.rows, self.labels, self.selection = rows, labels, Selection(source)

    def bank(self, source: str = "labelled", **_: Any) -> FeatureBank:
        return FeatureBank(self.rows[None], self.labels)


def few_shot(shots: int = 3, **settings: Any) -> PromptLearner:
    learner = make("transclip", support=True, text_weight=0.5, **settings).eval()
    learner.learn(Feed(features(shots * CLASSES, 7), torch.arange(shots * CLASSES) % CLASSES), None)
    return learner


# What is handed over, and what does not matter


@each_joint
def test_a_test_is_handed_over_whole_and_without_labels(method: str, settings: dict, tiny) -> None:
    splits = load_split("digits")
    learner = make(method, tiny, splits.class_names, templates=splits.templates, **settings)
    handed = []

    def predict_all(batches):
        handed.extend(batches)
        return PromptLearner.predict_all(learner, iter(handed))

    learner.predict_all = predict_all
    found = evaluate(learner, splits, limit=30)
    assert sum(len(batch["image_features"]) for batch in handed) == 30
    assert not any("label" in batch for batch in handed)
    assert found.row.predicts == "jointly"
    joint = PromptLearner.predict(learner, {"image_features": torch.cat([b["image_features"] for b in handed])})
    torch.testing.assert_close(found.learnt.logits, joint, rtol=1e-3, atol=2e-3)


@each_joint
def test_neither_batches_nor_the_order_of_test_images_matter(method: str, settings: dict) -> None:
    learner, x = make(method, **settings).eval(), features(40)
    whole = learner.predict({"image_features": x})
    parts = torch.cat(list(learner.predict_all({"image_features": part} for part in x.split(7))))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)  # rows are normalised in other numbers at once
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(learner.classify(x[order]), whole[order], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(learner.classify(x[:20]), whole[:20], atol=1e-3), "it predicts jointly"


@each_joint
def test_permuted_classes_are_permuted_columns(method: str, settings: dict) -> None:
    x, order = features(40), [3, 0, 4, 1, 2]
    whole = make(method, **settings).eval().classify(x)
    permuted = make(method, names=tuple(NAMES[i] for i in order), **settings).eval().classify(x)
    torch.testing.assert_close(permuted, whole[:, order], rtol=1e-4, atol=1e-4)


@each_joint
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_test_images_or_one_are_enough(method: str, settings: dict, n: int) -> None:
    logits = make(method, **settings).eval().classify(features(n))
    assert logits.shape == (n, CLASSES)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert list(make(method, **settings).predict_all([])) == []


@each_joint
def test_the_same_image_again_and_again_is_no_error(method: str, settings: dict) -> None:
    assert make(method, **settings).eval().classify(features(1).repeat(12, 1)).isfinite().all()


def test_transclip_with_all_weight_on_text_is_zero_shot() -> None:
    x = features(60)
    heavy = make("transclip", text_weight=1e4).eval().classify(x).argmax(dim=1)
    assert torch.equal(heavy, make("zero_shot").eval().classify(x).argmax(dim=1))


@pytest.mark.parametrize("published", [False, True])
def test_few_shot_transclip_is_saved_with_its_labelled_images(tmp_path: Path, published: bool) -> None:
    learner, x = few_shot(as_published=published), features(30)
    learner.save_pretrained(tmp_path)
    again = load_learner(tmp_path, learner.clip)
    assert torch.equal(again.classify(x), learner.classify(x))
    with pytest.raises(VlpromptError, match="bound to the classes"):
        again.set_class_names(["okapi", "tapir"])


@pytest.mark.parametrize("n", [1, 2, 30])
def test_one_labelled_image_a_class_is_enough(n: int) -> None:
    learner = few_shot(1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    whole = learner.classify(features(n))
    assert whole.isfinite().all()
    torch.testing.assert_close(learner.classify(features(n)[order]), whole[order], rtol=1e-4, atol=1e-4)


def test_transclip_chooses_gamma_on_validation_images_before_the_test() -> None:
    learner = make("transclip", support=True, grid={"gamma": [0.002, 0.2]})
    feed = Feed(features(15, 7), torch.arange(15) % CLASSES, "val")
    learner.learn(feed, None)
    assert [point["gamma"] for point in feed.selection.searches[0].points] == [0.002, 0.2]
    assert float(learner.gamma) == pytest.approx(feed.selection.searches[0].chosen["gamma"])
    with pytest.raises(VlpromptError, match="labelled image of each class"):
        learner.learn(Feed(features(4), torch.arange(4)), None)


def test_the_estimator_predicts_jointly() -> None:
    x = features(25).numpy()
    fitted = PromptClassifier("transclip", small_clip(), class_names=dict(enumerate(NAMES)))
    fitted.fit(x, np.arange(25) % CLASSES)
    whole = fitted.predict_proba(x)
    np.testing.assert_allclose(fitted.predict_proba(x[::-1].copy())[::-1], whole, atol=1e-4)
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-5)


# What is refused


@each_joint
def test_no_file_and_no_teacher_can_predict_jointly(method: str, settings: dict, tmp_path: Path) -> None:
    learner = make(method, **settings)
    with pytest.raises(VlpromptError, match="needs other test images to predict one"):
        export_learner(learner, "torch", tmp_path / "out.pt2")
    with pytest.raises(VlpromptError, match="predictions depend on other test images"):
        LearnerTeacher(learner, small_clip(), {})


# The mark


def joint(accuracy: float = 60.0, **changes: Any) -> Result:
    result = make_result({"all": accuracy}, protocol="few_shot", **{"method": "transclip", **changes})
    return replace(result, rows=[replace(row, predicts="jointly") for row in result.rows])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    made = [
        make_result({"all": 50.0}, protocol="few_shot"),
        make_result({"all": 51.0}, protocol="few_shot", method="maple"),
        joint(),
        joint(55.0, method="zlap"),
        make_result({"all": 45.0}, protocol="few_shot", method="zlap", id="a" * 12),
    ]
    return write_results(tmp_path, made)


def test_a_result_keeps_what_its_predictions_depend_on(tmp_path: Path) -> None:
    assert read_result(joint().write(tmp_path / "new.json")).rows[0].predicts == "jointly"
    older = read_result(Path(__file__).parent / "cases" / "files" / "run-0.1.0" / "result.json")
    assert older.predicts == "alone"
    assert older.marked_method == older.method


@pytest.mark.parametrize("form", ["markdown", "latex", "csv", "html"])
def test_every_form_of_a_report_marks_what_was_predicted_jointly(results: Path, form: str) -> None:
    report = make_report([results])
    text = report.text(form).replace("\\", "")
    assert "transclip (transductive)" in text
    assert "zlap (transductive)" in text
    assert "coop (transductive)" not in text
    assert form == "csv" or "the predictions for all images of a test were made jointly" in text
    lines = {line.label: line for table in report.tables for s in table.sections for line in s.lines}
    assert {"zlap", "zlap (transductive)", "transclip (transductive)", "maple", "coop", "zero_shot"} == lines.keys()
    best = [label for label, line in lines.items() if line.cells[0].best]
    assert best == ["maple", "transclip (transductive)"], "what was predicted jointly has no rivals but its like"


def test_the_pair_of_a_transductive_method_is_named_with_its_mark(results: Path) -> None:
    with pytest.raises(VlpromptError, match=r"transclip \(transductive\)"):
        make_report([results], pair=["coop", "transclip"])


def test_what_a_run_prints_is_marked() -> None:
    console = Console(width=140, file=io.StringIO())
    console.print(result_table(joint()), metrics_table("transclip", joint().rows[0]))
    shown = console.file.getvalue()
    assert shown.count("transclip (transductive)") == 4
    assert headline(joint()) == "all 60.00, transductive"
    assert headline(make_result({"all": 60.0}, protocol="few_shot")) == "all 60.00"


def test_the_card_of_a_transductive_learner_is_marked(tmp_path: Path) -> None:
    learner = make("transclip")
    described = read_description(learner.save_pretrained(tmp_path))
    card = model_card(described, learner.facts, 0, joint())
    assert "| predictions | transductive: " in card
    assert "| this learner (transductive) |" in card
    assert "top-1 accuracy (transductive, 10 classes, 100 images)" in card
    assert "transductive" not in model_card(
        described, make("coop").facts, 0, make_result({"all": 1.0}, protocol="few_shot")
    )


def test_predict_says_that_a_folder_was_predicted_jointly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny
) -> None:
    generator = np.random.default_rng(0)
    for i in range(9):
        pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    learner = make("transclip", tiny)
    learner.save_pretrained(tmp_path / "learner")
    files = sorted(map(str, tmp_path.glob("*.png")))
    said = list(predict_images(learner, files, top=5, batch_size=4))
    assert [each.image for each in said] == files
    assert {each.predicts for each in said} == {"jointly"}
    arguments = [f"learner={tmp_path / 'learner'}", *files]
    assert predict(arguments) == 0
    assert capsys.readouterr().out.startswith("transductive: ")
    assert predict([*arguments, "format=jsonl", "batch_size=2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["predicts"] for line in lines} == {"jointly"}
    assert [line["classes"][0] for line in lines] == [each.classes[0] for each in said]
    assert predict([*arguments, "format=csv"]) == 0
    assert [row["predicts"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))] == ["jointly"] * 9


def test_whoever_predicts_jointly_says_so_before_there_is_a_learner() -> None:
    assert method_facts("transclip", {}).predicts == "jointly"
    assert {METHODS.get(name).registered.predicts for name in ("coop", "gda", "tpt", "zero_shot")} == {"alone"}
