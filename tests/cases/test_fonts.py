"""Figures whose class names are of any script: fonts that have the signs, or one sentence, and never boxes unsaid."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
from made_results import make_result, write_with_predictions
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from vlprompt.base import fonts
from vlprompt.base.fonts import make_legible, shorten
from vlprompt.evaluation.statistics import ClassChange
from vlprompt.report import make_report
from vlprompt.report.charts import gains_chart
from vlprompt.report.figures import confusion

SUNFLOWERS = ["向日葵", "ひまわり", "해바라기", "\U0001fabb hyacinth"]  # no font that matplotlib ships has one of these


@pytest.fixture(autouse=True)
def fonts_are_looked_for_anew() -> Iterator[None]:
    fonts._fonts_for.cache_clear()
    yield
    fonts._fonts_for.cache_clear()


def drawn_with(figure: Figure) -> list[str]:
    """Draw a figure in each format, and return the warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for format in ("png", "pdf", "svg"):
            figure.savefig(io.BytesIO(), format=format)
    return [str(each.message) for each in said]


def test_without_a_font_that_has_the_signs_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "_installed", dict)
    write_with_predictions(tmp_path, [make_result({"base": 50.0}, protocol="few_shot", classes=SUNFLOWERS)])
    [group] = make_report([tmp_path]).groups
    with pytest.warns(UserWarning, match="no font on this machine draws") as said:
        figure = confusion(group, group.keys[0])
    [sentence] = [str(each.message) for each in said]
    assert "fonts-noto-cjk" in sentence
    assert drawn_with(figure) == []  # matplotlib has nothing to add
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["???", "????", "????", "? hyacinth"]


def test_a_font_of_the_machine_that_has_the_signs_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    stix = str(Path(matplotlib.get_data_path(), "fonts/ttf/STIXGeneral.ttf"))  # stands for one that the user installed
    fontManager.addfont(stix)  # a list of fonts that another environment has left may not know it
    only_there = fonts._signs_of(stix) - fonts._signs_of(fonts._default_font())
    installed = {"DejaVu Serif": fonts._default_font(), "STIXGeneral": stix}
    monkeypatch.setattr(fonts, "_installed", lambda: installed)
    sign = sorted(sign for sign in only_there if sign.isprintable() and sign.isalpha())[0]
    figure = Figure()
    title = figure.subplots().set_title(f"class {sign}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_legible(figure)
    assert title.get_text() == f"class {sign}"
    assert title.get_fontfamily() == [*matplotlib.rcParams["font.family"], "STIXGeneral"]
    assert drawn_with(figure) == []


def test_names_of_latin_letters_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_installed", lambda: pytest.fail("no font is looked for"))
    figure = Figure()
    axes = figure.subplots()
    axes.set_title("Größe")
    make_legible(figure)
    assert drawn_with(figure) == []


def test_older_matplotlibs_are_said_to_leave_arabic_unjoined() -> None:
    with pytest.warns(UserWarning, match="from left to right and unjoined: upgrade it to 3.11"):
        fonts._say_unjoined(set("زهرة"), (3, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fonts._say_unjoined(set("زهرة"), (3, 11))
        fonts._say_unjoined(set("flower"), (3, 8))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sunflower", "sunflower"),
        ("NINE-POINTED WHITE STAR", "NINE-POINTED WHIT…"),
        ("向日葵" * 5, "向日葵向日葵向日…"),
    ],
)
def test_labels_are_cut_by_their_width(name: str, expected: str) -> None:
    assert shorten(name, 18) == expected
    assert expected in gains_chart([ClassChange(name, 10, 50.0, 40.0)])
