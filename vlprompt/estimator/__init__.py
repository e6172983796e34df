"""Any method as a scikit-learn classifier."""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports

if TYPE_CHECKING:
    from vlprompt.estimator.classifier import PromptClassifier

__all__ = ["PromptClassifier"]

__getattr__, __dir__ = lazy_exports(__name__, formerly="vlprompt.estimator.classifier")
