"""Names that try something: formulas, markup, escape sequences; each is shown as text wherever it comes out."""

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.table import Table as RichTable

from vlprompt import create_learner, load_clip
from vlprompt.base.reporter import Reporter, make_console
from vlprompt.base.sanitizing import csv_cell, figure_text, printable
from vlprompt.cli.__main__ import main
from vlprompt.data import splits_from_pairs
from vlprompt.evaluation import evaluate, save_predictions
from vlprompt.evaluation.prediction import Prediction, write_predictions
from vlprompt.report.cells import Cell
from vlprompt.report.latex import as_latex
from vlprompt.report.render import as_csv, as_markdown, print_terminal
from vlprompt.report.tables import Column, Line, Section, Table

ESCAPES = ("\x1b[31mred", "a\x07b", "\x9b2J", "line\nbreak", "tab\there", "\u202eturned", "\ufeffmark", "\x00", "\x7f")
MARKUP = ("[/b]", "[bold]cat[/bold]", "[link=file:///x]y[/link]", ":dog:", "[red", "\\[x]")
FORMULAS = ("=HYPERLINK(1)", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", " =1", "\r=1", "\uff1d1")


def is_quiet(text: str) -> bool:
    """Whether a terminal obeys nothing in text but ends of lines."""
    return all(sign == "\n" or not (sign < " " or "\x7f" <= sign <= "\x9f" or sign in "\u202e\ufeff") for sign in text)


def test_control_characters_are_written_out_and_scripts_left_alone():
    # case: a class with ANSI escapes
    assert all(printable(name).isprintable() for name in ESCAPES)
    for name in ("ক্ষ", "می‌خواهم", "👩‍🔬", "café", "日本語", "شيء", "a b"):
        assert printable(name) == name  # joiners that scripts need are no controls


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_reach_no_table(name: str, tmp_path: Path):
    # case: formula.csv, formulas reach the predictions CSV
    def starts(text: str) -> set[str]:
        return {cell.lstrip()[:1] for row in csv.reader(io.StringIO(text, newline="")) for cell in row}

    out = io.StringIO()
    write_predictions([Prediction(f"{name}.png", (name, "cat"), (0.9, 0.1))], out, "csv")
    section = Section(name, (Line(name, (Cell(-1.5, text=name),)),))
    report = Table(name, "x", name, (Column(name),), (section,))
    pairs = [(Image.new("RGB", (8, 8)), i % 2) for i in range(2)]
    clip = load_clip("vlprompt-tiny", device="cpu")
    splits = splits_from_pairs((), [name, "cat"], test=pairs)
    learner = create_learner("zero_shot", clip, splits.class_names)
    save_predictions([evaluate(learner, splits)], tmp_path / "found.csv")
    for text in (out.getvalue(), as_csv([report]), (tmp_path / "found.csv").read_text()):
        assert not starts(text) & set("=+@\uff1d")
    assert ",-1.5," in as_csv([report])
    assert (csv_cell(-0.5), csv_cell("-0.5"), csv_cell("-"), csv_cell("x=1")) == (-0.5, "-0.5", "-", "x=1")


@pytest.mark.parametrize("name", [*MARKUP, *ESCAPES])
def test_names_come_out_of_consoles_as_text(name: str, capsys: pytest.CaptureFixture[str]):
    # case: a class named [/b], Rich markup crashes a finished run; escapes reach the terminal
    table = RichTable(f"head {name}", title=f"title {name}", caption=f"caption {name}")
    table.add_row(name)
    make_console().print(table)
    make_console().print(name)
    reporter = Reporter()
    reporter.say(name)
    with reporter.bar(name) as update:
        update(1, 1, name)
    section = Section(name, (Line(name, (Cell(text=name),)),))
    report = Table(name, "x", name, (Column(name),), (section,), [name])
    print_terminal([report], make_console())
    out = capsys.readouterr().out
    assert is_quiet(out)
    assert out.count(printable(name, keep="\n").split("\n")[0]) >= 7
    for text in (as_markdown([report]), as_latex([report]), as_csv([report])):
        assert is_quiet(text)


@pytest.mark.parametrize("name", ESCAPES)
def test_predictions_of_every_form_are_quiet(name: str):
    # case: escapes reach the terminal
    for form in ("table", "csv", "jsonl"):
        out = io.StringIO()
        write_predictions([Prediction(f"{name}.png", (name, "cat"), (0.9, 0.1))], out, form, width=9)
        assert is_quiet(
            out.getvalue().replace("\u202e", "").replace("\ufeff", "") if form == "jsonl" else out.getvalue()
        )
        if form == "jsonl":
            assert json.loads(out.getvalue())["classes"] == [name, "cat"]


def test_a_run_on_such_names_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # case: a class named [/b], one with ANSI escapes
    names = ["[/b]", "\x1b[31mred", "=HYPERLINK(1)", "$x$"]
    lines = [f'{i}/{j}.png,"{name}"' for i, name in enumerate(names) for j in range(4)]
    for i in range(len(names)):
        (tmp_path / str(i)).mkdir()
        for j in range(4):
            Image.new("RGB", (8, 8), (60 * i, 9 * j, 0)).save(tmp_path / str(i) / f"{j}.png")
    (tmp_path / "table.csv").write_text("path,class\n" + "\n".join(lines))
    dataset, run, wrong = f"csv:{tmp_path / 'table.csv'}", tmp_path / "runs/it", "dataset=folder:\x1b[31m"
    options = ["protocol=few_shot", "shots=1", "epochs=1", "views=1", f"output={tmp_path / 'runs'}", "name=it"]
    assert main(["train", f"dataset={dataset}", *options]) == 0
    assert main(["data", "check", dataset]) == 0
    assert main(["predict", f"learner={run}", str(tmp_path / "0/0.png"), "top=4"]) == 0
    assert main(["evaluate", f"run={run}", f"save_predictions={tmp_path / 'found.csv'}"]) == 0
    assert main(["inspect", f"run={run}", f"output={tmp_path / 'inspect'}"]) == 0
    for form in ("terminal", "markdown", "latex", "csv"):
        assert main(["report", str(tmp_path / "runs"), f"format={form}"]) == 0
    assert main(["report", str(tmp_path / "runs"), "format=html", f"output={tmp_path / 'page.html'}"]) == 0
    assert main(["report", str(tmp_path / "runs"), f"figures={tmp_path / 'figures'}", "figure_format=svg"]) == 0
    assert main(["train", wrong, *options]) == 2
    told = capsys.readouterr()
    assert is_quiet(told.out + told.err)
    assert "[/b]" in told.out
    assert "'=HYPERLINK(1)" in (tmp_path / "found.csv").read_text()
    assert "\x1b" not in (tmp_path / "page.html").read_text() + (tmp_path / "inspect/inspect.html").read_text()
    assert "'=HYPERLINK(1)" in (tmp_path / "inspect/classes.csv").read_text()
    assert "\x1b" not in (tmp_path / "found.csv").read_text() + (run / "learner/README.md").read_text()


def test_dollars_in_a_figure_are_no_formula():
    # case: HTML, LaTeX, Markdown and figures of the report too
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    FigureCanvasAgg(figure)
    figure.text(0, 0, figure_text(r"$\frac$ and $x$"))
    figure.canvas.draw()
    figure.text(0, 0, r"$\frac$ and $x$")
    with pytest.raises(ValueError, match="frac"):
        figure.canvas.draw()
