"""The learner of a run, before it has learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets_registry.synonyms import CARD, card_synonyms
from vlprompt.base.settings import RunConfig
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import DatasetSplits
from vlprompt.evaluation.protocols import Plan
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.creation import create_learner
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
