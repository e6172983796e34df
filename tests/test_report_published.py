"""Published figures: what the repository keeps of them, and that the report's rules give the published averages."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from made_results import VIT, find_cell, headings_of, make_result, rows_of, write_results
from omegaconf import OmegaConf

from vlprompt import VlpromptError
from vlprompt.data import list_collections
from vlprompt.evaluation.results import Result, harmonic_mean
from vlprompt.report import Report, make_report
from vlprompt.report.published import (
    PROTOCOLS_WITH_FIGURES,
    Published,
    average_published,
    load_published,
    other_settings,
)
from vlprompt.report.tables import Table

# base, new and harmonic mean over 11 datasets, ViT-B/16, 16 shots, as the repositories print them
BASE_TO_NEW = {
    ("zero_shot", "", "released"): (69.34, 74.22, 71.70),
    ("cupl", "new classes have no sentences", "second-hand"): (72.56, 74.22, 73.38),
    ("coop", "", "released"): (82.69, 63.22, 71.66),
    ("coop", "", "rerun"): (82.63, 67.99, 74.60),
    ("cocoop", "", "released"): (80.47, 71.69, 75.83),
    ("proda", "", "second-hand"): (81.56, 72.30, 76.65),
    ("prograd", "", "rerun"): (82.48, 70.75, 76.16),
    ("kgcoop", "", "released"): (80.73, 73.60, 77.00),
    ("vpt", "", "released"): (80.24, 73.43, 76.68),
    ("ivlp", "language-only", "released"): (81.72, 73.81, 77.56),
    ("ivlp", "2+2 tokens, 12 blocks", "released"): (82.15, 74.07, 77.90),
    ("ivlp", "4+4 tokens, 9 blocks", "released"): (84.21, 71.79, 77.51),
    ("maple", "", "released"): (82.28, 75.14, 78.55),
    ("promptsrc", "", "released"): (84.26, 76.10, 79.97),
    ("promptsrc", "", "rerun"): (84.24, 75.67, 79.73),
    ("coprompt", "settings tuned by dataset", "released"): (84.00, 77.23, 80.48),
    ("pre", "", "released"): (82.14, 71.88, 76.27),
    ("clip_lora", "", "second-hand"): (85.32, 70.63, 77.28),
    ("tcp", "", "second-hand"): (84.13, 75.36, 79.51),
    ("mma", "", "released"): (83.20, 76.80, 79.87),
    ("mmrl", "settings tuned by dataset", "second-hand"): (85.68, 77.16, 81.20),
}
IMAGENET = {
    "zero_shot": (72.43, 68.14),
    "coop": (76.47, 67.88),
    "cocoop": (75.98, 70.43),
    "kgcoop": (75.83, 69.96),
    "maple": (76.66, 70.54),
    "promptsrc": (77.60, 70.73),
    "coprompt": (77.67, 71.27),
}
CROSS_DATASET = {  # source, the ten targets, their mean
    "coop": (71.51, 93.70, 89.14, 64.51, 68.71, 85.30, 18.47, 64.15, 41.92, 46.39, 66.55, 63.88),
    "cocoop": (71.02, 94.43, 90.14, 65.32, 71.88, 86.06, 22.94, 67.36, 45.73, 45.37, 68.21, 65.74),
    "maple": (70.72, 93.53, 90.49, 65.57, 72.23, 86.20, 24.74, 67.01, 46.49, 48.06, 68.69, 66.30),
    "promptsrc": (71.27, 93.60, 90.25, 65.70, 70.25, 86.15, 23.90, 67.10, 46.87, 45.50, 68.75, 65.81),
    "coprompt": (70.80, 94.50, 90.73, 65.67, 72.30, 86.43, 24.00, 67.57, 47.07, 51.90, 69.73, 67.00),
}
DOMAINS = {  # source, V2, Sketch, A, R, their mean
    "zero_shot": (66.73, 60.83, 46.15, 47.77, 73.96, 57.18),
    "coop": (71.51, 64.20, 47.99, 49.71, 75.21, 59.28),
    "cocoop": (71.02, 64.07, 48.75, 50.63, 76.18, 59.91),
    "kgcoop": (71.20, 64.10, 48.97, 50.69, 76.70, 60.11),
    "maple": (70.72, 64.07, 49.15, 50.90, 76.98, 60.27),
    "promptsrc": (71.27, 64.35, 49.55, 50.90, 77.80, 60.65),
    "coprompt": (70.80, 64.25, 49.43, 50.50, 77.51, 60.42),
}
FEW_SHOT = {  # RN50, 1, 2, 4, 8 and 16 shots
    "gda": (62.19, 66.20, 69.77, 73.31, 76.05),
    "tip_adapter": (62.33, 64.62, 66.54, 68.50, 70.32),
    "tip_adapter_f": (64.60, 66.65, 69.67, 72.45, 75.83),
    "clip_adapter": (62.67, 65.55, 68.61, 71.40, 74.44),
}
ROUNDED = 0.0101  # the last digit of what is printed, and of what it was computed from


def published(protocol: str, method: str) -> list[Published]:
    return [row for row in load_published(protocol).rows if row.method == method]


def as_results(protocol: str, method: str) -> list[Result]:
    """A method's published figures as if they were runs of one seed."""
    rows = [row for row in published(protocol, method) if row.figures]
    figures = {key: value for row in rows for key, value in row.figures.items()}
    datasets = dict.fromkeys((dataset, shots or 16) for dataset, _, shots in figures)
    return [
        make_result(
            {target: value for (d, target, k), value in figures.items() if (d, k or 16) == (dataset, shots)},
            method=method,
            dataset=dataset,
            protocol=protocol,
            shots=shots,
            backbone=VIT,
        )
        for dataset, shots in datasets
    ]


