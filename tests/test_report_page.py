"""The report as a page: one file that needs nothing else, with the runs behind every number; what is drawn on it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_results import make_result, over_seeds, write_results

from vlprompt.evaluation.abstention import AccuracyCoverage
from vlprompt.evaluation.metrics import Reliability
from vlprompt.evaluation.statistics import ClassChange
from vlprompt.report import make_report
from vlprompt.report.cells import Cell
from vlprompt.report.charts import (
    base_new_chart,
    coverage_chart,
    few_shot_chart,
    gains_chart,
    reliability_chart,
    robin_hood_chart,
)
from vlprompt.report.summaries import COLOURS, SHAPES, style_index
from vlprompt.report.tables import Line, Section

CLASSES = ["cat", "dog", "owl", "fox"]
VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    """A page, read; what is not well-formed is an error.

    Attributes:
        elements: name and attributes of every element, in order.
        words: the texts of elements, in order.
    """

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str):
        assert self._open.pop() == tag

    def handle_data(self, data: str):
        self.words.append(data.strip())

    def of(self, tag: str, **wanted: str) -> list[Mapping[str, str | None]]:
        """The attributes of the elements of a name that have these attributes."""
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in wanted.items())]


def data_of(text: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page over two protocols, one seed missing, a failed run, and words that would like to be code."""
    folder = tmp_path_factory.mktemp("runs")
    hostile = {"ctx_init": "</script><script>alert(1)</script>"}
    for method, n in (("coop", 3), ("maple", 2)):
        seeds = [{"base": 76.0 + s, "new": 60.0} for s in range(n)]
        settings = {"method": method, "classes": ["<b>cat</b>", *CLASSES[1:]], "zero_shot": 52.0, "config": hostile}
        write_results(folder, over_seeds(seeds, **settings))
    write_results(folder, [make_result({"all": 50.0 + k}, protocol="few_shot", shots=k) for k in (1, 2, 4)])
    (folder / "broken").mkdir()
    (folder / "broken" / "failed.json").write_text('{"run": "vpt", "error": "<script>alert(2)</script>"}')
    return make_report([folder]).text("html")


