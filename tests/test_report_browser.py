"""The pages of the report and of an inspection in headless Chromium: they sort, fit a phone, and ask for nothing.

Screenshots are left in ``$VLPROMPT_ARTEFACTS``, or in the test's own folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_results import over_seeds, write_results
from PIL import Image

from vlprompt.analysis import DataFindings, Inspection, label_errors, near_duplicates
from vlprompt.evaluation.saved_predictions import Predictions
from vlprompt.report import make_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
expect = playwright.expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
BASES = {"coop": 76, "kgcoop": 71, "maple": 79}
CUT = """() => [...document.querySelectorAll('svg')].flatMap((svg) => {
    const frame = svg.viewBox.baseVal;
    return [...svg.querySelectorAll('text')].filter((text) => {
        const box = text.getBBox();
        return box.width && (box.x < -0.5 || box.x + box.width > frame.width + 0.5);
    }).map((text) => text.textContent);
})"""
CLASSES = ["cat", "dog", "owl", "NINE-POINTED WHITE STAR"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page over every kind of table and chart, wide ones included."""
    folder = tmp_path_factory.mktemp("browser")
    for method, base in BASES.items():
        settings = {"method": method, "classes": CLASSES, "zero_shot": 52.0}
        seeds = range(3 - (method == "kgcoop"))
        write_results(folder, over_seeds([{"base": base + s, "new": 140.0 - base} for s in seeds], **settings))
        for shots in (1, 2, 4, 8, 16):
            few = [{"all": base - 20.0 + shots + s} for s in seeds]
            write_results(folder, over_seeds(few, protocol="few_shot", shots=shots, **settings))
        targets = {"source": 100.0} | {f"glyphs/target_{i}": 30.0 + i for i in range(10)}
        if method != "maple":
            source = settings | {"protocol": "cross_dataset", "dataset": "glyphs/symbols", "zero_shot": 0.0}
            write_results(folder, over_seeds([targets, targets], **source))
    (folder / "broken").mkdir()
    (folder / "broken" / "failed.json").write_text('{"run": "vpt · emoji", "error": "the image tower has no blocks"}')
    return make_report([folder], compare="published").write(folder / "report.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


Open = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, page_file: Path) -> Iterator[Open]:
    """Open the page; afterwards nothing may have gone wrong in it, and nothing but its file been asked for."""
    complaints, requests, contexts, visited = [], [], [], []

    def open_page(viewport: dict[str, int] = DESKTOP, *, path: Path = page_file, **options: Any) -> Any:
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        visited.append(path.as_uri())
        page.goto(visited[-1])
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} == set(visited)


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Where screenshots go."""
    folder = Path(os.environ.get("VLPROMPT_ARTEFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def column(page: Any, number: int, table: str = "table.base_to_new") -> list[str]:
    """The texts of a column of a table's first block of rows."""
    rows = page.locator(f"{table} >> nth=0").locator("tbody >> nth=0").locator("tr:not(.heading)")
    return [row.locator("th, td").nth(number).inner_text().split("\n")[0] for row in rows.all()]


def heading(page: Any, name: str) -> Any:
    return page.locator("table.base_to_new >> nth=0").locator("thead button", has_text=name)


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_it(visit: Open) -> None:
    page = visit()
    assert column(page, 0) == ["zero_shot", "coop", "kgcoop", "maple"]
    heading(page, "base").click()
    assert column(page, 0) == ["maple", "coop", "kgcoop", "zero_shot"]
    assert column(page, 2) == ["80.00 ± 0.82", "77.00 ± 0.82", "71.50 † ± 0.50", "52.00"]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    heading(page, "base").click()
    assert column(page, 0) == ["zero_shot", "kgcoop", "coop", "maple"]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_names_sort_by_letters_and_what_has_no_number_comes_last(visit: Open) -> None:
    page = visit()
    heading(page, "method").click()
    assert column(page, 0) == ["coop", "kgcoop", "maple", "zero_shot"]
    for _ in range(2):
        heading(page, "seeds").click()
        assert column(page, 1)[-1] == "–"


def test_each_block_of_rows_is_sorted_by_itself(visit: Open) -> None:
    page = visit()
    table = page.locator("table.published >> nth=0")
    before = [body.locator("tr.heading").inner_text() for body in table.locator("tbody").all()]
    table.locator("thead button", has_text="published").click()
    assert [body.locator("tr.heading").inner_text() for body in table.locator("tbody").all()] == before
    values = [float(v) for v in column(page, 3, "table.published")]
    assert values == sorted(values, reverse=True)