def reported(folder: Path, protocol: str, methods: list[str]) -> Table:
    """The first table of a report over published figures."""
    for method in methods:
        write_results(folder, as_results(protocol, method))
    return make_report([folder]).tables[0]


def test_per_dataset_figures_give_the_published_harmonic_means(tmp_path: Path) -> None:
    methods = ["coop", "cocoop", "kgcoop", "maple", "promptsrc"]
    table = reported(tmp_path, "base_to_new", methods)
    assert table.title == "base to new, 16 shots: mean of the 11 datasets of coop11"
    for method in methods:
        base, new, h = BASE_TO_NEW[method, "", "released"]
        for column, expected in (("base", base), ("new", new), ("H of averages", h)):
            assert find_cell(table, method, column).value == pytest.approx(expected, abs=ROUNDED), (method, column)
        assert find_cell(table, method, "mean of H").value < h - 0.15  # the other rule is another number
    assert [round(find_cell(table, m, "H of averages").value, 2) for m in ("cocoop", "maple", "promptsrc")] == [
        75.83,
        78.55,
        79.97,
    ]


def test_pre_averages_harmonic_means_as_far_as_its_data_goes() -> None:
    averages, released = published("base_to_new", "pre")
    base, new, h = BASE_TO_NEW["pre", "", "released"]
    assert averages.mean_of_h
    assert harmonic_mean(base, new) == pytest.approx(76.67, abs=ROUNDED)  # the rule of all others
    # seven of the eight datasets are released; the averages tell the sum of all, so that the eighth follows
    values = [[v for (_, side, _), v in released.figures.items() if side == s] for s in ("base", "new")]
    assert [len(side) for side in values] == [7, 7]
    eighth = [8 * mean - sum(side) for mean, side in zip((base, new), values, strict=True)]
    each = [harmonic_mean(*pair) for pair in zip(*values, strict=True)] + [harmonic_mean(*eighth)]
    assert sum(each) / 8 == pytest.approx(h, abs=0.02)
    assert not any(row.mean_of_h for row in load_published("base_to_new").rows if row.method != "pre")


