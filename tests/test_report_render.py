"""The report as text, as files and from the command line, and the figures for papers."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_results import find_cell, make_result, over_seeds, write_results, write_with_predictions
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vlprompt import VlpromptError
from vlprompt.cli.__main__ import main
from vlprompt.evaluation.tables import result_table
from vlprompt.report import FORMATS, Report, make_report
from vlprompt.report.cells import Cell
from vlprompt.report.figures import accuracy_coverage, base_new, confusion, few_shot_curves, reliability, robin_hood
from vlprompt.report.latex import as_latex
from vlprompt.report.render import CSV_COLUMNS, as_markdown
from vlprompt.report.saved_figures import save_figures
from vlprompt.report.tables import Column, Line, Section, Table

CLASSES = ["cat", "dog", "owl", "fox"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods and three seeds of base-to-new and of few-shot, one seed missing, and a run that failed."""
    folder = tmp_path_factory.mktemp("runs")
    for method, gain in (("coop", 0), ("maple", 4)):
        seeds = [{"base": 76.0 + gain + s, "new": 60.0 + gain} for s in range(3 - (method == "maple"))]
        write_with_predictions(folder, over_seeds(seeds, method=method, classes=CLASSES, zero_shot=52.0))
        for shots in (1, 2, 4):
            few = [{"all": 50.0 + gain + 4 * shots + s} for s in range(2)]
            settings = {"protocol": "few_shot", "shots": shots, "method": method, "classes": CLASSES}
            write_with_predictions(folder, over_seeds(few, **settings, zero_shot=48.0))
    (folder / "broken").mkdir()
    (folder / "broken" / "failed.json").write_text('{"run": "vpt · emoji", "error": "no blocks & no_tokens"}')
    return folder


@pytest.fixture(scope="module")
def report(runs: Path) -> Report:
    """Its report, with a pair."""
    return make_report([runs], pair=["maple", "coop"])


def said(capsys: pytest.CaptureFixture[str], argv: list[str], status: int = 0) -> str:
    assert main(["report", *argv]) == status
    captured = capsys.readouterr()
    return captured.err if status else captured.out


def test_the_terminal_shows_every_table_and_what_is_missing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, [str(runs)])
    for words in (
        "base to new, 16 shots",
        "emoji: 100 base, 100 new images",
        "77.00 ± 0.82",
        "[74.42, 79.39]",
        "80.50 ± 0.50 †",
        "† maple: no seed 3 of emoji, base and emoji, new",
        "few shot",
        "runs without a result: 1",
        "no blocks & no_tokens",
        "vpt · emoji",
    ):
        assert words in text, words