def test_the_keyboard_sorts_too(visit: Open) -> None:
    page = visit()
    heading(page, "new").focus()
    page.keyboard.press("Enter")
    assert column(page, 0) == ["kgcoop", "coop", "maple", "zero_shot"]
    page.keyboard.press("Space")
    assert column(page, 0) == ["zero_shot", "maple", "coop", "kgcoop"]


def test_a_click_on_a_number_shows_its_runs_and_escape_closes_them(visit: Open, artefacts: Path) -> None:
    page = visit()
    number = page.locator("table.base_to_new .cell", has_text="77.00")
    number.click()
    dialog = page.locator("dialog")
    expect(dialog).to_be_visible()
    assert dialog.locator("h2").inner_text() == "coop · emoji: 100 base, 100 new images · base"
    assert dialog.locator("#dialog-body > p").inner_text().endswith("from 3 runs")
    assert dialog.locator("summary").all_inner_texts() == [f"coop, emoji, 16 shots, seed {s}" for s in (1, 2, 3)]
    dialog.locator("summary").first.click()
    for words in ("coop/base_to_new, released code", "76.00 (zero-shot 52.00), 100 images", "vlprompt 0.1.0", "0.002"):
        expect(dialog).to_contain_text(words)
    page.screenshot(path=artefacts / "report-dialog.png")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    number.click()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_a_menu_chooses_whose_classes_and_calibration_are_shown(visit: Open) -> None:
    page = visit()
    choice = page.locator(".choice >> nth=0")
    shown = choice.locator(".panel:not([hidden])")
    assert shown.count() == 1
    before = shown.inner_text()
    choice.locator("select").select_option("emoji, new")
    assert shown.count() == 1
    assert shown.inner_text() != before


