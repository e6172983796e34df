"""The learner of a run, before it has learnt."""

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
    learning: Learning, clip: FrozenCLIP, source: DatasetSplits, instead: Mapping[str, Any]
) -> PromptLearner:
    """The learner of a run on its training set, with some settings in place of the run's."""
    settings = {**learning.method_settings, **instead}
    method, seed = learning.config.method, learning.config.seed
    names, shared = source.class_names, bool(source.tasks)
    return create_learner(method, clip, names, templates=source.templates, seed=seed, shared_names=shared, **settings)


def names_of_cards(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """Other names of the classes of all datasets of a run, where its settings ask for those of the cards."""
    if getattr(config, "names", None) != CARD:
        return {}
    parts = (plan.train, *plan.tests.values())
    return {"names": card_synonyms(name for part in parts for name in part.joined or (part.dataset,))}


def check_names(config: RunConfig, learner: PromptLearner, data: Mapping[Part, DatasetSplits]) -> None:
    """Say which classes other names were given for that no part of a run has; see ``check_keys``."""
    others = learner.config.names
    if isinstance(others, Mapping) and others and getattr(config, "names", None) != CARD:
        check_keys(others, [name for splits in data.values() for name in splits.class_names])


def read_from_files(config: RunConfig, learner: PromptLearner) -> str:
    """Hashes of what the files hold that a run learns with, of which its settings have but the names; empty if none."""
    files = [file for file in description_files(learner) if file not in DESCRIPTION_SETS]
    told = [sha256_file(Path(file).expanduser()) for file in files]
    if isinstance(getattr(config, "names", None), str):
        told.append(hashlib.sha256(json.dumps(learner.config.names, sort_keys=True).encode()).hexdigest())
    if learner.gradient_rule is not None:
        told.append(learner.gradient_rule.check(()))
    return " ".join(filter(None, told))
