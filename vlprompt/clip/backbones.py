"""``list_backbones``: the backbones that ``load_clip`` knows by name, and their sizes, without importing torch."""

from __future__ import annotations

import fnmatch
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from vlprompt.clip.catalog import TINY, open_clip_folder, tags_by_backbone

# Keys of a configuration for which the parameters of a transformer can be counted here. Towers with other keys, of
# other packages or of other kinds are not counted.
PLAIN_VISION = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
PLAIN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "hf_tokenizer_name"}
PLAIN = {"embed_dim", "quick_gelu", "custom_text", "vision_cfg", "text_cfg"}


class Backbone(NamedTuple):
    """Published weights: the two names that ``load_clip`` takes, and the size of the model.

    Attributes:
        name: of the architecture.
        pretrained: tag of the weights; None for the embedded model, which has a single one.
        image_size: side of the images, in pixels.
        embed_dim: D, the width of image and text features.
        parameters: number of parameters of both towers; None if the configuration does not say, as for timm's towers.
    """

    name: str
    pretrained: str | None
    image_size: int
    embed_dim: int
    parameters: int | None


@overload
def list_backbones(pattern: str = "*", *, pretrained: Literal[False] = False) -> list[str]: ...


@overload
def list_backbones(pattern: str = "*", *, pretrained: Literal[True]) -> list[Backbone]: ...


def list_backbones(pattern: str = "*", *, pretrained: bool = False) -> list[str] | list[Backbone]:
    """Return the names of the backbones that match a shell-style pattern, the embedded one first.

    Args:
        pattern: such as ``ViT-B-*``.
        pretrained: return one entry per published tag of weights instead: (name, tag, image size, width D, number of
            parameters). Architectures without published weights have none.

    >>> list_backbones("ViT-B-16")
    ['ViT-B-16']
    >>> list_backbones("ViT-B-16", pretrained=True)[0]
    Backbone(name='ViT-B-16', pretrained='openai', image_size=224, embed_dim=512, parameters=149620737)
    """
    tags: dict[str, tuple[str | None, ...]] = {TINY: (None,), **tags_by_backbone()}
    names = fnmatch.filter(tags, pattern)
    if not pretrained:
        return names
    return [Backbone(name, tag, *_sizes(name)) for name in names for tag in tags[name]]


@cache
def _sizes(name: str) -> tuple[int, int, int | None]:
    """Image size, joint width and number of parameters from an architecture's configuration."""
    if name == TINY:
        file = Path(__file__).parents[1] / "demo" / TINY / "open_clip_config.json"
        config = json.loads(file.read_text("utf-8"))["model_cfg"]
    else:
        config = json.loads((open_clip_folder() / "model_configs" / f"{name}.json").read_text("utf-8"))
    return config["vision_cfg"]["image_size"], config["embed_dim"], _parameters(config)


def _parameters(config: dict[str, Any]) -> int | None:
    """Number of parameters of two plain transformers, with projections and logit scale; None for other towers."""
    vision, text, joint = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    if set(config) - PLAIN or set(vision) - PLAIN_VISION or set(text) - PLAIN_TEXT or "layers" not in text:
        return None
    side, patch, width = vision["image_size"], vision["patch_size"], vision["width"]
    if not all(isinstance(value, int) for value in (vision["layers"], side, patch)):
        return None  # a ResNet, or non-square images
    tokens = (side // patch) ** 2 + 1
    image = 3 * patch**2 * width + width + tokens * width + 4 * width + _blocks(vision) + width * joint
    width = text["width"]
    words = (text["vocab_size"] + text["context_length"] + 2) * width + _blocks(text) + width * joint
    total: int = image + words + 1
    return total


def _blocks(tower: dict[str, Any]) -> int:
    """Number of parameters in a tower's blocks: attention, MLP and two norms each."""
    layers: int = tower["layers"]
    width: int = tower["width"]
    hidden = int(width * tower.get("mlp_ratio", 4.0))
    return layers * (4 * width * (width + 1) + (2 * width + 1) * hidden + width + 4 * width)
