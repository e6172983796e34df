"""``list_backbones``: what ``load_clip`` takes by name, and how large it is; torch is not imported to tell it."""

from __future__ import annotations

import fnmatch
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from vlprompt.clip.catalog import TINY, open_clip_folder, tags_by_backbone

# What a transformer tower's configuration may say without having other numbers for it. A tower that says more, is
# another package's or no transformer is not counted here.
PLAIN_VISION = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
PLAIN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "hf_tokenizer_name"}
PLAIN = {"embed_dim", "quick_gelu", "custom_text", "vision_cfg", "text_cfg"}


class Backbone(NamedTuple):
    """Published weights, by the two words that ``load_clip`` takes, and how large their model is.

    Attributes:
        name: of the architecture.
        pretrained: tag of the weights; None for the embedded model, whose name says all.
        image_size: side of the images, in pixels.
        embed_dim: D, the width of image and text features.
        parameters: of both towers; None where the configuration does not tell, as for towers of timm's.
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
    """Image size, width and parameters by an architecture's configuration."""
    if name == TINY:
        file = Path(__file__).parents[1] / "demo" / TINY / "open_clip_config.json"
        config = json.loads(file.read_text("utf-8"))["model_cfg"]
    else:
        config = json.loads((open_clip_folder() / "model_configs" / f"{name}.json").read_text("utf-8"))
    return config["vision_cfg"]["image_size"], config["embed_dim"], _parameters(config)


def _parameters(config: dict[str, Any]) -> int | None:
    """Numbers of two plain transformer towers, projections and logit scale included; None for others."""
    vision, text, joint = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    if set(config) - PLAIN or set(vision) - PLAIN_VISION or set(text) - PLAIN_TEXT or "layers" not in text:
        return None
    side, patch, width = vision["image_size"], vision["patch_size"], vision["width"]
    if not all(isinstance(value, int) for value in (vision["layers"], side, patch)):
        return None  # a ResNet, or images that are not square
    tokens = (side // patch) ** 2 + 1
    image = 3 * patch**2 * width + width + tokens * width + 4 * width + _blocks(vision) + width * joint
    width = text["width"]
    words = (text["vocab_size"] + text["context_length"] + 2) * width + _blocks(text) + width * joint
    total: int = image + words + 1
    return total


def _blocks(tower: dict[str, Any]) -> int:
    """Numbers of a tower's blocks: attention, MLP and two norms each."""
    layers: int = tower["layers"]
    width: int = tower["width"]
    hidden = int(width * tower.get("mlp_ratio", 4.0))
    return layers * (4 * width * (width + 1) + (2 * width + 1) * hidden + width + 4 * width)