def test_the_page_is_well_formed_and_needs_nothing_else(text: str) -> None:
    page = Page(text)
    assert not re.search(r"https?://|url\(|@import", text)
    assert all("src" not in attributes for _, attributes in page.elements)
    assert [a["href"] for a in page.of("link")] == ["data:,"]
    [policy] = page.of("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.of("a")} <= set(ids)
    assert page.of("html")[0]["lang"] == "en"


def test_words_that_would_like_to_be_code_stay_words(text: str) -> None:
    page = Page(text)
    assert len(page.of("script")) == 2
    assert not page.of("b", **{"class": "cat"})
    assert "<b>cat</b>" not in text
    assert "<script>alert" not in text
    assert "<script>alert(2)</script>" in page.words
    assert data_of(text)["configs"][0]["ctx_init"] == "</script><script>alert(1)</script>"


def test_every_number_leads_to_its_runs_their_settings_and_where_they_come_from(text: str) -> None:
    page, data = Page(text), data_of(text)
    cells = page.of("button", **{"class": "cell"})
    assert cells
    behind = [[int(n) for n in cell["data-runs"].split()] for cell in cells]
    assert max(map(max, behind)) < len(data["runs"]) == 8
    assert sorted(len(numbers) for numbers in behind) == [1] * 3 + [2] * 3 + [3] * 3
    run = data["runs"][behind[0][0]]
    assert (run["method"], run["dataset"], run["seed"], run["shots"]) == ("coop", "emoji", 1, 16)
    assert run["tests"][0] == {
        "target": "base",
        "accuracy": 76.0,
        "zero_shot": 52.0,
        "n_images": 100,
        "split": "emoji base",
    }
    assert run["provenance"]["recipe"] == "coop/base_to_new, released code"
    assert run["provenance"]["versions"] == "vlprompt 0.1.0"
    assert data["backbones"][run["backbone"]]["architecture"] == "vlprompt-tiny"
    assert data["configs"][run["config"]]["lr"] == 0.002
    assert "seed" not in data["configs"][run["config"]]  # so that seeds share one copy


def test_what_is_incomplete_says_so_at_its_number(text: str) -> None:
    titles = [a["title"] for a in Page(text).of("td") if "title" in a]
    assert titles == [
        "emoji, base: no seed 3",
        "emoji, new: no seed 3",
        "emoji, base: no seed 3; emoji, new: no seed 3",
    ]
    assert "† maple: no seed 3 of emoji, base and emoji, new" in text


def test_failed_runs_have_a_section_of_their_own(text: str) -> None:
    words = Page(text).words
    assert "Runs without a result" in words
    assert "runs without a result: 1" in words


def test_a_method_has_one_colour_in_all_charts(text: str) -> None:
    legends = re.findall(r'<ul class="legend".*?</ul>', text, re.S)
    assert len(legends) == 2
    for legend in legends:
        assert '<i class="c0"></i>coop' in legend
        assert '<i class="zs"></i>zero_shot' in legend


def test_the_charts_of_single_tests_are_chosen_from_a_menu(text: str) -> None:
    assert re.findall(r"<option>(.*?)</option>", text) == ["emoji, base", "emoji, new"]
    assert text.count('<div class="panel">') == 2
    assert "coop: calibration, ECE 13.0%" in text


def test_the_page_tells_the_metric_and_its_results(text: str) -> None:
    assert "8 results, top-1 accuracy (%), the latest of 2026-01-01." in text


def numbers(svg: str, pattern: str) -> list[float]:
    return [float(n) for n in re.findall(pattern, svg)]


def test_few_shot_curves_stay_within_the_percentages() -> None:
    cells = (Cell(3.0, std=2.0, interval=(-9.0, 15.0)), Cell(97.0, std=2.0, interval=(90.0, 104.0)))
    svg = few_shot_chart(Section("emoji", (Line("coop", cells),)), {"1": 1, "2": 2}, style_index(["coop"]))
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", re.search(r'"band c0" d="(.*?)Z"', svg)[1])]
    assert max(heights) <= 196  # the axis, 0%
    assert min(heights) >= 8  # the top, 100%
    assert svg.count("<circle") == 2
    assert "coop: 97.00 ± 2.00" in svg


def test_base_against_new_marks_methods_by_colour_and_shape() -> None:
    names = [f"m{i}" for i in range(len(COLOURS) * len(SHAPES))]
    styles = style_index(names)
    assert len(set(styles.values())) == len(names)
    lines = tuple(Line(name, (Cell(50.0 + i, std=1.0), Cell(60.0 + i))) for i, name in enumerate(names))
    svg = base_new_chart(Section("emoji", lines), styles)
    dots = re.findall(r'class="dot (c\d)(?: (square|diamond))?"', svg)
    assert len(set(dots)) == len(names)
    assert [svg.count(f"<{kind}") for kind in ("circle", "rect")] == [8, 8]
    assert svg.count('class="whisker') == len(names)
    assert "m3: base 53.00 ± 1.00, new 63.00" in svg


def test_base_against_new_draws_lines_of_equal_harmonic_mean_where_they_are() -> None:
    lines = (Line("a", (Cell(60.0), Cell(60.0))), Line("b", (Cell(90.0), Cell(90.0))))
    svg = base_new_chart(Section("", lines), style_index(["a", "b"]))
    assert re.findall(r">(H \d+)<", svg) == ["H 60", "H 70", "H 80", "H 90"]


def test_gains_are_cut_in_the_middle_and_nothing_has_no_bar() -> None:
    changes = [ClassChange(f"class {i}", 10, 50.0 + 5 * (10 - i), 50.0) for i in range(21)]
    svg = gains_chart(changes)
    assert "… 5 between" in svg
    assert [svg.count(f'class="{kind}"') for kind in ("gain", "loss")] == [8, 8]
    assert re.findall(r">([+-]?\d+)<", svg)[:2] == ["+50", "+45"]
    still = gains_chart([ClassChange("cat", 10, 50.0, 50.0), ClassChange("dog", 1000, 49.9, 50.0)])
    assert re.findall(r">([+-]?\d+)<", still) == ["0", "0"]
    assert still.count("<rect") == 1
    assert gains_chart([]) == ""


def test_a_chart_of_who_gains_has_a_dot_a_class_and_the_line_inside_its_axes() -> None:
    changes = [ClassChange(f"class {i}", 10, 60.0, 10.0 * i) for i in range(8)]
    svg = robin_hood_chart(changes, "c2 square")
    assert svg.count('class="dot c2 square"') == 8
    assert "slope -1.00, Spearman&#x27;s ρ -1.00" in svg
    line = re.search(r'class="line c2 square" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg)
    assert [8 <= float(y) <= 196 for y in line.group(2, 4)] == [True, True]
    assert "class 7: 70.0 -10.0" in svg
    many = robin_hood_chart([ClassChange(str(i), 10, 50.0, i / 5) for i in range(300)], "c0")
    assert (many.count("<circle"), many.count("h0")) == (0, 300)
    assert "slope" not in robin_hood_chart(changes[:4], "c0")
    assert robin_hood_chart([], "c0") == ""


def test_reliability_bars_are_as_high_as_the_accuracy_and_as_full_as_the_bin() -> None:
    svg = reliability_chart(Reliability([0, 10, 40], [0, 0.5, 0.9], [0, 0.25, 1.0]), "c1")
    assert numbers(svg, r'height="([\d.]+)"') == [47.0, 188.0]
    assert numbers(svg, r'fill-opacity="([\d.]+)"') == [0.44, 1.0]
    assert "confidence 0.67 to 1.00: accuracy 1.00 of 40 images" in svg


def test_the_coverage_chart_marks_a_threshold() -> None:
    curve = AccuracyCoverage.of([0.9, 0.8, 0.7, 0.6], [True, True, False, True])
    svg = coverage_chart(curve, "c1", min_probability=0.75)
    assert 'class="line c1"' in svg
    assert "from 0.75: 50.0% of the images answered, 100.0% of these right" in svg
    assert "<circle" not in coverage_chart(curve, "c1", min_probability=0.95)


def test_results_of_an_older_schema_have_tables_without_charts_of_classes(tmp_path: Path) -> None:
    text = make_report([write_results(tmp_path, [make_result({"base": 80.0, "new": 60.0})])]).text("html")
    assert "Classes and calibration" not in text
    assert 'aria-label="New against base accuracy' in text
