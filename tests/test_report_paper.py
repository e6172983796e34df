"""The layout of papers: cells against printed tables, marks, significance, and figures over datasets."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_results import make_result, over_seeds, write_results, write_with_predictions

from vlprompt import VlpromptError
from vlprompt.cli.__main__ import main
from vlprompt.evaluation.results import Predictions, write_predictions
from vlprompt.evaluation.significance import holm, p_value, paired_draws, rank_methods
from vlprompt.report import Layout, Report, make_report
from vlprompt.report.cells import Cell
from vlprompt.report.names import display_dataset, display_method
from vlprompt.report.paper_figures import critical_difference, dataset_scores, radar
from vlprompt.report.tables import Table

# harmonic means as the tables of MaPLe (arXiv:2210.03117, table 3) and PromptSRC (arXiv:2307.06948, table 3) print them
PRINTED = {
    "average over 11 datasets": (71.70, 71.66, 75.83, 78.55, 79.97),
    "ImageNet": (70.22, 71.92, 73.10, 73.47, 74.01),
    "Caltech101": (95.40, 93.73, 95.84, 96.02, 96.02),
    "OxfordPets": (94.12, 94.47, 96.43, 96.58, 96.30),
    "StanfordCars": (68.65, 68.13, 72.01, 73.47, 76.58),
    "Flowers102": (74.83, 74.06, 81.71, 82.56, 85.95),
    "Food101": (90.66, 85.19, 90.99, 91.38, 91.10),
    "FGVCAircraft": (31.09, 28.75, 27.74, 36.50, 40.15),
    "SUN397": (72.23, 72.51, 78.27, 79.75, 80.52),
    "DTD": (56.37, 54.24, 64.85, 68.16, 71.75),
    "EuroSAT": (60.03, 68.69, 71.21, 82.35, 82.32),
    "UCF101": (73.85, 67.46, 77.64, 80.77, 82.74),
}
METHODS = ["zero_shot", "coop", "cocoop", "maple", "promptsrc"]


def cell(table: Table, row: str, over: str, column: str) -> Cell:
    [line] = [line for line in table.sections[0].lines if line.label == row]
    [place] = [i for i, each in enumerate(table.columns) if (each.over, each.heading) == (over, column)]
    return line.cells[place]


def published(protocol: str, methods: list[str]) -> Table:
    [table] = make_report([], compare="published", layout=Layout(), protocol=protocol, methods=methods).tables
    return table


def test_published_base_to_new_is_the_papers_table_cell_by_cell() -> None:
    table = published("base_to_new", METHODS)
    assert list(dict.fromkeys(column.over for column in table.columns)) == list(PRINTED)
    for over, numbers in PRINTED.items():
        for method, printed in zip(METHODS, numbers, strict=True):
            found = cell(table, display_method(method), over, "H").number
            assert found == pytest.approx(printed, abs=0.0151), (over, method)  # printed sides are rounded
    assert cell(table, "MaPLe", "EuroSAT", "base").value == 94.07
    assert cell(table, "PromptSRC", "EuroSAT", "new").best
    assert cell(table, "MaPLe", "EuroSAT", "new").second


def test_published_targets_stand_behind_their_source_in_the_papers_order() -> None:
    table = published("cross_dataset", ["coop", "maple"])
    headings = [(column.over, column.heading) for column in table.columns]
    assert headings[0] == ("source", "ImageNet")
    assert headings[-1] == ("target", "average")
    assert [name for _, name in headings[1:4]] == ["Caltech101", "OxfordPets", "StanfordCars"]
    assert cell(table, "MaPLe", "target", "average").value == 66.30
    assert cell(table, "CoOp", "target", "EuroSAT").value == 46.39


def two_methods(folder: Path, **layout: object) -> Report:
    write_results(folder, over_seeds([{"base": 80, "new": 60}, {"base": 82, "new": 62}], zero_shot=50.0))
    write_results(
        folder, over_seeds([{"base": 70, "new": 66}, {"base": 70, "new": 66}], method="kgcoop", zero_shot=50.0)
    )
    return make_report([folder], layout=Layout(**layout))


def test_gains_decimals_and_spread_are_as_asked(tmp_path: Path) -> None:
    report = two_methods(tmp_path, gain="zero_shot", decimals=1, spread="std")
    text = report.text("latex")
    assert r"\label{tab:base-to-new}" in text
    assert r"\textbf{81.0 $\pm$ 1.0}" in text  # CoOp's base
    assert r"\underline{70.0 $\pm$ 0.0}" in text
    [table] = report.tables
    h = cell(table, "CoOp", "Emoji", "H")
    assert h.gain == pytest.approx(h.number - 50)
    assert cell(table, "CoOp", "Emoji", "base").gain is None
    assert "Arrows: points over Zero-shot CLIP." in table.caption
    assert "<u>70.0 ± 0.0</u>" in report.text("markdown")


def test_averages_may_stand_alone(tmp_path: Path) -> None:
    for dataset in ("emoji", "digits"):
        write_results(tmp_path / dataset, [make_result({"base": 80, "new": 60}, dataset=dataset)])
    [table] = make_report([tmp_path], layout=Layout(columns="average")).tables
    assert [column.heading for column in table.columns] == ["base", "new", "H"]
    [whole] = make_report([tmp_path], layout=Layout()).tables
    assert len(whole.columns) == 9
    [alone] = make_report([tmp_path / "emoji"], layout=Layout(columns="average")).tables
    assert len(alone.columns) == 3  # of one dataset there is no average


def test_a_run_method_stands_beside_the_published_rows_only_under_their_conditions(tmp_path: Path) -> None:
    write_results(tmp_path, [make_result({"base": 80, "new": 60})])
    tables = make_report([tmp_path], compare="published", layout=Layout()).tables
    assert [line.label for line in tables[0].sections[0].lines] == ["Zero-shot CLIP", "CoOp"]
    assert "published figures" in tables[1].caption  # another backbone: a table of its own


def test_what_differs_by_chance_is_not_marked_and_what_differs_is(tmp_path: Path) -> None:
    """CoOp is right on other images than KgCoOp on base, by far more often; on new they differ by one image."""
    near = [make_result({"base": 50.0, "new": 50.0}, method="kgcoop", seed=seed) for seed in (1, 2)]
    far = [make_result({"base": 80.0, "new": 51.0}, seed=seed) for seed in (1, 2)]
    write_with_predictions(tmp_path, [*near, *far])
    [table] = make_report([tmp_path], layout=Layout(significance="kgcoop")).tables
    assert cell(table, "CoOp", "Emoji", "base").mark
    assert not cell(table, "CoOp", "Emoji", "new").mark
    assert not any(each.mark for line in table.sections[0].lines if line.label == "KgCoOp" for each in line.cells)
    assert any("Holm" in note for note in table.notes)


def test_zero_shot_is_a_reference_like_any_other(tmp_path: Path) -> None:
    result = make_result({"base": 90.0, "new": 50.0}, zero_shot=50.0)
    write_with_predictions(tmp_path, [result])
    [folder] = [path.parent for path in tmp_path.rglob("result.json")]
    label = torch.arange(100, dtype=torch.int32) % 10
    half = torch.where(torch.arange(100) < 50, label, (label + 1) % 10)
    most = torch.where(torch.arange(100) < 90, label, (label + 1) % 10)
    sure = torch.full(label.shape, 0.9)
    predictions = {
        side: Predictions(label.clone(), said.clone(), half.clone(), sure.clone())
        for side, said in (("base", most), ("new", half))
    }
    digest = write_predictions(folder, predictions)
    replace(result, files={"predictions.safetensors": digest}).write(folder / "result.json")
    [table] = make_report([tmp_path], layout=Layout(significance="zero_shot")).tables
    assert cell(table, "CoOp", "Emoji", "base").mark
    assert not cell(table, "CoOp", "Emoji", "new").mark


def test_a_paired_bootstrap_knows_a_real_difference_and_a_draw_of_seeds() -> None:
    generator = np.random.default_rng(0)
    theirs = generator.random((3, 400)) < 0.5
    better = theirs | (generator.random((3, 400)) < 0.2)
    ours, other = paired_draws(better, theirs)
    assert p_value(ours - other) < 0.002
    assert ours.mean() == pytest.approx(100 * better.mean(), abs=0.5)
    # two seeds up, one down by as much: the images alone would call it decided
    swings = np.stack([theirs[0] | (generator.random(400) < 0.3), theirs[1], np.zeros(400, bool)])
    ours, other = paired_draws(swings, np.stack([theirs[0], theirs[1], theirs[2] & False]))
    assert p_value(ours - other) > 0.05
    same, again = paired_draws(theirs, theirs)
    assert p_value(same - again) == 1.0


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]  # 0.03 > 0.05 / 2 ends it
    assert holm([0.02, 0.02]) == [True, True]
    assert holm([]) == []


def test_ranks_and_critical_difference_are_demsars() -> None:
    """Table 6 of Demšar (2006): four methods over 14 datasets, critical difference 1.25 at 5%."""
    scores = {name: [float(i + j) for j in range(14)] for i, name in enumerate("abcd")}
    ranks = rank_methods(scores)
    assert ranks.critical == pytest.approx(1.25, abs=0.005)
    assert ranks.mean == {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}
    assert ranks.p < 1e-6
    with pytest.raises(VlpromptError, match="two methods and two datasets"):
        rank_methods({"a": [1.0, 2.0]})


def over_three_datasets(folder: Path) -> Report:
    for i, dataset in enumerate(("emoji", "digits", "eurosat")):
        for method, gain in (("coop", 5), ("kgcoop", 8), ("maple", 2 * i)):
            scores = {"base": 60.0 + i + gain, "new": 50.0 + gain}
            write_results(folder, [make_result(scores, dataset=dataset, method=method)])
    return make_report([folder], layout=Layout())


def test_figures_over_datasets_show_every_method_that_was_run_on_all(tmp_path: Path) -> None:
    report = over_three_datasets(tmp_path)
    write_results(tmp_path / "more", [make_result({"base": 70.0, "new": 60.0}, method="prograd")])
    group = make_report([tmp_path]).group("base_to_new")
    datasets, scores = dataset_scores(group)
    assert datasets == ["digits", "emoji", "eurosat"]
    assert list(scores) == ["zero_shot", "coop", "kgcoop", "maple"]
    drawn = radar(group).axes[0]
    assert [line.get_label() for line in drawn.lines] == ["Zero-shot CLIP", "CoOp", "KgCoOp", "MaPLe"]
    texts = [text.get_text() for text in critical_difference(group).axes[0].texts]
    assert "KgCoOp (1.00)" in texts
    assert any("3 datasets" in text for text in texts)
    columns = [column.over for column in report.tables[0].columns]
    assert columns[0] == "average over 3 datasets"


def test_radar_needs_three_datasets(tmp_path: Path) -> None:
    write_results(tmp_path, [make_result({"base": 70.0, "new": 60.0})])
    with pytest.raises(VlpromptError, match="3 datasets or more"):
        radar(make_report([tmp_path]).group("base_to_new"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layout=wide"], "unknown layout 'wide'"),
        (["decimals=1"], "decimals belong to layout=paper"),
        (["layout=paper", "decimals=9"], "decimals takes a number from 0 to 4"),
        (["layout=paper", "columns=few"], "columns takes all, average, not 'few'"),
        (["layout=paper", "spread=range"], "spread takes none, std, interval"),
        (["layout=paper", "gain=copo"], "gain=copo: there are no results of 'copo'"),
        (["layout=paper", "significance=coop", "metric=ece"], "significance is of accuracy"),
        (["layout=paper", "format=html"], "the page has a layout of its own"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    write_results(tmp_path, [make_result({"base": 70.0, "new": 60.0})])
    assert main(["report", str(tmp_path), *words]) == 2
    told = capsys.readouterr().err
    assert message in " ".join(told.split())
    assert "Traceback" not in told


def test_every_format_has_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    over_three_datasets(tmp_path)
    for format in ("terminal", "markdown", "latex", "csv"):
        assert main(["report", str(tmp_path), "layout=paper", f"format={format}"]) == 0
        assert "KgCoOp" in capsys.readouterr().out


@pytest.mark.skipif(
    shutil.which("tectonic") is None and shutil.which("pdflatex") is None, reason="no LaTeX is installed"
)
def test_latex_compiles(tmp_path: Path) -> None:
    over_three_datasets(tmp_path / "runs")
    body = make_report([tmp_path / "runs"], layout=Layout(gain="zero_shot", spread="interval")).text("latex")
    (tmp_path / "table.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}" + body + "\\end{document}", encoding="utf-8"
    )
    program = ["tectonic"] if shutil.which("tectonic") else ["pdflatex", "-interaction=nonstopmode", "-halt-on-error"]
    subprocess.run([*program, "table.tex"], cwd=tmp_path, check=True, capture_output=True, timeout=120)


def test_names_are_those_that_papers_print() -> None:
    assert [display_method(name) for name in ("tip_adapter_f", "lp_plus_plus", "vpt", "unknown")] == [
        "Tip-Adapter-F",
        "LP++",
        "VPT",
        "unknown",
    ]
    assert [display_dataset(name) for name in ("flowers102", "dtd", "imagenet_a", "emoji")] == [
        "Flowers102",
        "DTD",
        "ImageNet-A",
        "Emoji",
    ]
