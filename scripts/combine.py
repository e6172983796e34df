"""Every design with what papers add to it, on the embedded default: runs and the table of docs/methods/combinations.md.

    python scripts/combine.py                                # all of it, into the page; finished runs are kept
    python scripts/combine.py methods=[coop,maple] seeds=[1] page=none

What cannot be had of a design says so before any work, and the table has that sentence.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlprompt.base.files import atomic_write
from vlprompt.cli._shared import parse
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.results import Result, harmonic_mean, read_result
from vlprompt.learner import METHODS
from vlprompt.runs.sweep import expand, sweep

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods" / "combinations.md"
PLACE = re.compile(r"(<!-- made by scripts/combine.py -->\n).*?(<!-- end -->)", re.DOTALL)
DESIGNS = ["coop", "cocoop", "kgcoop", "maple", "ivlp", "vpt", "promptsrc", "tcp", "mma", "mmrl"]
TEACHER = "promptsrc"
# PromptSRC's terms, by the dataset's own template: the embedded model has not read the words of CLIP's 80
HELD = [
    "ce",
    "text_anchor(weight=25.0, distance='l1', templates='hand')",
    "image_anchor(weight=10.0, distance='l1')",
    "logit_kl(templates='hand')",
]
ADDED: dict[str, dict[str, Any]] = {
    "alone": {},
    "+PromptSRC": {"aggregator": "gpa(mean=4, std=1)"},  # and the terms, beside those of the design
    "+DePT": {"head": "dept"},
    "+ATPrompt": {"attributes": ["color", "shape"]},
    "+PromptKD": {"objective": ["promptkd"], "protocol": "base_to_new_unlabelled"},
}
SIDES = ("base", "new")
USUAL = {"datasets": ["emoji"], "seeds": [1, 2, 3], "epochs": 5, "output": "runs/combinations"}
Cell = Sequence[Result] | str  # results by seed, or the reason why there are none


def runs_of(method: str, added: Mapping[str, Any], usual: Mapping[str, Any]) -> Cell:
    """Results of a design with an addition, or the sentence that refuses it."""
    settings = {**usual, "methods": [method], **added}
    if "aggregator" in added:
        settings["objective"] = held(METHODS.get(method).Config().objective)
    if "protocol" in added:
        settings.pop("shots", None)
    try:
        matrix = expand(settings)
    except VlpromptError as error:
        return str(error).partition(": known:")[0]
    for outcome in sweep(settings):
        print(f"{outcome.status:<8} {outcome.label}: {outcome.message}", flush=True)
        if outcome.status == "failed":
            return outcome.message
    return [read_result(task.resolved.folder / "result.json") for task in matrix.tasks]


def held(own: Sequence[str]) -> list[str]:
    """A design's objectives, with those of PromptSRC replacing any of the same name."""
    names = {text.partition("(")[0] for text in HELD}
    return [text for text in own if text.partition("(")[0] not in names or text.startswith("ce")] + HELD[1:]


def teacher(usual: Mapping[str, Any]) -> str:
    """The folder of the teacher's run: PromptSRC with seed 1, trained on the base classes' labelled images."""
    settings = {**usual, "methods": [TEACHER], "seeds": [1]}
    sweep(settings)
    return str(expand(settings).tasks[0].resolved.folder)


def numbers(cell: Cell) -> str:
    """Base, new and their harmonic mean, averaged over seeds; a dash if the combination was refused."""
    if isinstance(cell, str):
        return "–"
    sides = [statistics.fmean(r.accuracy for result in cell for r in result.rows if r.target == side) for side in SIDES]
    return f"{sides[0]:.1f} / {sides[1]:.1f} / {harmonic_mean(*sides):.1f}"


def table(cells: Mapping[str, Mapping[str, Cell]], usual: Mapping[str, Any]) -> str:
    """The page's table, and a sentence for each refusal."""
    lines = [f"| | {' | '.join(ADDED)} |", f"| --- |{' ---: |' * len(ADDED)}"]
    lines += [f"| {method} | {' | '.join(map(numbers, row.values()))} |" for method, row in cells.items()]
    seeds = usual["seeds"]
    over = f"mean over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]} alone"
    heading = f"Base / new / harmonic mean (%), {over}, {usual['epochs']} epochs each; – was refused:"
    lines += ["", heading, ""]
    for method, row in cells.items():
        lines += [f"- `{method}` {name}: {cell}" for name, cell in row.items() if isinstance(cell, str)]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    """Run the combinations without a result, print the table, and write it into the page."""
    given = dict(parse(argv).settings)
    page, methods = given.pop("page", str(PAGE)), given.pop("methods", DESIGNS)
    usual = USUAL | given
    taught = {"+PromptKD": {"teacher": teacher(usual)}}
    cells = {m: {name: runs_of(m, own | taught.get(name, {}), usual) for name, own in ADDED.items()} for m in methods}
    text = table(cells, usual)
    print(text)
    if page != "none":
        path = Path(page)
        made = PLACE.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", path.read_text(encoding="utf-8"))
        with atomic_write(path) as temporary:
            temporary.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
