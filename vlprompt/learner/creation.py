"""Creates a learner from a method's name and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from datasets_registry.descriptions import names_file, read_descriptions
from datasets_registry.synonyms import read_synonyms
from vlprompt.base.checks import check_seed, check_templates, checked
from vlprompt.base.environment import enough_memory
from vlprompt.base.modes import default_modes
from vlprompt.base.wiring import wired
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.name_checks import check_names
from vlprompt.clip.naming import all_names
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.errors import VlpromptError
from vlprompt.learner.anchors import DescriptionAnchor
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.names import named
from vlprompt.learner.objectives import parse_objectives
from vlprompt.learner.registration import METHODS, make_config
from vlprompt.learner.scored_classes import checked_names

OF_LOOP = ("gradient_rule", "aggregator", "after_step")  # settings that only the training loop uses


@checked
@default_modes()
def create_learner(
    method: str,
    clip: FrozenCLIP,
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    seed: int = 1,
    shared_names: bool = False,
    **settings: Any,
) -> PromptLearner:
    """Create an untrained learner of a registered method.

    Args:
        method: one of ``list_methods()``.
        clip: the frozen model.
        class_names: C names in natural language.
        templates: the dataset's hand-written templates.
        seed: of the initial weights.
        shared_names: whether several classes may have the same name, as when datasets are joined.
        settings: fields of the method's ``Config``, such as ``n_ctx=16``.

    Raises:
        VlpromptError: a setting is invalid, or two class names are tokenized identically. Different names that a small
            model cannot tell apart cause a warning.

    >>> create_learner("coop", load_clip("vlprompt-tiny"), ["cat", "dog"], n_ctx=4)  # doctest: +SKIP
    """
    config = make_config(method, settings)
    if isinstance(config.names, str):
        config = replace(config, names=read_synonyms(config.names))
    templates = (DEFAULT_TEMPLATE,) if templates is None else check_templates(templates)
    check_training(method, config)
    check_descriptions(method, config)
    check_teacher(method, config)
    names = checked_names(class_names)
    check_names(clip, all_names(named(config, names)), shared_names)
    seed, cls = check_seed(seed), METHODS.get(method)
    places = {"on": (cls.builds_on(config), "learner"), "taught_by": (config.teacher, "teacher")}
    others = {
        key: wired("load_saved")(place, clip, names, role) for key, (place, role) in places.items() if place is not None
    }
    with enough_memory(f"the learnt parts of {method} with these settings"):
        learner = cls(clip, names, config, templates, seed, **others)
    for file in description_files(learner):
        read_descriptions(file, learner.class_names)  # so that errors are reported now rather than at the first step
    if learner.gradient_rule is not None:
        by_itself = cls.learn is not PromptLearner.learn  # such methods may use the rule for other learnables
        learner.gradient_rule.check(() if by_itself else learner.trainable_parameters())
    return learner


def description_files(learner: PromptLearner) -> list[str]:
    """Files of descriptions, or names of such sets, that a learner's settings contain."""
    anchors = [o.descriptions for o in learner.objectives if isinstance(o, DescriptionAnchor)]
    return list(filter(names_file, [learner.config.descriptions, *anchors]))


def check_training(method: str, config: Any) -> None:
    """Raise a ``VlpromptError`` if there are settings for training, but the method is not trained in the loop.

    Args:
        method: one of ``list_methods()``.
        config: the method's settings.
    """
    if config.init_from is None and config.init_length != "same":
        raise VlpromptError(f"init_length={config.init_length} is of a start, and there is none: say init_from too")
    cls = METHODS.get(method)
    if cls.trained_by_loop(cls.facts_of(config)):
        return
    usual = {o.name for o in parse_objectives(cls.Config().objective)}
    odd = [f"objective {o.name}" for o in parse_objectives(config.objective) if o.name not in usual]
    odd += [f"{key}={given}" for key in OF_LOOP if (given := getattr(config, key)) is not None]
    if odd:
        raise VlpromptError(
            f"{odd[0]} has no use, since {method} with these settings is not trained by the loop: leave it out"
        )


def check_descriptions(method: str, config: Any) -> None:
    """Raise a ``VlpromptError`` if nothing would read the given descriptions; arguments as in ``check_training``."""
    if config.descriptions is None or METHODS.get(method).reads_descriptions(parse_objectives(config.objective)):
        return
    raise VlpromptError(
        f"method={method} has no use for descriptions={config.descriptions}: give its objective a description_anchor "
        "without descriptions of its own, or take coprompt or zero_shot"
    )


def check_teacher(method: str, config: Any) -> None:
    """Raise a ``VlpromptError`` if nothing would use the given teacher; arguments as in ``check_training``."""
    if config.teacher is None or METHODS.get(method).asks_teacher(parse_objectives(config.objective)):
        return
    raise VlpromptError(
        f"method={method} has no use for teacher={config.teacher}: give its objective a distillation or logit_kl part"
    )
