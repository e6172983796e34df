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
SAVED = {"text": "stands on", "teacher": "taught by"}  # rows that name another saved learner


def model_card(
    description: Mapping[str, Any],
    facts: Facts,
    n_numbers: int,
    result: Result | None = None,
    address: str = "this/folder",
) -> str:
    """Return the card as Markdown: what the learner is, its training data, its accuracy, and how to load it.

    Args:
        description: the content of ``config.json``.
        facts: the learner's facts.
        n_numbers: number of learnt numbers.
        result: of the run that trained it, if known.
        address: what to pass to ``load_learner``.
    """
    title = marked(description["method"], "alone", mark_of(facts.fidelity))
    architecture = description["backbone"]["architecture"]
    rows = _rows(description, facts, n_numbers, result)
    return "\n".join(
        [
            "---",
            _front_matter(description, facts, result),
            "---",
            "",
            f"# {_cell(title)}{_built_on(description['extra'])} on {_cell(architecture)}",
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


def _rows(description: Mapping[str, Any], facts: Facts, n_numbers: int, result: Result | None) -> dict[str, Any]:
    """The rows of the card's first table; those about which nothing is known are left out."""
    backbone, extra, names = description["backbone"], description["extra"], description["class_names"]
    shown = ", ".join(names[:SHOWN_NAMES]) + (f", … ({len(names)} in all)" if len(names) > SHOWN_NAMES else "")
    weights = f"{backbone['architecture']}, {backbone['pretrained'] or 'own weights'}"
    rows = {
        "method": f"{description['method']} ({facts.paper})",
        "learnt numbers": f"{n_numbers:,}",
        "backbone": f"{weights}, {backbone['image_size']} px, {backbone['activation']}",
        "backbone's weights": f"`{backbone['weights'][:16]}…` (SHA-256, checked when the learner is loaded)",
        "classes": shown,
        "predictions": NOTES[facts.predicts],
        "fidelity": RECONSTRUCTION if facts.fidelity == "reconstruction" else None,
        "templates": ", ".join(f"`{t}`" for t in description["templates"][:3]),
        "data": _data(extra),
        **{SAVED.get(key, key): _saved(value) for key, value in extra.items() if key != "dataset"},
    }
    rows = {key: value for key, value in rows.items() if value or key not in ("predictions", "fidelity", "data")}
    if result and result.recipe:
        rows["recipe"] = f"{result.recipe['name']} ({result.recipe['source']})"
    if "calibration" in description:
        rows["probabilities"] = _calibrated(description["calibration"])
    return rows | {"vlprompt": description["vlprompt"]}


def _calibrated(found: Mapping[str, Any]) -> str:
    """A sentence on the learner's temperature and threshold."""
    return say_calibration(read_calibration(found, "calibration"))


def _saved(value: Any) -> Any:
    """The identity of another saved learner in words; other values unchanged."""
    if not isinstance(value, Mapping) or not {"method", "weights", "sha256"} <= value.keys():
        return value
    folder, weights = (f"{value[key][:16]}…" for key in ("sha256", "weights"))
    return f"{value['method']} (SHA-256 of its folder {folder}, of its backbone {weights})"


def _built_on(extra: Mapping[str, Any]) -> str:
    """The method of the learner that this one is built on, as the end of a title; empty if there is none."""
    identity = extra.get("text")
    return f" on {_cell(identity['method'])}" if isinstance(identity, Mapping) and "method" in identity else ""


def _front_matter(description: Mapping[str, Any], facts: Facts, result: Result | None) -> str:
    """The metadata that the Hub reads, as YAML."""
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
    """The ``model-index`` of the front matter, with one entry per test."""
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
    """The backbone's repository on the Hub, if OpenCLIP knows it."""
    source = description["source"] or {}
    name, tag = source.get("name") or "", source.get("pretrained")
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
    return on_the_hub(name, tag) if tag else None


def _data(extra: Mapping[str, Any]) -> str | None:
    """Title and licence of the dataset if it has a card, else its name; None if it is unknown."""
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
    """A table of the run's accuracies, with those of zero-shot CLIP."""
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
    """Escape a value, so that it stays within its table cell and contains no markup."""
    return re.sub(r"[|<>\[\]]", lambda sign: "\\" + sign[0], printable(" ".join(str(value).split())))
