"""Tables of result files: the numbers of each protocol, what is incomplete, and what never shares a table."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from made_results import (
    TINY,
    VIT,
    find_cell,
    headings_of,
    make_result,
    over_seeds,
    rows_of,
    write_results,
    write_with_predictions,
)
from rich.console import Console

from vlprompt import VlpromptError
from vlprompt.data import list_collections
from vlprompt.evaluation.results import Result, harmonic_mean
from vlprompt.evaluation.statistics import ONE_SEED, SPREAD
from vlprompt.report import FORMATS, Report, make_report
from vlprompt.report.render import print_terminal

T_3 = 4.302653  # Student's t, 97.5%, two degrees of freedom


def report_of(folder: Path, *results: list[Result], **options: object) -> Report:
    for each in results:
        write_results(folder, each)
    return make_report([folder], **options)


def scores(*names: str, **by_seed: list[float]) -> list[dict[str, float]]:
    return [dict(zip(names or by_seed, values, strict=True)) for values in zip(*by_seed.values(), strict=True)]


def test_base_to_new_averages_seeds_then_datasets_and_names_both_harmonic_means(tmp_path: Path) -> None:
    emoji = over_seeds(scores(base=[79, 80, 84], new=[60, 60, 60]))
    digits = over_seeds(scores(base=[50, 50, 50], new=[90, 90, 90]), dataset="digits")
    mean, each = report_of(tmp_path, emoji, digits).tables
    assert headings_of(mean) == ["base", "new", "H of averages", "mean of H"]
    assert mean.title == "base to new, 16 shots: mean of 2 datasets"
    assert "harmonic mean of the averages (as published), and mean of the datasets' harmonic means" in mean.caption
    assert rows_of(mean) == ["zero_shot", "coop"]
    base = find_cell(mean, "coop", "base")
    assert base.value == 65.5
    # the averages of the seeds are 64.5, 65 and 67: deviations over n, and the interval of their mean over n - 1
    assert base.std == pytest.approx((3.5 / 3) ** 0.5)
    half = T_3 * (3.5 / 2) ** 0.5 / 3**0.5 / (65.5 * 0.345)  # on the logit scale
    odds = 65.5 / 34.5
    ends = [100 / (1 + math.exp(sign * half) / odds) for sign in (1, -1)]
    assert base.interval == pytest.approx(tuple(ends), abs=1e-4)
    assert (base.seeds, base.n_images, base.missing) == ((1, 2, 3), 200, "")
    assert find_cell(mean, "coop", "new").value == 75
    assert find_cell(mean, "coop", "H of averages").value == pytest.approx(harmonic_mean(65.5, 75))
    expected = (harmonic_mean(81, 60) + harmonic_mean(50, 90)) / 2
    assert find_cell(mean, "coop", "mean of H").value == pytest.approx(expected)
    assert [column.n_images for column in mean.columns] == [200, 200, 400, 400]
    assert headings_of(each) == ["base", "new", "harmonic mean"]
    assert [section.heading for section in each.sections] == [
        "digits: 100 base, 100 new images",
        "emoji: 100 base, 100 new images",
    ]
    assert find_cell(each, "coop", "harmonic mean", section=1).value == pytest.approx(harmonic_mean(81, 60))


def test_zero_shot_is_told_of_every_run_without_seeds(tmp_path: Path) -> None:
    [table] = report_of(tmp_path, over_seeds(scores(base=[80, 82], new=[60, 60]), zero_shot=40.0)).tables
    cell = find_cell(table, "zero_shot", "base")
    assert (cell.value, cell.std, cell.interval, cell.seeds) == (40.0, None, None, ())
    assert [c.best for c in table.sections[0].lines[1].cells] == [True, True, True]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    [table] = report_of(tmp_path, [make_result({"base": 80.0, "new": 60.0})]).tables
    cell = find_cell(table, "coop", "base")
    assert (cell.value, cell.std, cell.interval, cell.seeds) == (80.0, None, None, (1,))


def test_seeds_are_read_off_the_result_and_not_off_its_parameters(tmp_path: Path) -> None:
    by_seed = scores(base=[80, 82], new=[60, 62])
    drawn = over_seeds(by_seed, method="gda", n_parameters=0, seeded=True)
    [table] = report_of(tmp_path, drawn).tables
    cell = find_cell(table, "gda", "base")
    assert (cell.value, cell.std, cell.seeds) == (81.0, 1.0, (1, 2))
    assert SPREAD in table.caption


def test_one_seed_shows_neither_deviation_nor_interval_in_any_format(tmp_path: Path) -> None:
    report = report_of(tmp_path, [make_result({"base": 80.0, "new": 60.0})])
    for format in FORMATS[1:]:
        assert "± 0.00" not in report.text(format)
    assert ONE_SEED in report.tables[0].caption
    console = Console(width=120, record=True, file=io.StringIO())
    print_terminal(report.all_tables, console)
    assert "±" not in console.export_text()


def test_generalized_has_the_columns_of_base_to_new_and_a_table_of_its_own(tmp_path: Path) -> None:
    both = [make_result({"base": 70.0, "new": 30.0}, protocol=p) for p in ("base_to_new", "generalized")]
    tables = report_of(tmp_path, both).tables
    assert [table.title for table in tables] == ["base to new, 16 shots", "generalized, 16 shots"]
    assert find_cell(tables[1], "coop", "harmonic mean").value == pytest.approx(42.0)


def test_few_shot_has_its_numbers_of_shots_as_columns_in_order(tmp_path: Path) -> None:
    results = [
        make_result({"all": value}, dataset=dataset, protocol="few_shot", shots=shots)
        for shots, value in ((16, 70.0), (1, 50.0), ("all", 90.0), (2, 60.0))
        for dataset, value in (("emoji", value), ("digits", value + 4))
    ]
    [table] = report_of(tmp_path, results).tables
    assert headings_of(table) == ["1 shot", "2 shots", "16 shots", "all images"]
    assert [section.heading for section in table.sections] == [
        "mean of 2 datasets: 200 images",
        "digits: 100 images",
        "emoji: 100 images",
    ]
    assert [cell.value for cell in table.sections[0].lines[1].cells] == [52, 62, 72, 92]
    assert find_cell(table, "coop", "2 shots", section=2).value == 60


def test_cross_dataset_averages_the_targets_without_the_source(tmp_path: Path) -> None:
    runs = over_seeds(
        scores("source", "digits", "glyphs/chess", s=[90, 92], d=[40, 44], c=[60, 60]),
        protocol="cross_dataset",
        dataset="glyphs/symbols",
    )
    [table] = report_of(tmp_path, runs).tables
    assert table.title == "cross dataset, from glyphs/symbols, 16 shots"
    assert headings_of(table) == ["source", "digits", "glyphs/chess", "mean of 2 targets"]
    mean = find_cell(table, "coop", "mean of 2 targets")
    assert (mean.value, mean.std, mean.n_images) == (51.0, 1.0, 200)
    assert "the source not included" in table.caption


def test_held_out_domains_are_columns_and_their_mean_is_over_domains(tmp_path: Path) -> None:
    runs = [
        make_result({domain: value}, protocol="domain_generalization", seed=seed, config={"held_out": domain})
        for seed in (1, 2)
        for domain, value in (("noto", 60.0 + seed), ("twemoji", 50.0), ("fluent", 40.0))
    ]
    shifted = make_result({"source": 90.0, "digits": 30.0}, protocol="domain_generalization")
    tables = report_of(tmp_path, runs, [shifted]).tables
    other, held_out = sorted(tables, key=lambda table: len(table.columns))
    assert set(headings_of(held_out)) == {"noto", "twemoji", "fluent", "mean of 3 domains"}
    assert headings_of(other) == ["source", "digits"]
    assert find_cell(held_out, "coop", "noto").value == 61.5
    assert find_cell(held_out, "coop", "mean of 3 domains").value == pytest.approx((61.5 + 50 + 40) / 3)


def test_multitask_averages_its_datasets(tmp_path: Path) -> None:
    runs = over_seeds(scores("emoji", "digits", e=[60, 62], d=[80, 80]), protocol="multitask", dataset="emoji+digits")
    [table] = report_of(tmp_path, runs).tables
    assert find_cell(table, "coop", "mean of 2 targets").value == 70.5


def test_a_seed_that_was_not_run_is_marked_and_never_the_best(tmp_path: Path) -> None:
    coop = over_seeds(scores(base=[80, 80, 80], new=[60, 60, 60]))
    maple = over_seeds(scores(base=[90, 92], new=[70, 70]), method="maple")
    [table] = report_of(tmp_path, coop, maple).tables
    cell = find_cell(table, "maple", "base")
    assert (cell.value, cell.seeds, cell.missing, cell.best) == (91.0, (1, 2), "emoji, base: no seed 3", False)
    assert find_cell(table, "coop", "base").best
    assert table.notes == ["† maple: no seed 3 of emoji, base and emoji, new"]


def test_an_average_over_fewer_tests_is_no_number(tmp_path: Path) -> None:
    coop = [make_result({"base": 80.0, "new": 60.0}, dataset=d) for d in ("emoji", "digits")]
    maple = [make_result({"base": 90.0, "new": 70.0}, method="maple")]
    mean, each = report_of(tmp_path, coop, maple).tables
    cell = find_cell(mean, "maple", "base")
    assert (cell.value, cell.text) == (None, "1 of 2 run")
    assert cell.missing == "1 of 2 tests not run"
    assert find_cell(mean, "maple", "mean of H").text == "2 of 4 run"
    assert [rows_of(each, section=i) for i in range(2)] == [["zero_shot", "coop"], ["zero_shot", "coop", "maple"]]


def test_means_are_over_the_collections_that_are_whole(tmp_path: Path) -> None:
    mini, several = list_collections()["mini11"], ["emoji", "digits"]
    coop = [make_result({"base": 60.0 + i, "new": 50.0}, dataset=d) for i, d in enumerate([*mini, *several])]
    kgcoop = [make_result({"base": 80.0, "new": 60.0}, method="kgcoop")]
    mean, each = report_of(tmp_path, coop, kgcoop).tables
    assert mean.title == "base to new, 16 shots: mean of the 11 datasets of mini11"
    assert find_cell(mean, "coop", "base").value == 65
    assert rows_of(mean) == ["zero_shot", "coop"]
    assert len(each.sections) == 13


def test_what_needs_no_training_counts_whatever_its_seed(tmp_path: Path) -> None:
    zero_shot = [make_result({"base": 40.0, "new": 40.0}, method="zero_shot")]
    coop = over_seeds(scores(base=[80, 80, 80], new=[60, 60, 60]))
    [table] = report_of(tmp_path, zero_shot, coop).tables
    assert table.notes == []
    assert rows_of(table) == ["zero_shot", "coop"]
    assert len(find_cell(table, "zero_shot", "base").runs) == 1


OTHER = make_result({"base": 50.0, "new": 50.0}, seed=2)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(OTHER, backbone=VIT), "ViT-B-16 openai, fp16"),
        (replace(OTHER, backbone=TINY | {"weights": "other"}), "vlprompt-tiny, fp32"),
        (replace(OTHER, backbone=TINY | {"precision": "bf16"}), "vlprompt-tiny, bf16"),
        (replace(OTHER, shots=4), "4 shots"),
        (replace(OTHER, limit=50), "at most 50 test images each"),
        (replace(OTHER, selection="fewshot_val"), "selection fewshot_val"),
        (replace(OTHER, config=OTHER.config | {"templates": "imagenet7"}), "templates imagenet7"),
        (replace(OTHER, config=OTHER.config | {"split": "generated"}), "generated split"),
        (replace(OTHER, rows=[replace(row, split="other") for row in OTHER.rows]), "16 shots"),
    ],
    ids=["backbone", "weights", "precision", "shots", "limit", "selection", "templates", "split", "images"],
)
def test_what_differs_never_shares_a_table(other: Result, told: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, [make_result({"base": 80.0, "new": 60.0})], [other])
    assert len(report.groups) == len(report.tables) == 2
    assert sorted(find_cell(table, "coop", "base").value for table in report.tables) == [50, 80]
    [table] = [table for table in report.tables if find_cell(table, "coop", "base").value == 50]
    assert told in table.caption
    with pytest.raises(VlpromptError, match=r"2 groups of results are of protocol=base_to_new \("):
        report.group("base_to_new")


def test_settings_that_differ_between_seeds_make_rows_of_their_own(tmp_path: Path) -> None:
    usual = over_seeds(scores(base=[80, 82], new=[60, 60]))
    fast = [replace(r, config=r.config | {"lr": 0.1}, id=f"f{r.seed}") for r in usual]
    [table] = report_of(tmp_path, usual, fast).tables
    assert rows_of(table) == ["zero_shot", "coop (lr=0.002)", "coop (lr=0.1)"]


def test_zero_shot_of_descriptions_is_a_row_beside_the_plain_one(tmp_path: Path) -> None:
    plain = make_result({"base": 40.0, "new": 40.0}, method="zero_shot", n_parameters=0)
    described = make_result(
        {"base": 45.0, "new": 41.0}, method="zero_shot", n_parameters=0, id="d", config={"descriptions": "cupl.json"}
    )
    for results in ([described], [plain, described]):
        [table] = report_of(tmp_path / str(len(results)), results).tables
        assert find_cell(table, "zero_shot", "base").value == 40.0
        cell = find_cell(table, "zero_shot (descriptions=cupl.json)", "base")
        assert (cell.value, cell.seeds, cell.best) == (45.0, (), True)


def test_what_needs_no_training_is_parted_by_its_method_settings_alone(tmp_path: Path) -> None:
    def tuned(**config: float) -> Result:
        return make_result(
            {"base": 50.0, "new": 50.0},
            method="tpt",
            n_parameters=0,
            id=str(len(config)) + str(config.get("steps_per_image")),
            config=config,
        )

    for other, labels in (
        (tuned(steps_per_image=1, lr=1.0), ["tpt"]),
        (tuned(steps_per_image=2), ["tpt (steps_per_image=1)", "tpt (steps_per_image=2)"]),
    ):
        [table] = report_of(tmp_path / str(len(labels)), [tuned(steps_per_image=1), other]).tables
        assert [line.label for line in table.sections[0].lines] == ["zero_shot", *labels]


def test_a_head_on_learners_of_each_seed_is_one_row_that_names_their_method(tmp_path: Path) -> None:
    beneath = {"maple": {"method": "maple"}, "coop": {"method": "coop"}}
    results = [
        make_result(
            {"all": 70.0 + seed}, method="gda", protocol="few_shot", seed=seed, beneath=beneath[name],
            id=f"{name}{seed}", config={"text": f"runs/{name}{seed}"},
        )
        for name in beneath for seed in (1, 2)
    ]  # fmt: skip
    results.append(make_result({"all": 60.0}, method="gda", protocol="few_shot", config={"text": None}))
    (table,) = report_of(tmp_path / "each", results).tables
    assert rows_of(table) == ["zero_shot", "gda", "gda on coop", "gda on maple"]
    again = replace(results[0], id="other", config=results[0].config | {"text": "runs/deeper"})
    (table,) = report_of(tmp_path / "two", [*results, again]).tables
    assert "gda on maple (text=runs/deeper)" in rows_of(table), "two of one seed are no seeds"


def test_settings_may_differ_between_datasets_as_in_the_recipes(tmp_path: Path) -> None:
    digits = make_result({"base": 50.0, "new": 50.0}, dataset="digits", config={"lr": 0.1})
    mean, _ = report_of(tmp_path, [make_result({"base": 80.0, "new": 60.0}), digits]).tables
    assert rows_of(mean) == ["zero_shot", "coop"]


def test_of_runs_done_again_the_newest_counts_and_that_is_told(tmp_path: Path) -> None:
    old = make_result({"base": 80.0, "new": 60.0})
    new = make_result({"base": 70.0, "new": 60.0}, created="2026-02-01T00:00:00+00:00", id="newer")
    newest_version = replace(new, versions={"vlprompt": "0.2.0"})
    [table] = report_of(tmp_path, [old, newest_version]).tables
    assert find_cell(table, "coop", "base").value == 70
    assert table.notes == [
        "coop: of 2 tests that were done again with the same settings, the newest count",
        "results of vlprompt 0.1.0 and 0.2.0 stand together here",
    ]


def test_only_the_methods_and_the_protocol_that_were_asked_for_are_told(tmp_path: Path) -> None:
    runs = [make_result({"base": 80.0, "new": 60.0}, method=m) for m in ("coop", "kgcoop", "maple")]
    few = [make_result({"all": 50.0}, protocol="few_shot")]
    report = report_of(tmp_path, runs, few, methods=["maple", "coop"], protocol="base_to_new")
    [table] = report.tables
    assert rows_of(table) == ["zero_shot", "maple", "coop"]
    assert report.group("base_to_new").seeds == (1,)


@pytest.mark.parametrize(
    ("metric", "value", "frozen", "best"),
    [
        ("accuracy", 80.0, 60.0, "maple"),
        ("macro_accuracy", 80.0, 60.0, "maple"),
        ("ece", 10.0, 30.0, "coop"),
    ],
)
def test_a_metric_has_its_own_numbers_and_its_own_best(
    metric: str, value: float, frozen: float, best: str, tmp_path: Path
) -> None:
    names = ["cat", "dog"]
    coop = make_result({"base": 80.0, "new": 80.0}, zero_shot=60.0, classes=names)
    maple = make_result({"base": 82.0, "new": 82.0}, zero_shot=60.0, classes=names, method="maple")
    maple = replace(maple, rows=[replace(row, ece=12.0) for row in maple.rows])
    [table] = report_of(tmp_path, [coop, maple], metric=metric).tables
    assert find_cell(table, "coop", "base").value == value
    assert find_cell(table, "zero_shot", "base").value == frozen
    assert find_cell(table, best, "base").best


def test_a_metric_that_was_not_measured_is_no_number(tmp_path: Path) -> None:
    [table] = report_of(tmp_path, [make_result({"base": 80.0, "new": 60.0})], metric="top5").tables
    assert [cell.text for cell in table.sections[0].lines[1].cells] == ["not run", "not run", "not run"]


def test_a_pair_has_the_difference_image_by_image_and_its_classes(tmp_path: Path) -> None:
    names = ["cat", "dog", "owl", "fox"]
    for method, base in (("coop", [80, 84]), ("kgcoop", [76, 76])):
        runs = over_seeds(scores(base=base, new=[60, 60]), method=method, classes=names, zero_shot=52.0)
        write_with_predictions(tmp_path, runs)
    table, coop, kgcoop = make_report([tmp_path], pair=["coop", "kgcoop"]).pair
    assert table.title == "coop less kgcoop: base to new, 16 shots"
    assert rows_of(table) == ["emoji: base", "emoji: new", "mean"]
    base = find_cell(table, "emoji: base", "difference")
    assert base.value == pytest.approx(6.0, abs=1e-4)
    assert (base.seeds, base.n_images) == ((1, 2), 100)
    assert base.interval[0] < 6 < base.interval[1]
    assert find_cell(table, "emoji: base", "decided").text == "yes"
    assert find_cell(table, "emoji: new", "decided").text == "every image alike"
    assert find_cell(table, "mean", "difference").value == pytest.approx(3.0, abs=1e-4)
    assert headings_of(coop) == ["zero-shot", "coop", "gain", "images"]
    assert coop.sections[0].heading == "emoji: base"
    gain = find_cell(coop, "cat", "gain")
    assert (gain.value, gain.signed) == (pytest.approx(100 * (20.5 - 13) / 25), True)
    assert kgcoop.title == "classes on which kgcoop gains and loses: base to new, 16 shots"


def test_the_mean_of_a_pair_leaves_the_source_out(tmp_path: Path) -> None:
    for method, source in (("coop", 90), ("kgcoop", 50)):
        runs = [{"source": source, "digits": 40.0, "glyphs/chess": 60.0}]
        results = over_seeds(runs, protocol="cross_dataset", dataset="glyphs/symbols", method=method)
        write_with_predictions(tmp_path, results)
    [table] = make_report([tmp_path], pair=["coop", "kgcoop"]).pair
    assert find_cell(table, "glyphs/symbols: source", "difference").value == pytest.approx(40.0)
    assert find_cell(table, "mean", "difference").value == 0
    assert find_cell(table, "mean", "images").text == "200"


def test_a_pair_of_few_shot_runs_is_compared_at_each_number_of_shots(tmp_path: Path) -> None:
    for method, gain in (("coop", 0), ("vpt", 5)):
        for shots in (1, 4):
            runs = over_seeds([{"all": 50.0 + gain * shots}], protocol="few_shot", shots=shots, method=method)
            write_with_predictions(tmp_path, runs)
    [table] = make_report([tmp_path], pair=["vpt", "coop"]).pair
    assert rows_of(table) == ["1 shot · emoji: all", "4 shots · emoji: all"]
    assert find_cell(table, "4 shots · emoji: all", "difference").value == pytest.approx(20.0, abs=1e-4)


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (["coop"], "pair takes two methods, such as pair=coop,kgcoop, not 'coop'"),
        (["coop", "coop"], "pair takes two methods, such as pair=coop,kgcoop, not 'coop,coop'"),
        (["coop", "mapel"], "there are no results of 'mapel' to compare: did you mean maple"),
        (["coop", "maple"], "coop and maple have no test and seed in common under the same conditions"),
    ],
)
def test_a_pair_that_cannot_be_compared_is_one_sentence(pair: list[str], sentence: str, tmp_path: Path) -> None:
    runs = [make_result({"base": 80.0, "new": 60.0}), make_result({"base": 80.0, "new": 60.0}, method="maple", seed=2)]
    with pytest.raises(VlpromptError, match=sentence):
        report_of(tmp_path, runs, pair=pair)


def leave(folder: Path, name: str, text: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / name).write_text(text)


def test_runs_without_a_result_are_listed_by_their_reason(tmp_path: Path) -> None:
    told = {"run": "vpt · emoji · seed 1", "error": "the image tower has no blocks"}
    leave(tmp_path / "a", "failed.json", json.dumps(told))
    leave(tmp_path / "b", "failed.json", json.dumps(told | {"run": "vpt · emoji · seed 2"}))
    leave(tmp_path / "c", "failed.json", "{half")
    leave(tmp_path / "d", "config.yaml")
    report = report_of(tmp_path, [make_result({"base": 80.0, "new": 60.0})])
    table = report.all_tables[-1]
    assert table.title == "runs without a result: 4"
    assert {section.heading: [line.label for line in section.lines] for section in table.sections} == {
        "the image tower has no blocks": ["vpt · emoji · seed 1", "vpt · emoji · seed 2"],
        "failed; failed.json cannot be read": ["c"],
        "not finished": ["d"],
    }
    assert find_cell(table, "d", "folder", section=2).text == str(tmp_path / "d")


def test_a_run_that_left_a_result_has_not_failed(tmp_path: Path) -> None:
    report = report_of(tmp_path, [make_result({"base": 80.0, "new": 60.0})])
    [path] = tmp_path.rglob("result.json")
    path.with_name("config.yaml").write_text("method: coop\n")
    assert report.failures == make_report([tmp_path]).failures == []


def test_failed_runs_alone_are_told_with_the_first_reason(tmp_path: Path) -> None:
    leave(tmp_path / "a", "failed.json", json.dumps({"run": "vpt · emoji", "error": "out of luck"}))
    with pytest.raises(VlpromptError, match="none of the 1 runs has a result; the first, vpt · emoji: out of luck"):
        make_report([tmp_path])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"metric": "acuracy"}, "unknown metric 'acuracy': did you mean accuracy or aurc or macro_accuracy"),
        ({"compare": "other"}, "compare takes published, not 'other'"),
        ({"methods": ["mapel"]}, "there are no results of method 'mapel': did you mean maple"),
        ({"protocol": "few_shots"}, "unknown protocol 'few_shots': did you mean few_shot"),
        ({"protocol": "few_shot"}, "none of the 1 results is of protocol=few_shot: there are results of base_to_new"),
    ],
)
def test_a_mistake_is_one_sentence(options: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match=sentence):
        report_of(tmp_path, [make_result({"base": 80.0, "new": 60.0}, method="maple")], **options)


def test_an_empty_or_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match="there are no result files: run `vlprompt sweep` first"):
        make_report([tmp_path])
    with pytest.raises(VlpromptError, match="nowhere does not exist: give the folder of the runs, or result files"):
        make_report([tmp_path / "nowhere"])


def test_a_figure_needs_one_group_of_its_protocol(tmp_path: Path) -> None:
    report = report_of(tmp_path, [make_result({"base": 80.0, "new": 60.0})])
    with pytest.raises(VlpromptError, match="0 groups of results are of protocol=few_shot"):
        report.group("few_shot")
