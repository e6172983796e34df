"""Loads a backbone from a file of weights in OpenCLIP's or OpenAI's layout, with the right preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import (
    build_model_from_openai_state_dict,
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
    set_model_preprocess_cfg,
)
from torch import Tensor, nn

from vlprompt.clip.backbone_tags import TagFacts, common_facts, openai_facts, tag_facts
from vlprompt.clip.tensor_files import read_tensor_file
from vlprompt.errors import VlpromptError, warn

MISFITS = (RuntimeError, KeyError, AttributeError, AssertionError, ValueError, IndexError)
WRAPPERS = (
    "module.",
    "_orig_mod.",
    "model.",
)  # added to names by DataParallel, torch.compile and trainers


def from_checkpoint(name: str, tag: str | None, path: Path, create: Callable[..., nn.Module]) -> nn.Module:
    """Create an architecture with the weights in a file.

    Args:
        name: the architecture.
        tag: published tag whose preprocessing and activation the weights need; None uses what all tags of the
            architecture have in common, and warns of the rest.
        path: the file, which is read as data (``vlprompt.clip.tensor_files``), so nothing in it is executed.
        create: ``open_clip.create_model`` without log lines.

    Raises:
        VlpromptError: the tag is unknown, the file cannot be read, or it does not fit the architecture.
    """
    if tag is not None:
        tag_facts(name, tag)  # refuse a misspelt tag before gigabytes are read
    state = _unwrapped(read_tensor_file(path)[0])
    is_openai = "input_resolution" in state
    looks_openai = {"visual.proj", "text_projection"} <= state.keys() and state["text_projection"].dtype == torch.half
    facts = _facts(name, tag, path, is_openai, looks_openai)
    try:
        if is_openai or looks_openai:
            return _openai_model(name, path, state, facts)
        model = create(name, force_quick_gelu=facts.quick_gelu, force_preprocess_cfg=facts.preprocessing)
        _fill(model, state, name, path)
    except MISFITS as error:
        raise _misfit(name, path, error) from error
    return model


def load_weights(model: nn.Module, name: str, path: Path) -> None:
    """Load a file's weights into a model; errors as for ``from_checkpoint``."""
    state = _unwrapped(read_tensor_file(path)[0])
    try:
        _fill(model, state, name, path)
    except MISFITS as error:
        raise _misfit(name, path, error) from error


def _misfit(name: str, path: Path, error: Exception) -> VlpromptError:
    if isinstance(error, VlpromptError):
        return error
    return VlpromptError(f"{path} does not fit the architecture {name}: {' '.join(str(error).split())[:200]}")


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the prefixes of wrappers."""
    for prefix in WRAPPERS * 2:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _facts(name: str, tag: str | None, path: Path, is_openai: bool, looks_openai: bool) -> TagFacts:
    """Preprocessing and activation: of the tag, of OpenAI for its own files, or what all tags have in common."""
    if tag is not None:
        facts = tag_facts(name, tag)
        if is_openai and not facts.quick_gelu:
            warn(
                f"{path} is in OpenAI's layout, whose models have QuickGELU, and is taken with GELU as "
                f"pretrained={tag} says",
            )
        return facts
    if is_openai:
        return openai_facts()
    facts = common_facts(name, quick_gelu=looks_openai)
    if facts.doubts:
        warn(
            f"{path} does not say how {name} was trained, and its published weights differ: {'; '.join(facts.doubts)}; "
            "give pretrained=TAG in addition to checkpoint= to use those of a tag",
        )
    return facts


def _openai_model(name: str, path: Path, state: dict[str, Tensor], facts: TagFacts) -> nn.Module:
    """A model from weights in OpenAI's layout, whose sizes follow from the weights."""
    state.pop("attn_mask", None)  # a buffer in traced models, which the model creates itself
    exact = {key: value for key, value in state.items() if value.is_floating_point()}
    model = build_model_from_openai_state_dict(state, quick_gelu=facts.quick_gelu, cast_dtype=torch.float32).float()
    model.load_state_dict(exact, strict=False)  # again, since it was rounded to half precision on the way
    size, patch = model.visual.image_size, getattr(model.visual, "patch_size", None)
    set_model_preprocess_cfg(model, facts.preprocessing | {"size": size, "mode": "RGB"})
    config = open_clip.get_model_config(name)
    expected = {key: config["vision_cfg"].get(key) for key in ("image_size", "patch_size")}
    expected["embed_dim"] = config["embed_dim"]
    held = {"image_size": size, "patch_size": patch, "embed_dim": model.text_projection.shape[1]}
    held = {key: value[0] if isinstance(value, tuple) else value for key, value in held.items()}
    odd = next((key for key in held if held[key] != expected[key]), None)
    if odd:
        warn(
            f"{path} contains a model of other sizes than {name} ({odd} is {held[odd]}, not {expected[odd]}), which "
            "are used: give backbone= the architecture of the file",
        )
    return cast(nn.Module, model)


def _fill(model: nn.Module, state: dict[str, Tensor], name: str, path: Path) -> None:
    """``open_clip.load_checkpoint`` for tensors that were read already, since that function unpickles files."""
    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):  # saved as a number or as a vector of one
        if key in state and getattr(model, key, None) is not None:
            state[key] = state[key].reshape(getattr(model, key).shape)
    if getattr(model, "logit_bias", None) is not None:
        state.setdefault("logit_bias", torch.zeros_like(model.state_dict()["logit_bias"]))
    own = model.state_dict().keys()
    made = {key for key, _ in model.named_buffers()} - own  # such as masks, which traced models contain
    made |= {"text.transformer.embeddings.position_ids"} - own  # of older versions of transformers
    state = {key: value for key, value in state.items() if key not in made}
    shapes = {key: value.shape for key, value in state.items()}
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    for key, shape in shapes.items():
        if state[key].shape != shape:
            warn(
                f"{path}: {key} was interpolated from {tuple(shape)} to {tuple(state[key].shape)}: the file is of "
                f"another image size or text length than {name}",
            )
    model.load_state_dict(state)
