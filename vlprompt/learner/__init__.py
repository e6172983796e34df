"""What methods are written with: the base class, parts such as prompts and objectives, and the registry."""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports

if TYPE_CHECKING:
    from vlprompt.learner.contract import PromptLearner
    from vlprompt.learner.creation import check_descriptions, check_teacher, create_learner
    from vlprompt.learner.facts import Facts
    from vlprompt.learner.learning import Feed, History, ParameterGroup, Train
    from vlprompt.learner.registration import METHODS, list_methods, make_config, method_facts, method_info, register

__all__ = [
    "METHODS",
    "Facts",
    "Feed",
    "History",
    "ParameterGroup",
    "PromptLearner",
    "Train",
    "check_descriptions",
    "check_teacher",
    "create_learner",
    "list_methods",
    "make_config",
    "method_facts",
    "method_info",
    "register",
]

__getattr__, __dir__ = lazy_exports(__name__, formerly="vlprompt.learner.contract")