def luminance(page: Any, selector: str, what: str) -> float:
    """How light a colour of an element is, from 0 to 1."""
    colour = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{what}")
    shares = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(page: Any, selector: str) -> float:
    ink, paper = luminance(page, selector, "color"), luminance(page, "body", "backgroundColor")
    return (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_and_are_readable(scheme: str, visit: Open, artefacts: Path) -> None:
    page = visit(color_scheme=scheme)
    paper = luminance(page, "body", "backgroundColor")
    assert paper > 0.9 if scheme == "light" else paper < 0.05
    assert contrast(page, "body") > 7
    for selector in (".caption", "td small", ".std", "nav a", "figcaption"):  # WCAG AA
        assert contrast(page, selector) > 4.5, selector
    page.screenshot(path=artefacts / f"report-{scheme}.png", full_page=True)


@pytest.mark.parametrize("width", [360, 390, 400])
def test_a_phone_shows_every_number_below_its_heading_and_cuts_none_off(width: int, visit: Open) -> None:
    page = visit(PHONE | {"width": width}, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = """(width) => [...document.querySelectorAll('main td, main th, main td *')].filter((cell) => {
        const box = cell.getBoundingClientRect(), frame = cell.closest('.table')?.getBoundingClientRect();
        return box.width && (box.left < 0 || box.right > Math.min(width, frame?.right ?? width) + 0.5);
    }).map((cell) => cell.textContent)"""
    assert page.evaluate(outside, width) == []
    last = page.locator("table.cross_dataset tbody tr").nth(1).locator("td").last
    assert last.get_attribute("data-column") == "mean of 10 targets"
    assert last.evaluate("e => getComputedStyle(e, '::before').content") == '"mean of 10 targets"'


def test_one_chart_alone_is_drawn_larger_and_its_letters_are_not(visit: Open) -> None:
    page = visit()
    alone = page.locator(".charts.single svg").first
    among = page.locator(".charts:not(.single) svg").first
    assert alone.bounding_box()["width"] > 0.4 * DESKTOP["width"] > among.bounding_box()["width"]
    letters = (
        "e => parseFloat(getComputedStyle(e).fontSize) * e.getBoundingClientRect().width / e.viewBox.baseVal.width"
    )
    assert 11 < among.evaluate(letters) < alone.evaluate(letters) < 16


def test_a_desk_shows_every_column(visit: Open) -> None:
    page = visit()
    cut = "() => [...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth).length"
    assert page.locator("table.cross_dataset.many thead th").count() > 10
    assert page.evaluate(cut) == 0


def test_wide_tables_are_reached_by_keyboard_and_headings_sort_by_it(visit: Open) -> None:
    page = visit({"width": 720, "height": 900})
    wide, narrow = (page.locator(f".scroll:has(table.{kind}) >> nth=0") for kind in ("cross_dataset", "base_to_new"))
    expect(wide).to_have_attribute("tabindex", "0")
    expect(narrow).not_to_have_attribute("tabindex", "0")
    button = page.get_by_role("columnheader", name="base", exact=True).first.get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("th[aria-sort]")).to_have_attribute("aria-sort", "descending")
    wide.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("e => e.scrollLeft > 0", arg=wide.element_handle())


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_screen_reader_is_told_of_tables_with_names_headings_and_conditions(
    viewport: dict[str, int], visit: Open
) -> None:
    page = visit(viewport)
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    seen = [node for node in nodes if not node["ignored"]]
    tables = [node for node in seen if node["role"]["value"] == "table"]
    shown = page.locator("main table:visible").count()
    assert len(tables) == shown
    assert all(node["name"]["value"] and "top-1" in node["description"]["value"] for node in tables[:3])
    roles = [node["role"]["value"] for node in seen]
    for role, cells in (("rowheader", "tbody th"), ("columnheader", "thead th"), ("cell", "td")):
        assert roles.count(role) == page.locator(f"main table {cells}:visible").count(), role


def test_a_phone_opens_what_is_behind_a_number(visit: Open, artefacts: Path) -> None:
    page = visit(PHONE, is_mobile=True, has_touch=True)
    page.screenshot(path=artefacts / "report-phone.png", full_page=True)
    page.locator(".cell").first.tap()
    expect(page.locator("dialog")).to_be_visible()
    box = page.locator("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_words_of_a_chart_are_cut_off(viewport: dict[str, int], visit: Open) -> None:
    page = visit(viewport)
    assert page.evaluate(CUT) == []


# The page of an inspection


@pytest.fixture(scope="module")
def inspect_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with long names, many mistakes, wrong labels and copies."""
    n = 60
    generator = np.random.default_rng(0)
    names = ("river", "Permanent_Crop_Land_with_a_name_that_does_not_end", "sea or lake", "hülye 向日葵")
    label = np.arange(n) % len(names)
    predicted = np.where(np.arange(n) % 3, label, (label + 1) % len(names))
    features = generator.normal(size=(n, 8)) + 3 * np.eye(8)[label]
    features[1] = features[2]
    files = [f"EuroSAT/photos-of-a-long-way-down/{names[i]}/{k:05d}.jpg" for k, i in enumerate(label)]

    def open_image(place: int) -> Image.Image:
        return Image.fromarray(generator.integers(0, 255, (40 + place, 64, 3), dtype=np.uint8))

    parts = ["train" if i % 2 else "test" for i in range(n)]
    errors, duplicates = label_errors(features, predicted), near_duplicates(features, parts)
    found = DataFindings(names, files, parts, label, errors, duplicates, open_image)
    said = [torch.from_numpy(x.astype(np.int32)) for x in (label, predicted, np.zeros(n))]
    confidence = torch.from_numpy(generator.uniform(0.3, 1, n)).float()
    facts = {"run": "runs/coop-EuroSAT-few_shot-16-seed1-0123456789ab", "backbone": "vlprompt-tiny", "shots": "16"}
    inspection = Inspection("coop on EuroSAT: all", names, files, Predictions(*said, confidence), "alone", open_image)
    return replace(inspection, facts=facts, findings=found).save(tmp_path_factory.mktemp("inspect"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_inspection_is_readable_in_light_and_dark(
    scheme: str, visit: Open, inspect_file: Path, artefacts: Path
) -> None:
    page = visit(path=inspect_file, color_scheme=scheme)
    paper = luminance(page, "body", "backgroundColor")
    assert paper > 0.9 if scheme == "light" else paper < 0.05
    for selector in ("dt", "dd.about", ".sheet span", ".sheet small", ".note", "figcaption", "table.classes td small"):
        assert contrast(page, selector) > 4.5, selector
    assert page.evaluate("[...document.images].filter((image) => !image.alt).length") == 0
    page.screenshot(path=artefacts / f"inspect-{scheme}.png", full_page=True)


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_nothing_of_an_inspection_is_cut_off(width: int, visit: Open, inspect_file: Path, artefacts: Path) -> None:
    page = visit(PHONE | {"width": width}, path=inspect_file)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = """(width) => [...document.querySelectorAll('main *, header *')].filter((part) => {
        const box = part.getBoundingClientRect();
        return box.width && !part.closest('svg') && (box.left < 0 || box.right > width + 0.5);
    }).map((part) => part.outerHTML.slice(0, 80))"""
    assert page.evaluate(outside, width) == []
    assert page.evaluate(CUT) == []
    page.screenshot(path=artefacts / f"inspect-{width}.png", full_page=True)


def test_the_tables_of_an_inspection_sort_by_keyboard(visit: Open, inspect_file: Path) -> None:
    page = visit(path=inspect_file)
    page.locator("table.classes thead button", has_text="gain").focus()
    page.keyboard.press("Enter")
    gains = [float(text) for text in column(page, 3, "table.classes")]
    assert gains == sorted(gains, reverse=True)