@pytest.mark.parametrize(
    ("protocol", "expected"), [("cross_dataset", CROSS_DATASET), ("domain_generalization", DOMAINS)]
)
def test_target_figures_are_those_printed_and_give_the_published_means(
    protocol: str, expected: dict, tmp_path: Path
) -> None:
    methods = [method for method in expected if method != "zero_shot"]
    table = reported(tmp_path, protocol, methods)
    average = f"mean of {len(expected['coop']) - 2} targets"
    assert headings_of(table)[-1] == average
    for method in methods:
        values = [cell.value for line in table.sections[0].lines if line.label == method for cell in line.cells]
        assert tuple(values[:-1]) == expected[method][:-1]
        assert find_cell(table, method, average).value == pytest.approx(expected[method][-1], abs=ROUNDED), method
        [row] = published(protocol, method)
        assert row.averages == {"average": expected[method][-1]}


def test_zero_shot_figures_are_those_printed() -> None:
    [shifted] = published("domain_generalization", "zero_shot")
    assert (*shifted.figures.values(), shifted.averages["average"]) == DOMAINS["zero_shot"]
    assert average_published(shifted) == {"average": pytest.approx(57.18, abs=ROUNDED)}
    [crossed] = published("cross_dataset", "zero_shot")
    assert (list(crossed.figures.values()), crossed.averages) == ([66.7], {"average": 65.15})
    assert average_published(*published("base_to_new", "zero_shot")[1:])["harmonic_mean_of_averages"] == pytest.approx(
        71.70, abs=ROUNDED
    )


@pytest.mark.parametrize("method", FEW_SHOT)
def test_few_shot_figures_of_datasets_give_the_published_curves(method: str, tmp_path: Path) -> None:
    table = reported(tmp_path, "few_shot", [method])
    assert table.sections[0].heading == "mean of the 11 datasets of coop11: 1,100 images"
    means = [cell.value for cell in table.sections[0].lines[1].cells]
    assert means == pytest.approx(FEW_SHOT[method], abs=ROUNDED)
    row, detailed = published("few_shot", method)
    assert tuple(row.averages.values()) == FEW_SHOT[method]
    assert list(average_published(detailed).values()) == pytest.approx(means)
    assert list(row.averages) == ["1 shot", "2 shots", "4 shots", "8 shots", "16 shots"]


def test_base_to_new_figures_are_those_printed() -> None:
    rows = [row for row in load_published("base_to_new").rows if row.averages and row.method != "gda"]
    assert {(r.method, r.variant, r.evidence): tuple(r.averages.values()) for r in rows} == BASE_TO_NEW
    for (method, *_), (base, new, h) in BASE_TO_NEW.items():
        if method != "pre":
            assert harmonic_mean(base, new) == pytest.approx(h, abs=ROUNDED), method
    for method, pair in IMAGENET.items():
        [row] = [row for row in published("base_to_new", method) if ("imagenet", "base", None) in row.figures]
        assert (tuple(row.figures.values()), row.evidence) == (pair, "released")


def test_a_harmonic_mean_by_an_unknown_rule_is_not_set_against_ours() -> None:
    [row] = published("base_to_new", "gda")
    assert row.averages == {"base": 83.96, "new": 74.53}


def test_every_figure_has_a_source_and_says_how_it_is_known() -> None:
    datasets = set(list_collections()["coop11"]) | set(list_collections()["dg4"])
    for protocol in PROTOCOLS_WITH_FIGURES:
        figures = load_published(protocol)
        assert {"backbone", "average"} <= figures.conditions.keys()
        assert {dataset for dataset, _, _ in figures.keys} <= datasets
        for row in figures.rows:
            assert row.evidence in ("released", "rerun", "second-hand", "recalled")
            assert row.source or not row.averages
            # what was not read at its source never stands as an average of the authors
            assert row.evidence != "recalled" or not row.averages
            assert all(0 < value < 100 for value in (*row.averages.values(), *row.figures.values()))


