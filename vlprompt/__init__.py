"""vlprompt: prompt learning for vision-language models.

Small learnable prompts plug into a frozen OpenCLIP model, are trained on a few images per class, and an evaluator says
how well they carry over to new classes, datasets and domains.
"""

from typing import TYPE_CHECKING, Any

from datasets_registry.catalog import list_datasets, load_split
from datasets_registry.readers.folder import load_folder
from vlprompt import analysis as analysis
from vlprompt import methods as methods  # importing registers them
from vlprompt.base.plugins import load_installed
from vlprompt.base.wiring import wire
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.loading import load_clip
from vlprompt.data import few_shot_indices
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.prediction import image_features, predict_images
from vlprompt.evaluation.protocols import list_protocols
from vlprompt.evaluation.score import evaluate_learner
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.registration import list_methods, method_info, register
from vlprompt.moved import install
from vlprompt.saving.export import export_learner
from vlprompt.saving.folder import load_learner
from vlprompt.saving.published import import_checkpoint
from vlprompt.version import __version__

if TYPE_CHECKING:
    from vlprompt.estimator.classifier import PromptClassifier
    from vlprompt.typed import create_learner, run  # with the settings of each method
else:
    from vlprompt.learner.creation import create_learner
    from vlprompt.runs.one import run

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
        from vlprompt.estimator.classifier import PromptClassifier

        return PromptClassifier
    raise AttributeError(f"module 'vlprompt' has no attribute '{name}'")


wire(
    {
        "read_learnables": "vlprompt.saving.folder:read_learnables",
        "save_learner": "vlprompt.saving.folder:save_learner",
        "push_learner": "vlprompt.saving.push:push_learner",
        "teach": "vlprompt.saving.teacher:teach",
        "load_saved": "vlprompt.saving.folder:load_saved",
        "vlprompt.data.dataset_info": "datasets_registry.catalog:dataset_info",
        "vlprompt.data.list_collections": "datasets_registry.catalog:list_collections",
        "vlprompt.data.list_datasets": "datasets_registry.catalog:list_datasets",
        "vlprompt.data.load_split": "datasets_registry.catalog:load_split",
        "vlprompt.data.register_dataset": "datasets_registry.catalog:register_dataset",
        "vlprompt.data.rename_classes": "datasets_registry.catalog:rename_classes",
        "vlprompt.data.load_folder": "datasets_registry.readers.folder:load_folder",
        "vlprompt.data.read_descriptions": "datasets_registry.descriptions:read_descriptions",
        "vlprompt.data.templates.read_descriptions": "datasets_registry.descriptions:read_descriptions",
    }
)
install()
load_installed()
