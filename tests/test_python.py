"""What Python users hold in hand: results as tables, backbones, versions, public names, classifiers in folders."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from made_results import make_result, over_seeds, write_results
from PIL import Image
from rich.console import Console
from sklearn.base import clone

import vlprompt
from vlprompt import FrozenCLIP, PromptClassifier, VlpromptError
from vlprompt.base.layout import RESULT
from vlprompt.evaluation import Result
from vlprompt.evaluation.results import harmonic_mean
from vlprompt.testing import small_clip

COLOURS = {"yellow": (230, 220, 30), "green": (30, 200, 40), "red": (220, 20, 30)}


# Results


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a method, one of a marked one, in three protocols."""
    folder = tmp_path_factory.mktemp("runs")
    write_results(folder, over_seeds([{"base": 80.0, "new": 60.0}, {"base": 84.0, "new": 56.0}], zero_shot=50.0))
    few = [{"all": 71.0}, {"all": 73.0}]
    write_results(folder, over_seeds(few, protocol="few_shot", shots=4, fidelity="reconstruction", saw=["val"]))
    targets = {"source": 90.0, "pacs": 30.0, "seed": 40.0}  # a dataset that is called as a column
    write_results(folder, over_seeds([targets], protocol="cross_dataset", dataset="glyphs", method="maple"))
    return folder


def test_a_line_a_run_has_its_tests_side_by_side(runs: Path) -> None:
    pytest.importorskip("pandas")
    frame = vlprompt.load_results(runs)
    assert len(frame) == 5
    halves = frame[frame.protocol == "base_to_new"].sort_values("seed")
    assert halves[["method", "dataset", "shots", "seed"]].to_numpy().tolist() == [
        ["coop", "emoji", 16, s] for s in (1, 2)
    ]
    assert halves[["base", "new"]].to_numpy().tolist() == [[80, 60], [84, 56]]
    assert halves.H.tolist() == pytest.approx([harmonic_mean(80, 60), harmonic_mean(84, 56)])
    assert halves[["zero_shot_base", "zero_shot_new", "zero_shot_H"]].to_numpy().tolist() == [[50] * 3] * 2
    assert halves.accuracy.isna().all()  # a harmonic mean is none
    few = frame[frame.protocol == "few_shot"].sort_values("seed")
    assert few[["accuracy", "zero_shot", "marks", "saw"]].to_numpy().tolist() == [
        [accuracy, 40, "reconstruction", "val"] for accuracy in (71, 73)
    ]
    [crossed] = frame[frame.protocol == "cross_dataset"].to_dict("records")
    assert (crossed["accuracy"], crossed["source"], crossed["pacs"], crossed["seed (test)"]) == (35, 90, 30, 40)
    assert crossed["recipe_source"] == "released code"
    assert all(Path(file).name == RESULT for file in frame.file)


def test_a_line_a_method_is_the_mean_over_seeds_by_the_reports_rules(runs: Path) -> None:
    pytest.importorskip("pandas")
    means = vlprompt.load_results(runs, per="method").set_index("protocol")
    halves, few, crossed = (means.loc[name] for name in ("base_to_new", "few_shot", "cross_dataset"))
    assert halves[["base", "base_std", "new", "new_std", "seeds"]].tolist() == [82, 2, 58, 2, 2]
    assert pytest.approx(harmonic_mean(82, 58)) == halves.H  # of averages, and not the mean of the seeds' own
    assert few[["accuracy", "std", "seeds", "shots", "label"]].tolist() == [72, 1, 2, 4, few.label]
    assert "reconstruction" in few.label
    assert few.method == "coop"
    assert (crossed.accuracy, crossed.pacs, crossed.zero_shot) == (35, 30, 40)
    assert np.isnan(crossed["std"])  # of one seed


def test_a_line_a_test_is_what_one_result_makes(runs: Path) -> None:
    pytest.importorskip("pandas")
    tests = vlprompt.load_results([runs], per="test")
    assert len(tests) == 2 * 2 + 2 + 3
    path = next(path for path in runs.rglob(RESULT) if Result.load(path).protocol == "cross_dataset")
    own = Result.load(path.parent).to_frame()
    assert own[["target", "tested_on", "accuracy", "gain"]].to_numpy().tolist() == [
        ["source", "glyphs", 90, 50],
        ["pacs", "pacs", 30, -10],
        ["seed", "seed", 40, 0],
    ]
    assert own.columns.tolist() == tests.columns.drop("file").tolist()