def test_what_is_too_wide_for_the_terminal_follows_below(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = {"source": 50.0} | {f"glyphs/a_rather_long_name_{i}": 40.0 + i for i in range(6)}
    runs = over_seeds([targets] * 2, protocol="cross_dataset", dataset="glyphs/symbols")
    text = said(capsys, [str(write_results(tmp_path, runs))])
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("zero_shot") > 1
    assert all(f"glyphs/a_rather_long_name_{i}" in text for i in range(6))
    assert "mean of 6 targets" in text


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_markdown_has_whole_tables_with_the_best_in_bold(report: Report) -> None:
    text = report.text("markdown")
    assert text.startswith("### base to new, 16 shots\n\ntop-1 accuracy (%); vlprompt-tiny, fp32, 16 shots")
    rows = [cells_of(line) for line in text.splitlines() if line.startswith("|")]
    head = rows.index(["", "seeds", "base", "new", "harmonic mean"])
    assert rows[head + 1] == ["---", "---:", "---:", "---:", "---:"]
    assert rows[head + 2] == ["zero\\_shot", "–", "52.00", "52.00", "52.00"]
    assert rows[head + 3][:3] == ["coop", "3", "**77.00 ± 0.82** [74.42, 79.39]"]
    assert rows[head + 4][:3] == ["maple", "2", "80.50 ± 0.50 † [73.36, 86.09]"]
    assert "† maple: no seed 3 of emoji, base and emoji, new" in text


def awkward() -> Table:
    """A table whose every word would mean something to Markdown or LaTeX."""
    cells = (Cell(1.0, std=0.5, interval=(0.5, 1.5), best=True), Cell(text="50% & a_b|c"))
    columns = (Column("a|b_c", 1200), Column("50%"))
    return Table(
        "t_1 & #2 {x}", "pair", "~^\\ → ±", columns, (Section("h_1", (Line("m_1 (lr=0.1)", cells),)),), ["n_1†"]
    )


def test_markdown_escapes_what_would_be_its_own() -> None:
    text = as_markdown([awkward()])
    assert "### t\\_1 & #2 {x}" in text
    assert all(len(cells_of(line)) == 4 for line in text.splitlines() if line.startswith("|"))
    assert "a\\|b\\_c (1,200)" in text


def check_latex(text: str) -> None:
    """Check that environments and braces close, and that each row has as many cells as the table has columns."""
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)
    depth = 0
    for sign in bare:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    assert not re.findall(r"[#%~^_±†–→·]", bare), "a sign that LaTeX takes for its own, or does not have"
    assert bare.count("$") % 2 == 0
    for body in re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", text, re.S):
        columns, rows = body
        for row in rows.splitlines():
            if row.endswith(r"\\") and not row.startswith(r"\multicolumn"):
                assert len(re.findall(r"(?<!\\)&", row)) + 1 == len(columns), row


def test_latex_is_well_formed_with_booktabs(report: Report) -> None:
    text = report.text("latex")
    check_latex(text)
    n = len(report.all_tables)
    assert [text.count(rule) for rule in (r"\toprule", r"\bottomrule")] == [n, n]
    assert text.count(r"\midrule") == sum(len(table.sections) for table in report.all_tables)
    assert r"coop & 3 & \textbf{77.00 $\pm$ 0.82} & " in text
    assert r"\scriptsize [74.42, 79.39]" in text
    assert r"no blocks \& no\_tokens" in text


def test_latex_escapes_what_would_be_its_own() -> None:
    text = as_latex([awkward()])
    check_latex(text)
    assert r"\caption{t\_1 \& \#2 \{x\}. \textasciitilde{}\textasciicircum{}\textbackslash{} $\to$ $\pm$}" in text
    assert r"m\_1 (lr=0.1) & -- & \textbf{1.00 $\pm$ 0.50} & 50\% \& a\_b|c \\" in text


def test_no_latex_row_starts_with_a_bracket(report: Report) -> None:
    # after a line break, LaTeX would take it for an option
    assert not any(line.lstrip().startswith("[") for line in report.text("latex").splitlines())


def test_csv_holds_every_cell_with_its_numbers_in_full(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(report.text("csv"))))
    assert tuple(rows[0]) == CSV_COLUMNS
    n = sum(len(line.cells) for table in report.all_tables for s in table.sections for line in s.lines)
    assert len(rows) == n
    [row] = [r for r in rows if (r["kind"], r["row"], r["column"]) == ("base_to_new", "maple", "base")]
    cell = find_cell(report.tables[0], "maple", "base")
    assert (float(row["value"]), float(row["std"])) == (cell.value, cell.std)
    assert (float(row["low"]), float(row["high"])) == cell.interval
    assert (row["seeds"], row["n_seeds"], row["n_images"]) == ("1 2", "2", "100")
    assert (row["missing"], row["best"], row["backbone"], row["shots"]) == (
        "emoji, base: no seed 3",
        "False",
        "vlprompt-tiny",
        "16",
    )
    [failed] = [r for r in rows if r["kind"] == "failures"]
    assert (failed["row"], failed["value"], failed["section"]) == ("vpt · emoji", "", "no blocks & no_tokens")


