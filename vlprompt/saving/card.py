"""The model card that is saved beside a learner: Markdown with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlprompt.base.sanitizing import printable
from vlprompt.clip.openclip import on_the_hub
from vlprompt.errors import VlpromptError
from vlprompt.learner.calibration import read_calibration, say_calibration
from vlprompt.learner.facts import NOTES, RECONSTRUCTION, Facts, mark_of, marked

if TYPE_CHECKING:
    from vlprompt.evaluation.results import Result

SHOWN_NAMES = 10
SAVED = {"text": "stands on", "teacher": "taught by"}  # what other saved learners are to it


def model_card(
    description: Mapping[str, Any],
    facts: Facts,
    n_numbers: int,
    result: Result | None = None,
    address: str = "this/folder",
) -> str:
    """Markdown that says what a saved learner is, what it was trained on, how well it does and how to load it.

    Args:
        description: the content of ``config.json``.
        facts: what the learner is.
        n_numbers: learnt numbers.
        result: of the run that trained it.
        address: what ``load_learner`` takes.
    """
    backbone, extra = description["backbone"], description["extra"]
    method, names = description["method"], description["class_names"]
    shown = ", ".join(names[:SHOWN_NAMES]) + (f", … ({len(names)} in all)" if len(names) > SHOWN_NAMES else "")
    weights = f"{backbone['architecture']}, {backbone['pretrained'] or 'own weights'}"
    rows = {
        "method": f"{method} ({facts.paper})",
        "learnt numbers": f"{n_numbers:,}",
        "backbone": f"{weights}, {backbone['image_size']} px, {backbone['activation']}",
        "backbone's weights": f"`{backbone['weights'][:16]}…` (SHA-256, checked when the learner is loaded)",
        "classes": shown,
        **({"predictions": NOTES[facts.predicts]} if NOTES[facts.predicts] else {}),
        **({"fidelity": RECONSTRUCTION} if facts.fidelity == "reconstruction" else {}),
        "templates": ", ".join(f"`{t}`" for t in description["templates"][:3]),
        **({"data": data} if (data := _data(extra)) else {}),
        **{SAVED.get(key, key): _saved(value) for key, value in extra.items() if key != "dataset"},
        **({"recipe": f"{result.recipe['name']} ({result.recipe['source']})"} if result and result.recipe else {}),
        **({"probabilities": _calibrated(description["calibration"])} if "calibration" in description else {}),
        "vlprompt": description["vlprompt"],
    }
    return "\n".join(
        [
            "---",
            _front_matter(description, facts, result),
            "---",
            "",
            f"# {_cell(marked(method, 'alone', mark_of(facts.fidelity)))}{_beneath(extra)} on "
            f"{_cell(backbone['architecture'])}",
            "",
            f"{n_numbers:,} learnt numbers that steer a frozen vision-language model; the model itself is not in here.",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()),
            "",
            *(_results(result) if result else ()),
            "## Use",
            "",
            "```python",
            "import vlprompt",
            "",
            f'learner = vlprompt.load_learner("{address}")',
            "images = learner.clip.preprocess(image).unsqueeze(0)  # a PIL image",
            "probabilities = learner.probabilities(learner(images))  # (1, C), in the order of learner.class_names",
            *(('learner.set_class_names(["okapi", "tapir"])  # other classes',) if facts.new_classes else ()),
            "```",
            "",
            "## Settings",
            "",
            "```yaml",
            *(f"{key}: {json.dumps(value)}" for key, value in description["config"].items() if value is not None),
            "```",
            "",
            "Probabilities are among these classes alone: an image of anything else gets one of them too.",
            "",
        ]
    )


def _calibrated(found: Mapping[str, Any]) -> str:
    """What held-out images said of its probabilities."""
    return say_calibration(read_calibration(found, "calibration"))


def _saved(value: Any) -> Any:
    """Another saved learner's identity in words; what is none as it is."""
    if not isinstance(value, Mapping) or not {"method", "weights", "sha256"} <= value.keys():
        return value
    folder, weights = (f"{value[key][:16]}…" for key in ("sha256", "weights"))
    return f"{value['method']} (SHA-256 of its folder {folder}, of its backbone {weights})"


def _beneath(extra: Mapping[str, Any]) -> str:
    """The method of the learner that it stands on, as the end of a name."""
    told = extra.get("text")
    return f" on {_cell(told['method'])}" if isinstance(told, Mapping) and "method" in told else ""


def _front_matter(description: Mapping[str, Any], facts: Facts, result: Result | None) -> str:
    from huggingface_hub import ModelCardData

    task = "zero-shot-image-classification" if facts.new_classes else "image-classification"
    data = ModelCardData(
        library_name="vlprompt",
        license=description["extra"].get("license"),
        tags=["prompt-learning", "clip", "few-shot", description["method"]],
        base_model=_base_model(description),
        pipeline_tag=task,
        **(_evaluation(description, result) if result else {}),
        ignore_metadata_errors=True,
    )
    return data.to_yaml().strip()


def _evaluation(description: Mapping[str, Any], result: Result) -> dict[str, Any]:
    """The front matter's ``model-index``, one entry a test."""
    from huggingface_hub import EvalResult

    entries = [
        EvalResult(
            task_type="image-classification",
            dataset_type=row.dataset,
            dataset_name=f"{row.dataset}, {row.target}",
            metric_type="accuracy",
            metric_name=marked("top-1 accuracy", row.predicts, f"{row.n_classes} classes, {row.n_images} images"),
            metric_value=round(row.accuracy, 2),
        )
        for row in result.rows
    ]
    name = f"{description['method']} on {description['backbone']['architecture']}"
    return {"model_name": name, "metrics": ["accuracy"], "eval_results": entries}


def _base_model(description: Mapping[str, Any]) -> str | None:
    """The backbone's repository on the Hub, where OpenCLIP knows it."""
    source = description["source"] or {}
    name, tag = source.get("name") or "", source.get("pretrained")
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
    return on_the_hub(name, tag) if tag else None


def _data(extra: Mapping[str, Any]) -> str | None:
    """The dataset with its source and licence, where a card of it is registered."""
    name = extra.get("dataset")
    if not isinstance(name, str):
        return None
    from datasets_registry.catalog import dataset_info

    try:
        info = dataset_info(name)
    except VlpromptError:
        return name
    licence = f"; licence: {info['licence']}" if info.get("licence") else ""
    return f"{info['title']} ({name}){licence}"


def _results(result: Result) -> list[str]:
    """A table of the run's tests beside zero-shot."""
    shots = {"all": "all training images", "none": "no labels"}.get(str(result.shots), f"{result.shots} shots a class")
    lines = [
        "## Results",
        "",
        f"Top-1 accuracy in percent: {result.protocol}, {shots}, seed {result.seed}; one run.",
        "",
        f"| tested on | classes | images | zero-shot | {marked('this learner', result.predicts)} |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in result.rows:
        name = _cell(row.target if row.dataset == result.dataset else f"{row.target} ({row.dataset})")
        lines.append(f"| {name} | {row.n_classes} | {row.n_images:,} | {row.zero_shot:.2f} | {row.accuracy:.2f} |")
    return [*lines, ""]


def _cell(value: Any) -> str:
    """Text that stays inside a cell of a table, and makes no markup of its own."""
    return re.sub(r"[|<>\[\]]", lambda sign: "\\" + sign[0], printable(" ".join(str(value).split())))
