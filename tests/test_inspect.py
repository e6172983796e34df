"""Which images are mistaken, how surely, and what is wrong with the images: inspection, page and command."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_report_page import Page

import vlprompt
from vlprompt.analysis import DataFindings, Inspection, inspect_data, label_errors, near_duplicates, plot_mistakes
from vlprompt.base.layout import LEARNER, PREDICTIONS
from vlprompt.cli.__main__ import main
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.metrics import Reliability
from vlprompt.evaluation.results import read_result
from vlprompt.evaluation.saved_predictions import Predictions
from vlprompt.report.inspection import inspection_page, save_findings, without_leaks
from vlprompt.runs import inspect_run

HOSTILE = ["<script>alert(1)</script>", "\x1b[31mred", "=SUM(1)", "$x$"]


def picture(place: int) -> Image.Image:
    return Image.new("RGB", (300, 20 + place), (9 * place % 256, 120, 60))


def made(names: list[str], label: list[int], predicted: list[int], confidence: list[float], **more) -> Inspection:
    """An inspection of so many images, on which zero-shot always says the first class."""
    said = Predictions(
        *(torch.tensor(x, dtype=torch.int32) for x in (label, predicted, [0] * len(label))), torch.tensor(confidence)
    )
    return Inspection("coop on photos: all", tuple(names), [f"{i}.jpg" for i in range(len(label))], said, **more)


def clusters(n: int, classes: int = 3, width: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) of classes that lie apart, and their labels (N,)."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return generator.normal(size=(classes, width))[labels] * 3 + generator.normal(size=(n, width)), labels


# The numbers


def test_the_numbers_of_an_inspection_are_those_of_its_images() -> None:
    label, predicted = [0, 0, 0, 0, 1, 1, 1, 2], [0, 0, 1, 1, 1, 1, 0, 1]
    confidence = [0.9, 0.5, 0.95, 0.6, 0.8, 0.7, 0.99, 0.6]
    found = made(["cat", "dog", "owl", "fox"], label, predicted, confidence)
    assert (found.accuracy, found.zero_shot, found.n_images) == (50, 50, 8)
    assert found.macro_accuracy == pytest.approx(100 * (1 / 2 + 2 / 3 + 0) / 3)
    z = 1.959964
    middle, half = (0.5 + z * z / 16) / (1 + z * z / 8), z * (0.25 / 8 + z * z / 256) ** 0.5 / (1 + z * z / 8)
    assert found.interval == pytest.approx((100 * (middle - half), 100 * (middle + half)), abs=1e-3)  # Wilson, eq. 4
    assert found.mistakes() == [6, 2, 3, 7]
    assert found.mistakes(1) == [6]
    assert [(c.label, c.predicted, c.images, c.share) for c in found.confusions()] == [
        (0, 1, 2, 50),
        (1, 0, 1, pytest.approx(100 / 3)),
        (2, 1, 1, 100),
    ]
    cat, _, owl, fox = found.classes
    assert (cat.images, cat.correct, cat.zero_shot_correct, cat.taken_for, cat.taken) == (4, 2, 4, "dog", 2)
    assert (owl.accuracy, owl.taken_for, fox.accuracy, fox.interval) == (0, "dog", None, None)
    assert [(c.name, round(c.gain, 1)) for c in found.changes] == [("dog", 66.7), ("owl", 0), ("cat", -50)]
    assert "50.0% [21.5, 78.5] of 8 images right, zero-shot 50.0%" in repr(found)


def test_calibration_by_what_was_kept_is_that_by_logits() -> None:
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.arange(200) % 5
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    found = made(list("abcde"), labels.tolist(), predicted.tolist(), confidence.tolist())
    assert found.ece == pytest.approx(100 * Reliability.of(labels, logits).expected_calibration_error, abs=1e-4)


def test_tables_are_columns_of_one_length_and_frames_need_pandas() -> None:
    found = made(["cat", "dog"], [0, 1, 1], [0, 0, 1], [0.9, 0.8, 0.7])
    for name in ("images", "classes", "confusions"):
        columns = found.table(name)
        assert len({len(values) for values in columns.values()}) == 1
    assert found.table("images")["correct"] == [True, False, True]
    with pytest.raises(VlpromptError, match="unknown table 'imags'"):
        found.table("imags")
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(VlpromptError, match="needs pandas"):
            found.to_frame()
    else:
        assert list(found.to_frame("classes")["class"]) == ["cat", "dog"]


def test_what_is_answered_of_them_is_told(tmp_path: Path) -> None:
    found = made(["cat", "dog"], [0, 1, 1, 0], [0, 0, 1, 0], [0.9, 0.4, 0.7, 0.8], min_probability=0.75)
    words = Page(inspection_page([found])).words
    assert {"50.0%", "from 75% sure on, 100.0% of them right"} <= set(words)


# The data


def test_flipped_labels_are_found_with_the_class_that_they_had() -> None:
    features, labels = clusters(150)
    given = labels.copy()
    flipped = np.array([0, 31, 62])  # one of each class
    given[flipped] = (labels[flipped] + 1) % 3
    found = label_errors(features, given)
    assert sorted(found.places.tolist()) == flipped.tolist()
    assert found.suggested.tolist() == labels[found.places].tolist()
    assert (np.diff(found.margins) <= 0).all()
    assert found.accuracy == pytest.approx(100 * 147 / 150)


def test_an_image_that_is_alone_in_its_class_is_not_asked_about() -> None:
    features, labels = clusters(40)
    labels[5], labels[6] = 7, 8
    found = label_errors(features, labels)
    assert found.n_images == 38
    assert not {5, 6} & set(found.places.tolist())
    assert label_errors(features[:3], np.arange(3)) is None
    with pytest.raises(VlpromptError, match="a label is needed for each row"):
        label_errors(features, labels[:5])


def test_copies_are_found_within_a_part_and_across_two() -> None:
    features, _ = clusters(60, width=64)
    parts = ["train"] * 30 + ["test"] * 30
    features[40] = features[3] + 0.01  # across
    features[50] = features[51] = features[7]  # within test, and both across
    found = near_duplicates(features, parts)
    assert {tuple(pair) for pair in found.pairs.tolist()} == {(3, 40), (50, 51), (7, 50), (7, 51)}
    assert (np.diff(found.shares) >= 0).all()
    assert found.shares.max() < 0.4
    assert found.distances.max() < 1e-4
    checks = DataFindings(("a",), list(map(str, range(60))), parts, np.zeros(60, int), None, found)
    assert checks.leaks == [40, 50, 51]
    assert not len(near_duplicates(clusters(60, width=64)[0]))
    with pytest.raises(VlpromptError, match="close must be a share"):
        near_duplicates(features, close=2.0)


def test_accuracy_without_leaks_leaves_the_leaked_images_out() -> None:
    features, labels = np.random.default_rng(0).normal(size=(8, 64)), np.arange(8) % 3
    features[6] = features[1]
    duplicates = near_duplicates(features, ["train"] * 4 + ["test"] * 4)
    names, parts = [str(i) for i in range(8)], ["train"] * 4 + ["test"] * 4
    checks = DataFindings(("a", "b", "c"), names, parts, labels, None, duplicates)
    found = made(["a", "b", "c"], [1, 2, 0, 1], [1, 2, 0, 2], [0.9] * 4, findings=checks)
    assert checks.leaks == [6]
    assert without_leaks(found) == (pytest.approx(200 / 3), 3)
    assert without_leaks(replace(found, findings=None)) is None


# The page


def test_the_page_is_well_formed_and_says_in_words_what_it_shows(tmp_path: Path) -> None:
    label = [i % 4 for i in range(40)]
    predicted = [i % 4 if i % 3 else (i + 1) % 4 for i in range(40)]
    features, _ = clusters(40, 4)
    features[1] = features[2]
    found = DataFindings(
        tuple(HOSTILE), [f"<i>{i}</i>\x1b[0m.jpg" for i in range(40)], ["test"] * 40, np.array(predicted),
        label_errors(features, np.array(predicted)), near_duplicates(features), picture,
    )  # fmt: skip
    inspection = made(HOSTILE, label, predicted, [0.9] * 40, open_image=picture, findings=found)
    path = inspection.save(tmp_path, images=5)
    text = path.read_text()
    page = Page(text)
    assert not re.search(r"https?://|url\(|@import", text)
    assert "\x1b" not in text
    assert len(page.of("script")) == 1
    assert not page.of("i")
    images = page.of("img")
    assert len(images) == 5 + min(5, len(found.errors)) + 2 * min(5, len(found.duplicates))
    assert all(image["alt"] and image["src"].startswith("data:image/jpeg;base64,") for image in images)
    assert all(a.get("scope") in ("col", "row", "rowgroup") for a in page.of("th"))
    assert all(a.get("aria-label") for a in page.of("svg"))
    rows = list(csv.reader((tmp_path / "images.csv").open(newline="")))
    assert len(rows) == 41
    assert "'=SUM(1)" in {row[1] for row in rows}
    assert Image.open(tmp_path / "mistakes.png").format == "PNG"
    assert {"label_errors.csv", "near_duplicates.csv", "classes.csv"} <= {p.name for p in tmp_path.iterdir()}
    assert "<script>" not in inspection._repr_html_()


def test_images_beyond_the_budget_are_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlprompt.report.inspection.BUDGET", 1)
    inspection = made(["cat", "dog"], [0] * 9, [1] * 9, [0.9] * 9, open_image=picture)
    text = inspection_page([inspection])
    assert len(Page(text).of("img")) == 1  # the one that went over it
    assert text.count("no image") == 8


def test_without_mistakes_or_images_there_is_no_sheet(tmp_path: Path) -> None:
    right = made(["cat", "dog"], [0, 1], [0, 1], [0.9, 0.9], open_image=picture)
    (tmp_path / "mistakes.png").write_text("of an earlier one")
    assert "There are none." in right.save(tmp_path).read_text()
    assert not (tmp_path / "mistakes.png").exists()
    with pytest.raises(VlpromptError, match="no image was misclassified"):
        plot_mistakes(right)
    with pytest.raises(VlpromptError, match="is a file"):
        right.save(tmp_path / "images.csv")


def test_of_many_classes_those_with_the_most_mistakes_are_drawn() -> None:
    names = [f"class {i}" for i in range(60)]
    label = [*range(60), 50, 50, 50]
    predicted = [*range(60), 51, 51, 52]
    text = inspection_page([made(names, label, predicted, [0.9] * 63)])
    assert "the 25 classes with the most mistakes" in text
    assert "2 of 4 images of class 50: class 51" in text


# A run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of emoji, of which one has the wrong label, and one is there twice."""
    root, emoji = tmp_path_factory.mktemp("own") / "photos", vlprompt.load_split("emoji")
    few = ["bird", "fruit", "flower"]
    for name in few:
        (root / name).mkdir(parents=True)
    chosen = [item for item in emoji.train if item.class_name in few][::2]
    for i, item in enumerate(chosen):
        emoji.open_image(item).save(root / item.class_name / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def run_folder(photos: Path) -> Path:
    vlprompt.run(
        method="coop", dataset=f"folder:{photos}", protocol="few_shot", shots=4, epochs=2, views=1, n_ctx=2,
        output=str(photos.parent / "runs"), name="it", quiet=True,
    )  # fmt: skip
    return photos.parent / "runs" / "it"


def state(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_is_inspected_by_its_own_numbers_and_left_as_it_is(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, [row] = state(run_folder), read_result(run_folder / "result.json").rows
    assert main(["inspect", f"run={run_folder}", f"output={tmp_path}", "images=3"]) == 0
    told = capsys.readouterr().out
    assert f"{row.accuracy:.1f}%" in told
    assert "taken for" in told
    assert state(run_folder) == before
    with open(tmp_path / "images.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert sum(line["correct"] == "True" for line in lines) == round(row.accuracy * row.n_images / 100)
    assert all((run_folder.parents[1] / "photos" / line["image"]).is_file() for line in lines)
    assert all(line["image"].startswith(line["class"]) for line in lines)
    wrong = sum(line["correct"] == "False" for line in lines)
    alts = [image["alt"] for image in Page((tmp_path / "inspect.html").read_text()).of("img")]
    assert sum("taken for" in alt for alt in alts) == min(3, wrong)


def test_a_run_without_predictions_is_scored_again_with_the_same_outcome(run_folder: Path, tmp_path: Path) -> None:
    [kept] = inspect_run(run_folder, check_data=False)
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    (copy / PREDICTIONS).unlink()
    before = state(copy)
    [again] = inspect_run(copy, check_data=False)
    assert again.said.predicted.tolist() == kept.said.predicted.tolist()
    torch.testing.assert_close(again.said.confidence, kept.said.confidence)
    assert state(copy) == before
    shutil.rmtree(copy / LEARNER)
    with pytest.raises(VlpromptError):
        inspect_run(copy)


def test_what_cannot_be_inspected_is_told_in_a_sentence(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        assert main(["inspect", *arguments]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        return line

    assert "no result at" in error(f"run={tmp_path / 'nowhere'}")
    assert "has no test 'nwe'" in error(f"run={run_folder}", "targets=nwe")
    assert "page.html is a file: give a folder" in error(f"run={run_folder}", f"output={tmp_path / 'page.html'}")
    assert "page.html is a file: give a folder" in error("data=digits", f"output={tmp_path / 'page.html'}")
    assert "say what to inspect" in error()
    assert "inspect different things" in error(f"run={run_folder}", "data=digits")
    assert "limit does not go with run=" in error(f"run={run_folder}", "limit=3")
    assert "images must be a whole number" in error(f"run={run_folder}", "images=none")
    gone = next(iter(vlprompt.load_split(f"folder:{photos}").test))
    place = photos / gone.path
    moved = shutil.move(place, tmp_path / "kept.png")
    try:
        assert "are not the" in error(f"run={run_folder}")
    finally:
        shutil.move(moved, place)
    (tmp_path / "texts" / "cat").mkdir(parents=True)
    (tmp_path / "texts" / "cat" / "about.txt").write_text("a cat")
    assert "texts" in error(f"data=folder:{tmp_path / 'texts'}")


def test_a_dataset_alone_is_asked_for_wrong_labels_and_copies(photos: Path, tmp_path: Path) -> None:
    root = shutil.copytree(photos, tmp_path / "photos")
    one = sorted((root / "bird").iterdir())[0]
    shutil.copy(one, root / "fruit" / "zz.png")
    argv = ["inspect", f"data=folder:{root}", f"output={tmp_path / 'out'}", "--quiet"]
    assert main(argv) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "near_duplicates.csv").open(newline="")))
    assert {"bird", "fruit"} in [{row["class"], row["other_class"]} for row in rows if float(row["distance"]) < 1e-5]
    assert "with different labels" in (tmp_path / "out" / "inspect.html").read_text()


# A classifier


@pytest.fixture(scope="module")
def fitted(photos: Path) -> tuple[vlprompt.PromptClassifier, list[str], list[str]]:
    paths, names = vlprompt.load_folder(photos)
    classifier = vlprompt.PromptClassifier(epochs=2, views=1, options={"n_ctx": 2}).fit(paths[::2], names[::2])
    return classifier, paths[1::2], names[1::2]


def test_a_classifier_reports_on_images_and_on_their_features_alike(fitted, tmp_path: Path) -> None:
    classifier, paths, names = fitted
    found = classifier.report(paths, names)
    assert found.accuracy == pytest.approx(100 * classifier.score(paths, names))
    rows = vlprompt.image_features(classifier.learner_.clip, paths)
    other = classifier.report(rows, names)
    assert other.said.predicted.tolist() == found.said.predicted.tolist()
    assert other.said.zero_shot.tolist() == found.said.zero_shot.tolist()
    zero_shot = vlprompt.PromptClassifier(method="zero_shot").fit(paths, names)
    assert found.zero_shot == pytest.approx(100 * zero_shot.score(paths, names))
    assert found.names == [str(path) for path in paths]
    assert "no image" in other.save(tmp_path).read_text()
    assert not (tmp_path / "mistakes.png").exists()


def test_a_report_refuses_what_does_not_fit(fitted) -> None:
    classifier, paths, names = fitted
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        classifier.report(paths, names[:-1])
    with pytest.raises(VlpromptError, match="'fish' is not one of the classes"):
        classifier.report(paths[:2], ["fish", names[0]])
    with pytest.raises(VlpromptError, match="does not exist"):
        classifier.report(["a cat", "a dog"], names[:2])


def test_findings_of_python_are_those_of_the_command(photos: Path, tmp_path: Path) -> None:
    found = inspect_data(vlprompt.load_clip("vlprompt-tiny", device="cpu"), vlprompt.load_split(f"folder:{photos}"))
    assert set(found.parts) == {"train", "val", "test"}
    page = save_findings("photos", {"backbone": "vlprompt-tiny"}, found, tmp_path)
    for line in found.lines():
        assert line in Page(page.read_text()).words
    assert json.dumps(found.table("near_duplicates"))
