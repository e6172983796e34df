"""Protocols, metrics, results and predictions of learners."""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports

if TYPE_CHECKING:
    from vlprompt.evaluation.image_tables import save_predictions
    from vlprompt.evaluation.protocols import PROTOCOLS, list_protocols
    from vlprompt.evaluation.results import Result, read_result
    from vlprompt.evaluation.rows import Row
    from vlprompt.evaluation.scores import Evaluation, Scores
    from vlprompt.evaluation.scoring import evaluate, evaluate_learner, score

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "Result",
    "Row",
    "Scores",
    "evaluate",
    "evaluate_learner",
    "list_protocols",
    "read_result",
    "save_predictions",
    "score",
]

__getattr__, __dir__ = lazy_exports(__name__, formerly="vlprompt.evaluation.scoring")
