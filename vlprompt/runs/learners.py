"""The untrained learner of a run, and the files that it reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets_registry.descriptions import DESCRIPTION_SETS
from datasets_registry.synonyms import CARD, card_synonyms
from vlprompt.base.files import sha256_file
from vlprompt.base.settings import RunConfig
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import DatasetSplits
from vlprompt.evaluation.protocols import Part, Plan
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.creation import create_learner, description_files
from vlprompt.learner.names import check_keys
from vlprompt.training.recipes import Learning


def make_learner(
    learning: Learning, clip: FrozenCLIP, source: DatasetSplits, overrides: Mapping[str, Any]
) -> PromptLearner:
    """Return the untrained learner of a run.

    Args:
        learning: its method and settings.
        clip: the frozen model.
        source: the dataset that is trained on, with class names and templates.
        overrides: settings of the method that replace the run's.
    """
    settings = {**learning.method_settings, **overrides}
    method, seed = learning.config.method, learning.config.seed
    names, shared = source.class_names, bool(source.tasks)
    return create_learner(method, clip, names, templates=source.templates, seed=seed, shared_names=shared, **settings)


def names_of_cards(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """With ``names=card``, the setting ``names`` that has the synonyms from the cards of all datasets; else empty."""
    if getattr(config, "names", None) != CARD:
        return {}
    parts = (plan.train, *plan.tests.values())
    return {"names": card_synonyms(name for part in parts for name in part.joined or (part.dataset,))}


def check_names(config: RunConfig, learner: PromptLearner, data: Mapping[Part, DatasetSplits]) -> None:
    """Check that the classes which ``names`` gives other names are classes of the run; see ``check_keys``."""
    names = learner.config.names
    if isinstance(names, Mapping) and names and getattr(config, "names", None) != CARD:
        check_keys(names, [name for splits in data.values() for name in splits.class_names])


def read_from_files(config: RunConfig, learner: PromptLearner) -> str:
    """Hashes of the files that a run's settings name and its learner reads, with spaces between; empty if none."""
    files = [file for file in description_files(learner) if file not in DESCRIPTION_SETS]
    hashes = [sha256_file(Path(file).expanduser()) for file in files]
    if isinstance(getattr(config, "names", None), str):
        hashes.append(hashlib.sha256(json.dumps(learner.config.names, sort_keys=True).encode()).hexdigest())
    if learner.gradient_rule is not None:
        hashes.append(learner.gradient_rule.check(()))
    return " ".join(filter(None, hashes))