@pytest.mark.parametrize(
    ("suffix", "start"),
    [(".md", "### base"), (".tex", r"\begin{table}"), (".csv", "table,kind"), (".html", "<!doctype html>")],
)
def test_the_suffix_of_a_file_names_its_format(suffix: str, start: str, report: Report, tmp_path: Path) -> None:
    path = report.write(tmp_path / "deep" / f"report{suffix}")
    assert path.read_text(encoding="utf-8").lstrip().startswith(start)
    assert list(path.parent.iterdir()) == [path]


def test_a_given_format_wins_over_the_suffix(report: Report, tmp_path: Path) -> None:
    assert report.write(tmp_path / "table.txt", "csv").read_text().startswith("table,kind")


def test_a_suffix_or_format_that_is_unknown_is_told(report: Report, tmp_path: Path) -> None:
    with pytest.raises(
        VlpromptError, match=r"the suffix of report.pdf names no format: say format=, of markdown, latex"
    ):
        report.write(tmp_path / "report.pdf")
    with pytest.raises(VlpromptError, match="unknown format 'htm': did you mean html"):
        report.text("htm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", [f for f in FORMATS if f not in ("terminal", "html")])
def test_a_text_without_a_file_goes_to_the_terminal(
    format: str, runs: Path, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, [str(runs), f"format={format}", "pair=maple,coop"]) == report.text(format)


