"""Sharing a saved learner on the Hugging Face Hub, with a card that has its run's results."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlprompt.base.layout import CARD, LEARNABLES, RESULT, TEXT
from vlprompt.base.sealed import write_tensors
from vlprompt.evaluation.results import Result, read_result
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.registration import method_facts
from vlprompt.saving.card import model_card
from vlprompt.saving.description import description_hash, read_description, safe_member, write_description
from vlprompt.saving.folder import find_saved, read_learnables, save_learner
from vlprompt.saving.hub import PREFIX, check_repo, refuse_address, upload

QUOTED_PATH = re.compile(r"""(['"])[^'"{}]*/([^'"{}/]+)\1""")  # of a file that a part reads; a template has {}


def push_folder(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    license: str | None = None,
    dry_run: bool = False,
) -> str:
    """Upload a saved learner, with a card that has its run's results where they lie beside it; return its address.

    Args:
        folder: that ``save_pretrained`` wrote, or a run's.
        repo: ``user/name``; made if need be.
        private: whether a repository that is made is private.
        license: of the learnt weights, such as ``mit``; kept in the configuration too.
        dry_run: check and write everything, but send nothing.

    Raises:
        VlpromptError: the folder holds no learner, or the Hub says no.
    """
    check_repo(repo)
    refuse_address(folder, "push_to_hub sends what lies in one")
    source = find_saved(folder)
    with tempfile.TemporaryDirectory() as staged:
        _stage(source, Path(staged), f"{PREFIX}{repo}", license)
        if not dry_run:
            upload(Path(staged), repo, private)
    return f"{PREFIX}{repo}"


def push_learner(learner: PromptLearner, repo: str, extra: Mapping[str, Any] | None = None, **options: Any) -> str:
    """Upload a learner in hand; ``extra`` as in ``save_learner``, other arguments as in ``push_folder``."""
    with tempfile.TemporaryDirectory() as folder:
        save_learner(learner, folder, extra)
        return push_folder(folder, repo, **options)


def _stage(source: Path, folder: Path, address: str, license: str | None) -> None:
    """Put what is sent into ``folder``: the learner's own files, with the card written anew."""
    description = read_description(source)
    description["config"] = _without_places(description["config"])
    description["source"] = _without_folders(description["source"])
    extra, backbone = description["extra"], description["backbone"]
    backbone["architecture"] = _without_folder(backbone["architecture"])
    if isinstance(extra.get("dataset"), str):
        extra["dataset"] = _without_folder(extra["dataset"])
    if isinstance(extra.get("start"), dict):
        extra["start"] = _start_without_folders(extra["start"])
    if "text" in extra:  # what it stands on
        _stage(source / TEXT, folder / TEXT, address, license)
        extra["text"]["kept"] = description_hash(folder / TEXT)
    if license:
        extra["license"] = license
    learnables = read_learnables(safe_member(source, LEARNABLES), description["files"].get(LEARNABLES))
    description["files"] = {LEARNABLES: write_tensors(folder / LEARNABLES, learnables)}
    write_description(folder, description)
    facts = method_facts(description["method"], description["config"])
    count = sum(tensor.numel() for tensor in learnables.values())
    card = model_card(description, facts, count, _result_beside(source), address)
    (folder / CARD).write_text(card, encoding="utf-8")


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A learner's settings, with the names alone of what lies on this machine."""
    names = {
        key: Path(config[key]).name for key in ("teacher", "text", "descriptions") if isinstance(config.get(key), str)
    }
    rule, objective = config.get("gradient_rule"), config.get("objective")
    parts: dict[str, Any] = {"gradient_rule": QUOTED_PATH.sub(r"\1\2\1", rule)} if isinstance(rule, str) else {}
    if isinstance(objective, list):
        parts["objective"] = [QUOTED_PATH.sub(r"\1\2\1", each) if isinstance(each, str) else each for each in objective]
    return {**config, **names, **parts, "init_from": None}


def _start_without_folders(start: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a start, with the name alone of where it lay."""
    datasets = start.get("datasets")
    known = [_without_folder(str(name)) for name in datasets] if isinstance(datasets, list) else None
    return {**start, "datasets": known, "from": Path(str(start.get("from", ""))).name}


def _without_folders(backbone: dict[str, Any] | None) -> dict[str, Any] | None:
    """What loads the backbone, without the folders of this machine."""
    if backbone is None:
        return None
    checkpoint = backbone["checkpoint"] and Path(backbone["checkpoint"]).name
    return backbone | {"name": _without_folder(backbone["name"]), "checkpoint": checkpoint}


def _without_folder(name: str) -> str:
    """A dataset's or backbone's name; of a path behind ``folder:``, ``local-dir:`` and the like only its last part."""
    scheme, colon, path = name.partition(":")
    return f"{scheme}:{Path(path).name}" if colon and scheme != "hf-hub" else name


def _result_beside(folder: Path) -> Result | None:
    """The result of the run whose learner this is, if it lies there, without the folders of this machine."""
    places = [folder / RESULT, folder.parent / RESULT]
    result = next((read_result(place) for place in places if place.is_file()), None)
    if result is None:
        return None
    rows = [replace(row, dataset=_without_folder(row.dataset)) for row in result.rows]
    recipe = result.recipe
    if recipe and os.path.isabs(recipe["name"]):  # a file of the user's own
        recipe = recipe | {"name": Path(recipe["name"]).name}
    return replace(result, dataset=_without_folder(result.dataset), rows=rows, recipe=recipe)
