"""vlprompt: prompt learning for vision-language models.

Small learnable prompts plug into a frozen OpenCLIP model, are trained on a few images per class, and an evaluator says
how well they carry over to new classes, datasets and domains.
"""

from typing import TYPE_CHECKING, Any

from datasets_registry.catalog import list_datasets, load_split
from datasets_registry.readers.folder import load_folder
from vlprompt import analysis as analysis
from vlprompt import methods as methods  # importing registers them
from vlprompt.clip import FrozenCLIP
from vlprompt.data import few_shot_indices
from vlprompt.errors import VlpromptError
from vlprompt.evaluation import evaluate_learner
from vlprompt.export import export_learner
from vlprompt.learner import (
    PromptLearner,
    create_learner,
    list_methods,
    method_info,
    register,
)
from vlprompt.plugins import load_installed
from vlprompt.prediction import image_features, predict_images
from vlprompt.protocols import list_protocols
from vlprompt.published_checkpoints import import_checkpoint
from vlprompt.runs import run
from vlprompt.saving import load_learner
from vlprompt.version import __version__
from vlprompt.weights import load_clip

if TYPE_CHECKING:
    from vlprompt.estimator import PromptClassifier

__all__ = [
    "FrozenCLIP",
    "PromptClassifier",
    "PromptLearner",
    "VlpromptError",
    "__version__",
    "create_learner",
    "evaluate_learner",
    "export_learner",
    "few_shot_indices",
    "image_features",
    "import_checkpoint",
    "list_datasets",
    "list_methods",
    "list_protocols",
    "load_clip",
    "load_folder",
    "load_learner",
    "load_split",
    "method_info",
    "predict_images",
    "register",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import the classifier when it is asked for: scikit-learn takes a while."""
    if name == "PromptClassifier":
        from vlprompt.estimator import PromptClassifier

        return PromptClassifier
    raise AttributeError(f"module 'vlprompt' has no attribute '{name}'")


load_installed()