def test_the_page_goes_to_a_file_of_its_own_name(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(capsys, [str(runs), "format=html"]).split() == ["report", "report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_one_protocol_some_methods_and_a_metric_can_be_asked_for(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, [str(runs), "format=csv", "methods=[maple]", "protocol=few_shot", "metric=ece"])
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["kind"] != "failures"]
    assert {row["row"] for row in rows} == {"zero_shot", "maple"}
    assert {row["kind"] for row in rows} == {"few_shot"}
    [one] = [row for row in rows if (row["row"], row["column"]) == ("maple", "4 shots")]
    assert float(one["value"]) == pytest.approx(90 - 70.5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["format=pdf"], "unknown format 'pdf': known: csv, html, latex, markdown, terminal"),
        (["metric=f1"], "unknown metric 'f1': known: accuracy, aurc, ece, macro_accuracy, top5"),
        (
            ["format=terminal", "output=a.md"],
            "format=terminal is not written to a file: leave output out, or use markdown",
        ),
        (["output=a.pdf"], "the suffix of a.pdf names no format: say format="),
        (["compare=other"], "compare takes published, not 'other'"),
        (["pair=coop"], "pair takes two methods, such as pair=coop,kgcoop, not 'coop'"),
        (["methods=[mapel]"], "there are no results of method 'mapel': did you mean maple"),
        (["figures=figures", "figure_format=jpeg"], "unknown figure_format 'jpeg'"),
        (["figure=figures"], "unknown key 'figure': did you mean figures"),
        (["nowhere"], "nowhere does not exist: give the folder of the runs, or result files"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(
    words: list[str],
    sentence: str,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    text = said(capsys, [str(runs), *words, "--quiet"], status=2)
    assert text.startswith(f"error: {sentence}")
    assert text.count("\n") == 1


def test_without_a_folder_the_usual_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "runs does not exist" in said(capsys, [], status=2)
    write_results(tmp_path / "runs", [make_result({"base": 80.0, "new": 60.0})])
    assert "base to new" in said(capsys, [])


def test_a_single_result_file_can_be_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(path for path in sorted(runs.rglob("result.json")) if "few_shot" in str(path))
    assert "few shot" in said(capsys, [str(path)])


def test_figures_are_drawn_for_every_protocol(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "figures"
    text = said(capsys, [str(runs), f"figures={folder}", "figure_format=png", "format=csv", f"output={tmp_path}/t.csv"])
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "base-to-new-16-shots-base-new.png",
        "base-to-new-16-shots-confusion-emoji-base.png",
        "base-to-new-16-shots-confusion-emoji-new.png",
        "base-to-new-16-shots-reliability.png",
        "few-shot-confusion-emoji-all-4.png",
        "few-shot-curves.png",
        "few-shot-reliability.png",
    ]
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert text.count("figure  ") == len(names)


def test_few_shot_curves_hold_the_tables_numbers(report: Report) -> None:
    axes = few_shot_curves(report.group("few_shot")).axes[0]
    curves = {line.get_label(): line for line in axes.get_lines()}
    assert set(curves) == {"zero-shot", "coop", "maple"}
    assert list(curves["coop"].get_xdata()) == [1, 2, 4]
    assert list(curves["coop"].get_ydata()) == [54.5, 58.5, 66.5]
    assert len(axes.collections) == 2  # a band of intervals each
    low, high = axes.get_ylim()
    assert 0 <= low < high <= 100


def test_base_against_new_has_a_point_a_method(report: Report) -> None:
    axes = base_new(report.group("base_to_new")).axes[0]
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert points["zero-shot"] == [[52, 52]]
    assert points["coop"] == [[77, 60]]
    assert points["maple"] == [[80.5, 64]]


def test_figures_follow_the_metric(report: Report) -> None:
    axes = base_new(report.group("base_to_new"), "ece").axes[0]
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert points["coop"] == [[13, 30]]
    assert axes.get_xlabel() == "base classes, expected calibration error (%)"


def test_reliability_pools_tests_and_seeds(report: Report) -> None:
    first, second = reliability(report.group("base_to_new")).axes
    # all confidences are 0.9; coop is right on 77% of base and 60% of new images
    assert first.get_title() == "coop, ECE 21.5%"
    heights = [bar.get_height() for bar in first.patches]
    assert max(heights) == pytest.approx(0.685)
    assert sum(height > 0 for height in heights) == 1
    assert second.get_title().startswith("maple")


def test_accuracy_by_coverage_is_the_mean_over_tests_and_seeds(tmp_path: Path, report: Report) -> None:
    curves = ([1.0, 0.5], [0.8, 0.7])
    results = [
        replace(result, rows=[replace(result.rows[0], selective=selective(curve))])
        for result, curve in zip(over_seeds([{"all": 50.0}, {"all": 70.0}], protocol="few_shot"), curves, strict=True)
    ]
    group = make_report([write_results(tmp_path, results)]).group("few_shot")
    [axes] = accuracy_coverage(group).axes
    [line] = axes.get_lines()
    shares, accuracy = line.get_data(orig=False)
    assert (len(shares), shares[-1]) == (20, 100)
    assert accuracy[[9, -1]] == pytest.approx([90, 60])  # half of the images, and all
    with pytest.raises(VlpromptError, match="hold no accuracy by coverage"):
        accuracy_coverage(report.group("few_shot"))


def selective(accuracy: list[float]) -> dict[str, list[float]]:
    return {"threshold": [0.9, 0.5], "coverage": [0.5, 1.0], "accuracy": accuracy}


def test_confusion_shows_shares_of_the_true_class(report: Report) -> None:
    figure = confusion(report.group("base_to_new"), ("emoji", "new", None), ["coop"])
    [image] = figure.axes[0].get_images()
    shares = image.get_array()
    assert shares.shape == (4, 4)
    assert shares.sum(axis=1).tolist() == pytest.approx([1, 1, 1, 1])
    assert shares.diagonal().tolist() == pytest.approx([0.6, 0.6, 0.6, 0.6])
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == CLASSES


def test_many_methods_are_told_apart_and_fit_the_figure(tmp_path: Path) -> None:
    runs = [
        make_result({"all": 40.0 + 2 * i}, protocol="few_shot", shots=shots, method=f"m{i:02}")
        for i in range(20)
        for shots in (1, 2)
    ]
    figure = few_shot_curves(make_report([write_results(tmp_path, runs)]).groups[0])
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].get_lines()}
    assert len(looks) == 21
    figure.canvas.draw()
    [legend] = figure.legends
    box = legend.get_window_extent().transformed(figure.transFigure.inverted())
    assert box.x0 >= 0
    assert box.x1 <= 1


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (
            lambda r: few_shot_curves(r.group("base_to_new")),
            "few-shot curves need protocol=few_shot, not base_to_new",
        ),
        (lambda r: base_new(r.group("few_shot")), "base against new needs protocol=base_to_new or generalized"),
        (
            lambda r: confusion(r.group("few_shot"), ("emoji", "all", 4), ["vpt"]),
            "there are no predictions of vpt for emoji, all: run it, or choose another test",
        ),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_one_sentence(draw, sentence: str, report: Report) -> None:
    with pytest.raises(VlpromptError, match=sentence):
        draw(report)


def test_results_without_calibration_have_no_reliability(tmp_path: Path) -> None:
    report = make_report([write_results(tmp_path, [make_result({"base": 80.0, "new": 60.0})])])
    with pytest.raises(VlpromptError, match="the results of base to new, 16 shots hold no calibration: run them again"):
        reliability(report.groups[0])


def test_a_runs_table_shows_zero_shot_of_descriptions_even_where_it_gains_nothing() -> None:
    plain = make_result({"all": 40.0}, method="zero_shot", protocol="few_shot", n_parameters=0)
    settings = {"descriptions": "cupl.json", "split": "generated"}
    described = replace(plain, config=plain.config | settings)
    headings, said = ([str(c.header) for c in result_table(r).renderables[1].columns] for r in (plain, described))
    assert headings == ["tested on", "classes", "images", "zero-shot"]
    assert said == [*headings, "zero_shot", "gain"]
    assert "generated split" in str(result_table(described).renderables[-1])


def test_who_gains_is_told_of_each_method_and_drawn(tmp_path: Path) -> None:
    poor_first = [10, 12, 14, 16, 18]  # right of 20 images a class
    results = []
    for seed in (1, 2):
        for method, right in (("coop", [18, 18, 18, 18, 18]), ("kgcoop", [10 + seed, *poor_first[1:]])):
            result = make_result({"all": 70.0}, protocol="few_shot", seed=seed, method=method, classes="abcde")
            counts = {"class": list("abcde"), "images": [20] * 5, "correct": right, "zero_shot_correct": poor_first}
            results.append(replace(result, rows=[replace(result.rows[0], per_class=counts)]))
    folder = write_with_predictions(tmp_path / "runs", results)
    report = make_report([folder], analysis="robin_hood")
    [table] = report.classes
    assert report.all_tables[-1] is table
    slopes = [find_cell(table, method, "slope") for method in ("coop", "kgcoop")]
    assert [cell.value for cell in slopes] == pytest.approx([-1.0, -0.15])  # 7.5 points for the poorest alone
    assert slopes[1].seeds == (1, 2)
    assert find_cell(table, "coop", "poorer half").value == pytest.approx(35.0)
    assert find_cell(table, "coop", "richer half").value == pytest.approx(5.0)
    group = report.group("few_shot")
    figure = robin_hood(group, group.telling_keys[0])
    assert figure.axes[0].get_title() == "coop: slope -1.00, ρ -1.00"
    assert "who-gains" in " ".join(path.name for path in save_figures([group], tmp_path / "drawn", "svg"))
    assert "<h2>Who gains</h2>" in make_report([folder]).text("html")
    assert make_report([folder]).classes == []


def test_a_legend_of_long_names_stays_inside_its_figure(tmp_path: Path) -> None:
    made = [
        make_result({"all": 50.0}, protocol="few_shot", seed=seed, config={"lr": lr, "schedule": "cosine(warmup=1)"})
        for seed, lr in ((1, 0.0021), (2, 0.0022), (3, 0.0023))
    ] + [make_result({"all": 50.0}, protocol="few_shot", seed=4, config={"schedule": "dassl"})]
    figure = few_shot_curves(make_report([write_results(tmp_path, made)]).group("few_shot"))
    FigureCanvasAgg(figure).draw()
    legend, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= legend.x0
    assert legend.x1 <= whole.x1