@pytest.mark.parametrize("method", ["prograd", "proda"])
def test_figures_from_memory_alone_are_left_out(method: str) -> None:
    assert not any(row.figures for row in published("base_to_new", method))
    assert published("domain_generalization", method) == published("cross_dataset", method) == []
    assert published("cross_dataset", "kgcoop") == []


def test_settings_without_a_protocol_are_kept_with_their_conditions() -> None:
    tables = {table.title: table for table in other_settings()}
    data = OmegaConf.load(resources.files("vlprompt.published").joinpath("other_settings.yaml"))
    assert len(tables) == len(data.tables) == 22
    for table in tables.values():
        assert table.caption.endswith(("(released).", "(second-hand)."))
        assert all(len(line.cells) == len(table.columns) for line in table.sections[0].lines)
    domains = tables["unlabelled adaptation on DomainNet"]
    for line in domains.sections[0].lines:
        *values, printed = [cell.value for cell in line.cells]
        assert sum(values) / 6 == pytest.approx(printed, abs=0.06), line.label
    assert find_cell(tables["test-time prompts on ImageNet and its shifted versions"], "tpt", "imagenet").value == 60.74
    (line,) = tables["a stream of test images, on ImageNet and its shifted versions"].sections[0].lines
    assert sum(cell.value for cell in line.cells[1:5]) / 4 == pytest.approx(46.63, abs=0.01), "as TDA's page averages"


def ours(folder: Path, **changes: object) -> Path:
    settings = {"backbone": VIT, "method": "coop"} | changes
    targets = dict(zip(["source", *list_collections()["dg4"]], [70.0, 60.0, 50.0, 50.0, 76.0], strict=True))
    run = make_result(targets, protocol="domain_generalization", dataset="imagenet", zero_shot=58.0, **settings)
    return write_results(folder, [run])


def compared(folder: Path, **options: object) -> tuple[Report, Table]:
    report = make_report([folder], compare="published", **options)
    [table] = report.published
    return report, table


def test_published_figures_stand_beside_ours_with_the_difference(tmp_path: Path) -> None:
    report, table = compared(ours(tmp_path))
    assert headings_of(table) == ["ours", "published", "difference"]
    assert table in report.all_tables
    assert "published: ViT-B/16 (openai), 16 shots, from imagenet, mean over the four targets" in table.caption
    assert [section.heading for section in table.sections[:3]] == [
        "mean of 4 targets",
        "imagenet: source",
        "imagenet_v2",
    ]
    [coop] = [label for label in rows_of(table) if label.startswith("coop ·")]
    assert coop.endswith("README or results image in the repository of the method, released")
    assert find_cell(table, coop, "ours").value == 59.0
    assert find_cell(table, coop, "published").value == 59.28
    gap = find_cell(table, coop, "difference")
    assert (gap.value, gap.signed) == (pytest.approx(-0.28), True)
    [frozen] = [label for label in rows_of(table) if label.startswith("zero_shot ·")]
    assert find_cell(table, frozen, "difference").value == pytest.approx(58 - 57.18)


def test_what_was_not_run_is_marked_and_single_tests_are_only_of_what_was(tmp_path: Path) -> None:
    _, table = compared(ours(tmp_path))
    [maple] = [label for label in rows_of(table) if label.startswith("maple ·")]
    assert (find_cell(table, maple, "ours").value, find_cell(table, maple, "ours").text) == (None, "not run")
    assert find_cell(table, maple, "difference").value is None
    assert {label.split(" ·")[0] for label in rows_of(table, section=2)} == {"zero_shot", "coop"}


def test_an_incomplete_average_of_ours_is_no_number(tmp_path: Path) -> None:
    run = make_result({"base": 80.0, "new": 60.0}, dataset="eurosat", backbone=VIT)
    _, table = compared(write_results(tmp_path, [run]))
    [coop, _] = [label for label in rows_of(table) if label.startswith("coop ·")]
    assert find_cell(table, coop, "ours").text == "1 of 11 run"
    eurosat = next(i for i, section in enumerate(table.sections) if section.heading == "eurosat: base")
    assert find_cell(table, "coop · second-hand", "difference", eurosat).value == pytest.approx(80 - 92.19)


