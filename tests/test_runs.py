"""Whole runs of what a method asks of the data: second views, and every method through the command's own road."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from vlprompt import list_methods, run
from vlprompt.data import DatasetSplits, load_split
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.evaluation.results import find_results, read_predictions
from vlprompt.learner import PromptLearner
from vlprompt.learner.registration import METHODS
from vlprompt.runs.settings import resolve, usual_protocol

SMALL = {"dataset": "digits", "shots": 2, "epochs": 1, "quiet": True, "device": "cpu", "limit": 20, "views": 1}
NOTHING_DRAWN = ("zero_shot", "cupl", "tpt", "zlap", "tfup")  # nor trained: another seed gives the same learner


@pytest.fixture(scope="module")
def few_digits() -> DatasetSplits:
    """Digits with an eighth of their training images, for a pool."""
    whole = load_split("digits")
    return replace(whole, name="few-digits", train=whole.train[::8])


# DiffTPT needs views that a generator made: test_test_time_prompts.py makes some; the others start from runs, as the
# page of transfers does
@pytest.mark.parametrize("method", [name for name in list_methods() if name not in ("difftpt", "pvp", "panda")])
def test_every_method_runs_end_to_end(method: str, few_digits: DatasetSplits, tmp_path: Path) -> None:
    protocol = usual_protocol(method, "base_to_new")
    labels = PROTOCOLS.get(protocol).labelled == "shots"
    settings: dict[str, Any] = {key: value for key, value in SMALL.items() if labels or key != "shots"}
    if hasattr(METHODS.get(method).Config, "rounds"):
        settings["rounds"] = 2
    if getattr(METHODS.get(method).Config, "n_views", 1) > 4:
        settings["n_views"] = 4  # of each test image, in place of 64
    if "mask" in METHODS.get(method).registered.inputs:
        settings["dataset"] = "shapes"
    if METHODS.get(method).lacks(METHODS.get(method).Config()):  # sentences about the classes
        settings["descriptions"] = str(tmp_path / "sentences.json")
        sentences = {name: [f"a sign that means {name}."] for name in load_split("digits").class_names}
        Path(settings["descriptions"]).write_text(json.dumps(sentences))
    if method == "promptkd" or resolve({"method": method, **settings}).config.steps:
        settings["steps"] = 2  # in place of a whole pool, or of a recipe's hundreds
    if PROTOCOLS.get(protocol).pool != "none":
        settings["dataset"] = few_digits
    result = run(method=method, output=str(tmp_path), **settings)
    assert {row.target for row in result.rows} == ({"base", "new"} if protocol.startswith("base_to_new") else {"all"})
    assert result.protocol == protocol
    assert all(0 <= value <= 100 for value in result.averages.values())
    assert result.has_seeds == (method not in NOTHING_DRAWN)


def test_a_second_view_is_another_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = PromptLearner.loss
    monkeypatch.setattr(PromptLearner, "loss", lambda self, batch: seen.append(batch) or original(self, batch))
    run(method="coprompt", output=str(tmp_path), **SMALL)
    assert seen[0]["image"].shape == seen[0]["image_strong"].shape
    assert not torch.equal(seen[0]["image"], seen[0]["image_strong"])


def test_templates_of_a_run_replace_the_datasets_own(tmp_path: Path) -> None:
    settings = SMALL | {"method": "zero_shot", "output": str(tmp_path)}
    own = run(**settings)
    other = run(templates="{}.", **settings)
    assert own.id != other.id
    assert load_config(tmp_path, "templates") == {None, "{}."}


def load_config(folder: Path, key: str) -> set:
    return {OmegaConf.load(path)[key] for path in folder.rglob("config.yaml")}


def test_predictions_of_every_image_stay_beside_the_result(tmp_path: Path) -> None:
    result = run(method="coop", output=str(tmp_path), selection="fewshot_val", **SMALL)
    [(path, found)] = find_results([tmp_path])
    assert (found, found.selection) == (result, "fewshot_val")
    for row in result.rows:
        said = read_predictions(path.parent)[row.target]
        assert len(said.label) == row.n_images
        assert 100 * float((said.label == said.predicted).double().mean()) == pytest.approx(row.accuracy)
        assert 100 * float((said.label == said.zero_shot).double().mean()) == pytest.approx(row.zero_shot)
