"""Uploading a saved learner to the Hugging Face Hub, with its run's results on the card, and without local paths."""

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

QUOTED_PATH = re.compile(r"""(['"])[^'"{}]*/([^'"{}/]+)\1""")  # an argument of a part; a template would have {}


def push_folder(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    license: str | None = None,
    dry_run: bool = False,
) -> str:
    """Upload a saved learner, and return its address ``hf://user/name``.

    If the result of its run is in the same folder or the one above, the card has the accuracies.

    Args:
        folder: of a saved learner, or of a run.
        repo: ``user/name``; created if needed.
        private: whether a new repository is private.
        license: of the learnt weights, such as ``mit``; also saved in the configuration.
        dry_run: prepare and check everything, but upload nothing.

    Raises:
        VlpromptError: the folder contains no learner, or the Hub refuses.
    """
    check_repo(repo)
    refuse_address(folder, "push_to_hub uploads a folder")
    source = find_saved(folder)
    with tempfile.TemporaryDirectory() as staging:
        _stage(source, Path(staging), f"{PREFIX}{repo}", license)
        if not dry_run:
            upload(Path(staging), repo, private)
    return f"{PREFIX}{repo}"


def push_learner(learner: PromptLearner, repo: str, extra: Mapping[str, Any] | None = None, **options: Any) -> str:
    """Save a learner to a temporary folder and upload it; arguments as for ``save_learner`` and ``push_folder``."""
    with tempfile.TemporaryDirectory() as folder:
        save_learner(learner, folder, extra)
        return push_folder(folder, repo, **options)


def _stage(source: Path, folder: Path, address: str, license: str | None) -> None:
    """Write the files to upload into ``folder``: those of the learner without local paths, and a new card."""
    description = read_description(source)
    description["config"] = _public_config(description["config"])
    description["source"] = _public_source(description["source"])
    extra, backbone = description["extra"], description["backbone"]
    backbone["architecture"] = _public_name(backbone["architecture"])
    if isinstance(extra.get("dataset"), str):
        extra["dataset"] = _public_name(extra["dataset"])
    if isinstance(extra.get("start"), dict):
        extra["start"] = _public_start(extra["start"])
    if "text" in extra:  # the learner that it is built on
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


def _public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A learner's settings, with names instead of paths."""
    names = {
        key: Path(config[key]).name for key in ("teacher", "text", "descriptions") if isinstance(config.get(key), str)
    }
    rule, objective = config.get("gradient_rule"), config.get("objective")
    parts: dict[str, Any] = {"gradient_rule": QUOTED_PATH.sub(r"\1\2\1", rule)} if isinstance(rule, str) else {}
    if isinstance(objective, list):
        parts["objective"] = [QUOTED_PATH.sub(r"\1\2\1", each) if isinstance(each, str) else each for each in objective]
    return {**config, **names, **parts, "init_from": None}


def _public_start(start: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a start, with names instead of paths."""
    datasets = start.get("datasets")
    names = [_public_name(str(name)) for name in datasets] if isinstance(datasets, list) else None
    return {**start, "datasets": names, "from": Path(str(start.get("from", ""))).name}


def _public_source(source: dict[str, Any] | None) -> dict[str, Any] | None:
    """The arguments that load the backbone, with names instead of paths."""
    if source is None:
        return None
    checkpoint = source["checkpoint"] and Path(source["checkpoint"]).name
    return source | {"name": _public_name(source["name"]), "checkpoint": checkpoint}


def _public_name(name: str) -> str:
    """The name of a dataset or backbone; of a path after ``folder:`` or the like, its last part."""
    scheme, colon, path = name.partition(":")
    return f"{scheme}:{Path(path).name}" if colon and scheme != "hf-hub" else name


def _result_beside(folder: Path) -> Result | None:
    """The result of the learner's run, if it is in this folder or the one above, with names instead of paths."""
    paths = [folder / RESULT, folder.parent / RESULT]
    result = next((read_result(path) for path in paths if path.is_file()), None)
    if result is None:
        return None
    rows = [replace(row, dataset=_public_name(row.dataset)) for row in result.rows]
    recipe = result.recipe
    if recipe and os.path.isabs(recipe["name"]):  # the user's own file
        recipe = recipe | {"name": Path(recipe["name"]).name}
    return replace(result, dataset=_public_name(result.dataset), rows=rows, recipe=recipe)
