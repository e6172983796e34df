"""vlprompt: adapt a frozen vision-language model (CLIP) by training very little.

Learnable prompts, adapters and heads are added to a frozen OpenCLIP model and trained on a few images per class, or on
unlabelled images. Evaluation measures how well they transfer to new classes, other datasets and other domains.
"""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports, wire
from vlprompt.errors import VlpromptError
from vlprompt.moved import install
from vlprompt.version import __version__

if TYPE_CHECKING:
    from datasets_registry.catalog import load_split
    from datasets_registry.listed import list_datasets
    from datasets_registry.readers.folder import load_folder
    from vlprompt.base.installation import show_versions
    from vlprompt.clip.backbones import list_backbones
    from vlprompt.clip.frozen import FrozenCLIP
    from vlprompt.clip.loading import load_clip
    from vlprompt.data.sampling import few_shot_indices
    from vlprompt.estimator.classifier import PromptClassifier
    from vlprompt.evaluation.prediction import image_features, predict_images
    from vlprompt.evaluation.protocols import list_protocols
    from vlprompt.evaluation.scoring import evaluate_learner
    from vlprompt.learner.contract import PromptLearner
    from vlprompt.learner.registration import list_methods, method_info, register
    from vlprompt.report.frames import load_results
    from vlprompt.saving.export import export_learner
    from vlprompt.saving.folder import load_learner
    from vlprompt.saving.published import import_checkpoint
    from vlprompt.typed import create_learner, run  # with the settings of each method

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
    "list_backbones",
    "list_datasets",
    "list_methods",
    "list_protocols",
    "load_clip",
    "load_folder",
    "load_learner",
    "load_results",
    "load_split",
    "method_info",
    "predict_images",
    "register",
    "run",
    "show_versions",
]

_UNTYPED = {"create_learner": "vlprompt.learner.creation:create_learner", "run": "vlprompt.runs.one:run"}
__getattr__, __dir__ = lazy_exports(__name__, elsewhere=_UNTYPED)
wire(
    {
        "methods": "vlprompt.methods",  # importing them registers them
        "read_learnables": "vlprompt.saving.folder:read_learnables",
        "describe_start": "vlprompt.saving.starts:describe_start",
        "save_learner": "vlprompt.saving.folder:save_learner",
        "push_learner": "vlprompt.saving.push:push_learner",
        "save_inspections": "vlprompt.report.inspection:save_inspections",
        "teach": "vlprompt.saving.teacher:teach",
        "load_saved": "vlprompt.saving.folder:load_saved",
    }
)
install()
