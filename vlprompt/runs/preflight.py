"""Checks of a run before a backbone is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vlprompt.base.settings import GRID, RunConfig
from vlprompt.data import DatasetSplits, resolve_templates
from vlprompt.data.masks import check_kind
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.protocols import Part, Plan
from vlprompt.learner.facts import Facts
from vlprompt.learner.held_out import check_choice


def check_run(config: RunConfig, folder: Path, plan: Plan, parts: Mapping[Part, DatasetSplits], facts: Facts) -> None:
    """Raise a ``VlpromptError`` for an error that the run would otherwise meet after minutes of work.

    Args:
        config: the settings.
        folder: the run's folder.
        plan: what the run does.
        parts: the data of each part of the plan.
        facts: the learner's facts.

    Raises:
        VlpromptError: there are no images for ``selection``, templates are missing, or the folder cannot be created.
    """
    _check_selection(config, plan, parts[plan.train], facts)
    if config.format_spread is not None:
        for part in plan.tests.values():
            resolve_templates(config.format_spread, parts[part])
    if "mask" in facts.inputs:
        check_kind(config.transform)
    check_place(folder)


def check_classes(protocol: str, part: Part, whole: DatasetSplits) -> None:
    """Raise a ``VlpromptError`` if the half of a dataset's classes that a part uses is a single class."""
    splits = whole.select(part.half)
    if len(splits.class_names) < 2:
        raise VlpromptError(
            f"protocol={protocol} splits the classes of {part.dataset} in halves, and its {part.half} half has only "
            f"'{''.join(splits.class_names)}', with no other class to tell it from: use protocol=few_shot"
        )


def check_place(folder: Path) -> None:
    """Raise a ``VlpromptError`` if a folder cannot be created."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise VlpromptError(f"{folder} cannot be created: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise VlpromptError(f"{folder} cannot be created: {existing} is not writable")


def _check_selection(config: RunConfig, plan: Plan, source: DatasetSplits, facts: Facts) -> None:
    """Raise a ``VlpromptError`` if a selection has nothing to choose among, or no images to choose on."""
    grid, selection = getattr(config, GRID, None), plan.selection
    check_choice(config.selection, selection, config, facts, config.method)
    if plan.labelled == "none" and (selection.epoch or grid) and {"val", "whole_val"} & {*selection.sources}:
        raise VlpromptError(
            f"selection={config.selection} needs labelled images to choose on, and protocol={config.protocol} has "
            "none: use fixed"
        )
    chooses = selection.epoch or (grid and selection.settings)
    if not source.val and chooses and selection.settings != "test":
        raise VlpromptError(
            f"selection={config.selection} needs validation images, and {source.name} has none: use fixed"
        )
