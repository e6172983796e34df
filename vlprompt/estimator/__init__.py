"""Any method as a scikit-learn classifier."""

from vlprompt.base.wiring import formerly
from vlprompt.estimator.classifier import PromptClassifier

__all__ = ["PromptClassifier"]

__getattr__ = formerly("vlprompt.estimator.classifier")
