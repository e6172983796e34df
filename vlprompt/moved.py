"""Earlier import paths: those of version 0.1, whose modules lay side by side, and those of modules renamed since.

Each gives the module that has its content now.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader
else:  # which brings a third of what `import vlprompt` takes, and nothing that is used
    Loader = object

# without the leading "vlprompt.", except for what has left the package
MOVED = {
    "aggregation": "learner.aggregation",
    "archives": "base.archives",
    "backbone_files": "clip.backbone_files",
    "backbone_tags": "clip.backbone_tags",
    "base.declared": "base.static_inspection",
    "base.lettering": "base.fonts",
    "base.shown": "base.sanitizing",
    "bench_data": "bench.data",
    "bench_predict": "bench.predict",
    "bench_sweep": "bench.sweep",
    "card": "saving.card",
    "checkpoint": "training.checkpoint",
    "checks": "base.checks",
    "class_names": "clip.name_checks",
    "clip.class_names": "clip.name_checks",
    "clip.known": "clip.catalog",
    "console": "base.reporter",
    "data.check": "datasets_registry.check",
    "data.descriptions": "datasets_registry.descriptions",
    "data.in_hand": "data.other_libraries",
    "demo.tiny": "clip.tiny",
    "devices": "base.devices",
    "edits": "clip.edits",
    "environment": "base.environment",
    "estimator.given": "estimator.training_data",
    "estimator_inputs": "estimator.inputs",
    "evaluation.predicted": "evaluation.saved_predictions",
    "evaluation.writing": "evaluation.prediction_formats",
    "executors": "runs.executors",
    "export": "saving.export",
    "facts": "learner.facts",
    "feed": "training.feed",
    "files": "base.files",
    "gradients": "learner.gradients",
    "hub": "saving.hub",
    "inert_pickle": "clip.inert_pickle",
    "layout": "base.layout",
    "learner.class_part": "learner.class_subset",
    "learner.road": "learner.forward",
    "learner.standing": "learner.saved_teacher",
    "learner.starts": "learner.initialization",
    "learner_teacher": "saving.teacher",
    "learning": "learner.learning",
    "lettering": "base.fonts",
    "loggers": "runs.loggers",
    "loop": "training.loop",
    "methods.cocoop": "methods.prompts.cocoop",
    "methods.coop": "methods.prompts.coop",
    "methods.coprompt": "methods.prompts.coprompt",
    "methods.gda": "methods.heads.gda",
    "methods.ivlp": "methods.prompts.ivlp",
    "methods.kgcoop": "methods.prompts.kgcoop",
    "methods.maple": "methods.prompts.maple",
    "methods.mvlpt": "methods.prompts.mvlpt",
    "methods.pre": "methods.prompts.pre",
    "methods.proda": "methods.prompts.proda",
    "methods.prograd": "methods.prompts.prograd",
    "methods.promptsrc": "methods.prompts.promptsrc",
    "methods.restore": "methods.prompts.restore",
    "methods.tpt": "methods.test_time.tpt",
    "methods.upl": "methods.unlabelled.upl",
    "methods.vpt": "methods.prompts.vpt",
    "metrics": "evaluation.metrics",
    "model_folders": "clip.model_folders",
    "objectives": "learner.objectives",
    "openclip_export": "saving.export_openclip",
    "optimizers": "training.optimizers",
    "options": "training.options",
    "parts": "base.parts",
    "plugins": "base.plugins",
    "prediction": "evaluation.prediction",
    "preflight": "runs.preflight",
    "prompts": "learner.prompts",
    "protocols": "evaluation.protocols",
    "published_checkpoints": "saving.published",
    "publishing": "learner.publishing",
    "recipes": "runs.settings",
    "recording": "learner.recording",
    "registry": "base.registry",
    "report.closing": "cli._closing",
    "result_tables": "evaluation.tables",
    "results": "evaluation.results",
    "run_folder": "runs.folder",
    "run_images": "runs.images",
    "run_result": "runs.result",
    "saved_description": "saving.description",
    "schedules": "training.schedules",
    "schema": "base.schema",
    "sealed": "base.sealed",
    "settings": "base.settings",
    "settings_text": "base.settings_text",
    "sharing": "saving.push",
    "shown": "base.sanitizing",
    "statistics": "evaluation.statistics",
    "sweep": "runs.sweep",
    "teacher": "learner.teacher",
    "tensor_files": "clip.tensor_files",
    "text": "clip.text",
    "towers": "clip.towers",
    "vision": "clip.vision",
    "training.shipped": "training.shipped_recipes",
    "weights": "clip.loading",
    "wiring": "base.wiring",
}


class _Moved(Loader):
    """Finds a module by its earlier path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "vlprompt" and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        place = MOVED[spec.name.partition(".")[2]]
        module = import_module(place if place.startswith("datasets_registry") else f"vlprompt.{place}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It ran under its own path, whose spec it gets back."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Let earlier paths be found, after all others."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
