"""What other rooms use of OpenCLIP (lists, layers, resizing), so that a new release of it affects this room alone."""

from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES, SimpleTokenizer, get_model_config, list_models
from open_clip import OPENAI_DATASET_MEAN as IMAGE_MEAN
from open_clip import OPENAI_DATASET_STD as IMAGE_STD
from open_clip import list_pretrained_tags_by_model as pretrained_tags
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import CenterCropOrPad, ResizeKeepRatio
from open_clip.transformer import QuickGELU, Transformer

__all__ = [
    "IMAGENET_CLASSNAMES",
    "IMAGE_MEAN",
    "IMAGE_STD",
    "OPENAI_IMAGENET_TEMPLATES",
    "CenterCropOrPad",
    "QuickGELU",
    "ResizeKeepRatio",
    "SimpleTokenizer",
    "Transformer",
    "get_model_config",
    "list_models",
    "on_the_hub",
    "pretrained_tags",
]


def on_the_hub(name: str, tag: str) -> str | None:
    """Return the Hub repository of published weights, or None if OpenCLIP names none."""
    hub = (get_pretrained_cfg(name, tag) or {}).get("hf_hub")
    return hub.strip("/") if hub else None