def test_what_cannot_be_a_table_is_one_sentence(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VlpromptError, match="per 'runs': did you mean run"):
        vlprompt.load_results(runs, per="runs")
    with pytest.raises(VlpromptError, match="no result at"):
        Result.load(tmp_path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    for make in (lambda: vlprompt.load_results(runs), make_result({"base": 1.0, "new": 2.0}).to_frame):
        with pytest.raises(VlpromptError, match=r'a DataFrame needs pandas: pip install "vlprompt\[pandas\]"'):
            make()
    monkeypatch.undo()
    pytest.importorskip("pandas")
    with pytest.raises(VlpromptError, match="there are no results in"):
        vlprompt.load_results(tmp_path)


def test_a_result_is_one_line_a_rich_table_and_a_notebooks_table() -> None:
    averages = {"harmonic_mean": harmonic_mean(80, 60), "zero_shot_harmonic_mean": 40.0}
    result = make_result({"base": 80.0, "new": 60.0}, averages=averages)
    assert repr(result) == "<Result coop on emoji: base_to_new, 16 shots, seed 1; harmonic mean 68.57>"
    hostile = replace(result, dataset="[red]<b>\x1b[31m")
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        console.print(hostile)
    assert "[red]<b>\\x1b[31m: base_to_new" in captured.get()
    for number in ("80.00", "+40.00", "68.57"):
        assert number in captured.get()
        assert number in hostile._repr_html_()
    assert "<b>" not in hostile._repr_html_()
    assert hostile._repr_html_().count('scope="row"') == 3


# Backbones, versions, names


def test_backbones_are_listed_with_tags_and_sizes() -> None:
    assert vlprompt.list_backbones()[:1] == ["vlprompt-tiny"]
    assert vlprompt.list_backbones("vlprompt-*", pretrained=True)[0][:4] == ("vlprompt-tiny", None, 64, 192)
    found = {each[:2]: each for each in vlprompt.list_backbones(pretrained=True)}
    assert set(found) == {("vlprompt-tiny", None), *open_clip.list_pretrained()}
    for name, tag in (
        ("ViT-B-32", "openai"),
        ("ViT-bigG-14", "laion2b_s39b_b160k"),
        ("ViT-H-14-378-quickgelu", "dfn5b"),
    ):
        with torch.device("meta"):
            model = open_clip.create_model(name, device="meta")
        counted = sum(parameter.numel() for parameter in model.parameters())
        assert found[name, tag][2:] == (model.visual.image_size[0], model.visual.output_dim, counted), name
    assert found["RN50", "openai"].parameters is None  # no transformer


def test_versions_are_told_even_where_torch_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    vlprompt.show_versions()
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["vlprompt"] == vlprompt.__version__
    assert told["torch"] == torch.__version__.partition("+")[0] or told["torch"] == torch.__version__
    assert told["threads"].endswith("OMP_NUM_THREADS=1")
    assert {"python", "system", "open_clip_torch", "cuda"} <= set(told)
    assert "pytest" not in told
    assert str(Path.home()) not in " ".join(told.values())
    monkeypatch.setitem(sys.modules, "torch", None)
    vlprompt.show_versions()
    assert "cannot be imported" in capsys.readouterr().out


def test_the_package_shows_its_public_names_and_only_those() -> None:
    assert dir(vlprompt) == sorted(vlprompt.__all__)
    assert "wire" not in dir(vlprompt)


# A classifier from its folder


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return small_clip()


def coloured() -> tuple[list[Image.Image], list[str]]:
    images = [Image.new("RGB", (40, 40), tuple(c - 3 * i for c in rgb)) for rgb in COLOURS.values() for i in range(2)]
    return images, [name for name in COLOURS for _ in range(2)]


@pytest.mark.parametrize("labels", ["names", "numbers"])
def test_a_classifier_from_its_folder_predicts_the_same_and_is_fitted_alike(
    labels: str, clip: FrozenCLIP, tmp_path: Path
) -> None:
    images, names = coloured()
    y: Any = names if labels == "names" else [10 * list(COLOURS).index(name) for name in names]
    words = None if labels == "names" else {10 * i: name for i, name in enumerate(COLOURS)}
    options = {"n_ctx": 2, "class_specific": True}  # bound to its classes
    settings = {"epochs": 2, "views": 1, "lr": 0.05, "options": options, "class_names": words}
    fitted = PromptClassifier("coop", clip, device="cpu", min_probability=0.4, **settings).fit(images, y)
    again = PromptClassifier.from_pretrained(fitted.save_pretrained(tmp_path / "kept"), clip)
    assert again.classes_.tolist() == fitted.classes_.tolist() == sorted(set(y))
    assert np.array_equal(again.predict_proba(images), fitted.predict_proba(images))
    assert again.predict(images).tolist() == fitted.predict(images).tolist()  # what is left unanswered, too
    assert again.min_probability == 0.4
    anew = clone(again).set_params(epochs=2, views=1, lr=0.05).fit(images, y)
    assert np.array_equal(anew.predict_proba(images), fitted.predict_proba(images))
    with pytest.raises(VlpromptError, match="no saved learner in"):
        PromptClassifier.from_pretrained(tmp_path)


def test_a_run_makes_a_classifier_whose_labels_are_class_names_in_order(clip: FrozenCLIP, tmp_path: Path) -> None:
    images, _ = coloured()
    learner = vlprompt.create_learner("coop", clip, list(COLOURS), n_ctx=2)  # in an order of its own
    learner.save_pretrained(tmp_path / "run" / "learner", extra={"seed": 3})
    made = PromptClassifier.from_pretrained(tmp_path / "run", clip)
    assert made.classes_.tolist() == sorted(COLOURS)
    assert made.random_state == 3
    order = [list(COLOURS).index(name) for name in sorted(COLOURS)]
    given = PromptClassifier.from_pretrained(tmp_path / "run", clip).decision_function(images)
    expected = vlprompt.evaluation.prediction.image_logits(learner, images)[:, order].numpy()
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)
    for odd in (["a", "b"], ["a", "b", 3], ["a", "a", "b"], "abc"):
        learner.save_pretrained(tmp_path / "odd", extra={"labels": odd})
        with pytest.raises(VlpromptError, match="does not have a label for each of its 3 classes"):
            PromptClassifier.from_pretrained(tmp_path / "odd", clip)
