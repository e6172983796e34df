"""The notebooks run from top to bottom and show what their text speaks of; pages in the docs are of the same cells.

The first is run here. The others, which take minutes, are run by ``-m nightly`` and ``.ci/run``.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from vlprompt.testing import CHECKS

for package in ("ipykernel", "nbclient", "nbconvert"):
    pytest.importorskip(package, reason=f'the notebooks need {package}: pip install "vlprompt[notebooks]"')

ROOT = Path(__file__).resolve().parents[1]
MOST = 60 * 1024  # bytes of a picture in the docs


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_notebooks", ROOT / "scripts" / "render_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


notebooks = script()
NAMES = notebooks.names()


def numbers(pattern: str, text: str) -> list[float]:
    """The groups of a pattern, which must be there, as numbers."""
    found = re.search(pattern, text, re.M)
    assert found, f"{pattern} is not in:\n{text}"
    return [float(group) for group in found.groups()]


def first_learner(text: str) -> None:
    frozen, learnt = numbers(r"base +zero-shot ([\d.]+)% +learnt ([\d.]+)%", text)
    assert learnt > frozen > 2 * 100 / 11


def few_shot_study(text: str) -> None:
    seeds = 3
    assert f"{9 * seeds} of {9 * seeds} runs done" in text
    [specific] = re.findall(rf"\| coop \(class\\_specific=True\) \| {seeds} \|(.*)\|", text)
    one, _, sixteen = (float(re.search(r"[\d.]+", cell)[0]) for cell in specific.split("|"))
    assert sixteen > one + 3
    assert len(re.findall(rf"^\| \d+ shots? · emoji: all \| {seeds} \| [+-][\d.]+ \[", text, re.M)) == 3


def base_to_new(text: str) -> None:
    zero, zero_new = numbers(r"\| zero-shot \| ([\d.]+) \| ([\d.]+) \|", text)  # of which seeds decide nothing
    row = r"\| {} \| ([\d.]+) ± [\d.]+ \| ([\d.]+) ± [\d.]+ \|"
    (free, free_new), (held, held_new) = (
        numbers(row.format(name), text) for name in ("cross-entropy alone", "anchor, weight 16")
    )
    assert free > zero + 1  # learnt
    assert free_new - zero_new < free - zero  # and less of what it was not shown
    assert abs(held - zero) < free - zero
    assert held_new > free_new


def own_photos(text: str) -> None:
    [frozen] = numbers(r"zero-shot: (\d+)% of 138 photos", text)
    [learnt] = numbers(r"learnt: (\d+)% of 138 photos", text)
    [never_trained_on] = numbers(r"fruit, never trained on: (\d+)% of 27 photos", text)
    assert learnt > frozen
    assert never_trained_on > 20
    assert text.count("the same predictions: True") == 3
    assert len(re.findall(r"^\w+ +[\d.]+% +\w+ +[\d.]+% +more_photos/fruit/\S+\.png$", text, re.M)) == 3


def write_a_method(text: str) -> None:
    assert text.count("✓") == len(CHECKS)
    assert f"{len(CHECKS)} of {len(CHECKS)} checks passed" in text
    for check in ("check_loss_falls", "check_chunking_changes_nothing"):
        assert f"✗ {check}: no gradient reaches bias" in text
    seeds = 3
    assert len(re.findall(rf"^\| (?:coop|text\\_adapter .*?) \| {seeds} \|", text, re.M)) == 3
    frozen = numbers(r"few shot(?:.|\n)*\| zero\\_shot \| – \| \**([\d.]+)", text)[0]
    for share in ("0.5", "0.9"):
        row = rf"prototypes \(share={share}\) \| {seeds} \| \**([\d.]+)[^|]*\| \**([\d.]+)[^|]*\| \**([\d.]+)"
        one, four, sixteen = numbers(row, text)
        assert one < four < sixteen
        assert one < frozen < sixteen


def domains(text: str) -> None:
    assert 34 < numbers(r"predicted correctly for (\d+)% of the images", text)[0] < 100
    own, other = numbers(r"its own style .* \*\*([+-][\d.]+)\*\* points .* another style \*\*([+-][\d.]+)\*\*", text)
    assert own > 0
    assert own > other - 3
    assert re.search(r"^\| kgcoop \| 2 \|(?: \**[\d.]+ ± [^|]*\|){4}$", text, re.M)


def few_labels(text: str) -> None:
    names = ("zero-shot", "CoOp", "UPL", "TFUP", "TFUP-T", "GRIP")
    found = {name: numbers(rf"^{name} +([\d.]+)%$", text)[0] for name in names}
    shares = [numbers(rf"round {i}: (\d+) pseudo-labels, (\d+)% right", text) for i in range(1, 5)]
    assert sorted(count for count, _ in shares) == [count for count, _ in shares]
    [tuned] = numbers(r"TPT: (\d+)% of 60 photos", text)
    frozen, online = (numbers(rf"{name}: ([\d.]+)% of a stream", text)[0] for name in ("zero-shot", "TDA"))
    assert online > frozen - 5
    assert min(found.values()) > 100 / 6
    assert max(found[name] for name in names[2:]) > found["zero-shot"]
    assert shares[0][1] > 100 / 3
    assert tuned > 100 / 6


SHOWN: dict[str, Callable[[str], None]] = {
    "01_first_learner": first_learner,
    "02_few_shot_study": few_shot_study,
    "03_base_to_new_and_forgetting": base_to_new,
    "04_your_own_photos": own_photos,
    "05_write_a_method": write_a_method,
    "06_domains": domains,
    "07_few_labels_many_photos": few_labels,
}


def test_there_are_these_notebooks() -> None:
    assert list(SHOWN) == NAMES


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.nightly) for name in NAMES[1:])])
def test_it_runs_and_shows_what_its_text_speaks_of(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "04_your_own_photos":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package, reason=f'the notebook exports: pip install "vlprompt[export]" for {package}')
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path_factory.mktemp(variable.lower())))
    cells = notebooks.execute(name, tmp_path).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)
    SHOWN[name]("\n".join(said for output in outputs if (said := text_of(output))))
    assert list(tmp_path.iterdir()) == []


def text_of(output: dict) -> str:
    """What an output says in words; pictures say nothing."""
    if output["output_type"] == "stream":
        return output["text"].replace("\r\n", "\n")  # as a shell's output has it
    data = output["data"]
    return data.get("text/markdown", "" if "image/png" in data else data.get("text/plain", ""))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_kept_without_outputs(name: str) -> None:
    kept = (notebooks.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert kept == notebooks.strip(notebooks.read(name)), f"run python scripts/render_notebooks.py {name}"


@pytest.mark.parametrize("name", NAMES)
def test_its_page_shows_the_same_cells(name: str) -> None:
    page = (notebooks.PAGES / f"{name}.md").read_text(encoding="utf-8")
    stale = f"run python scripts/render_notebooks.py {name}: its page is of other cells"
    assert page.startswith(f"{notebooks.MADE}\n\n# ")
    cells = notebooks.read(name).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert re.findall(r"^```python\n(.*?)\n```$", page, re.M | re.S) == code, stale
    at = 0
    for cell in cells:
        at = page.find(notebooks.as_shown(cell.source), at)
        assert at >= 0, f"{stale}: {cell.id}"
        at += len(notebooks.as_shown(cell.source))


@pytest.mark.parametrize("name", NAMES)
def test_its_page_has_its_pictures_and_no_paths_of_a_machine(name: str) -> None:
    page = (notebooks.PAGES / f"{name}.md").read_text(encoding="utf-8")
    shown = re.findall(rf"^!\[[^\]]+\]\(({name}_files/\S+\.png)\)$", page, re.M)
    there = {path.relative_to(notebooks.PAGES).as_posix() for path in (notebooks.PAGES / f"{name}_files").iterdir()}
    assert shown
    assert set(shown) == there
    assert max((notebooks.PAGES / path).stat().st_size for path in there) <= MOST
    assert not re.search(r"/(?:tmp|home|root|work|Users)/", page)


def test_links_of_a_notebook_lead_to_files_of_the_docs() -> None:
    for name in NAMES:
        for cell in notebooks.read(name).cells:
            for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", cell.source if cell.cell_type == "markdown" else ""):
                assert link.startswith("../docs/"), f"{name}: {link}"
                assert (notebooks.NOTEBOOKS / link).is_file(), f"{name}: {link}"


def test_a_path_of_this_machine_in_the_outputs_is_refused(tmp_path: Path) -> None:
    notebook = notebooks.read(NAMES[0])
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.outputs = [notebooks.nbformat.v4.new_output("stream", text=f"saved in {notebooks.ROOT}/runs\n")]
    with pytest.raises(ValueError, match=f"{NAMES[0]}: a path of this machine stands in the outputs"):
        notebooks.render(NAMES[0], notebook)