def test_figures_over_datasets_that_are_not_named_are_not_set_against_ours(tmp_path: Path) -> None:
    runs = [make_result({"base": 80.0, "new": 60.0}, dataset=d, backbone=VIT) for d in list_collections()["coop11"]]
    runs += [make_result({"base": 80.0, "new": 60.0}, dataset=r.dataset, backbone=VIT, method="pre") for r in runs]
    _, table = compared(write_results(tmp_path, runs))
    h = next(i for i, section in enumerate(table.sections) if section.heading == "harmonic mean")
    [pre] = [label for label in rows_of(table, h) if label.startswith("pre ·")]
    cell = find_cell(table, pre, "ours", h)
    assert (cell.text, cell.missing) == ("not run", "over 8 datasets that are not all named")
    [coop, _] = [label for label in rows_of(table, h) if label.startswith("coop ·")]
    assert find_cell(table, coop, "difference", h).value == pytest.approx(harmonic_mean(80, 60) - 71.66)


@pytest.mark.parametrize(
    "changes",
    [
        {"shots": 4},
        {"limit": 100},
        {"backbone": VIT | {"architecture": "ViT-B-32"}},
        {"backbone": VIT | {"pretrained": "laion2b_s34b_b88k"}},
        {"config": {"split": "generated"}},
        {"config": {"templates": "imagenet7"}},
        {"data": {"source": "own file", "version": 1}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_results_of_other_conditions_are_not_set_against_the_published(changes: dict, tmp_path: Path) -> None:
    _, table = compared(ours(tmp_path, **changes))
    assert all(line.cells[0].text == "not run" for section in table.sections for line in section.lines)
    [note] = table.notes
    assert note.startswith("our results (")
    assert note.endswith("under other conditions than the published ones, so they are not compared")


def test_quickgelu_by_name_is_the_same_backbone(tmp_path: Path) -> None:
    _, table = compared(ours(tmp_path, backbone=VIT | {"architecture": "ViT-B-16-quickgelu"}))
    assert table.notes == []


def test_few_shot_results_stand_beside_published_curves(tmp_path: Path) -> None:
    resnet = VIT | {"architecture": "RN50"}
    runs = [
        make_result({"all": 60.0 + k}, dataset=d, protocol="few_shot", shots=k, backbone=resnet, zero_shot=58.77)
        for d in list_collections()["coop11"]
        for k in (8, 16)
    ]
    _, table = compared(write_results(tmp_path, runs))
    assert "published: RN50 (openai), mean over the eleven datasets" in table.caption
    place = next(i for i, s in enumerate(table.sections) if s.heading == "mean of 11 datasets, 16 shots")
    coop = "coop · GDA project page, second-hand"
    assert find_cell(table, coop, "difference", place).value == pytest.approx(76 - 73.42)
    [frozen] = [label for label in rows_of(table, place) if label.startswith("zero_shot")]
    assert find_cell(table, frozen, "difference", place).value == pytest.approx(0)
    assert find_cell(table, frozen, "ours", 0).text == "not run"


def test_the_comparison_keeps_to_the_methods_that_were_asked_for(tmp_path: Path) -> None:
    _, table = compared(ours(tmp_path), methods=["coop"], protocol="domain_generalization")
    assert {label.split(" ·")[0] for section in table.sections for label in [ln.label for ln in section.lines]} == {
        "coop"
    }


def test_results_of_no_published_protocol_get_all_tables(tmp_path: Path) -> None:
    write_results(tmp_path, [make_result({"base": 80.0, "new": 60.0}, protocol="generalized")])
    titles = [table.title for table in make_report([tmp_path], compare="published").published]
    assert titles == [f"{name.replace('_', ' ')} beside the published figures" for name in PROTOCOLS_WITH_FIGURES]


def test_comparing_with_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match="compare takes published, not 'mine'"):
        make_report([ours(tmp_path)], compare="mine")
