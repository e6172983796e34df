"""``load_clip``: from a name, a checkpoint or a model in hand to a FrozenCLIP."""

from __future__ import annotations

import logging
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from open_clip.model import build_model_from_openai_state_dict
from open_clip.pretrained import get_pretrained_cfg
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlprompt.clip import FrozenCLIP, Precision, Tokenizer, check_precision, resolve_device
from vlprompt.errors import VlpromptError, nearest

TINY = "vlprompt-tiny"
OFFLINE_WAYS = (
    "copy the weights into that folder, or give checkpoint=FILE (.safetensors or .pt), or "
    f"backbone=local-dir:FOLDER, or use the embedded backbone={TINY}"
)


def load_clip(
    name: str | nn.Module,
    pretrained: str | None = None,
    checkpoint: str | os.PathLike | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "auto",
    tokenizer: Tokenizer | None = None,
) -> FrozenCLIP:
    """Load and freeze an OpenCLIP model.

    Args:
        name: an architecture of ``open_clip.list_models()``, ``hf-hub:ORG/REPO``, ``local-dir:FOLDER``, the embedded
            ``vlprompt-tiny``, or a model object (then ``tokenizer`` is needed unless it is OpenCLIP's default).
        pretrained: a tag of that architecture (``open_clip.list_pretrained_tags_by_model``), or ``random``.
        checkpoint: a ``.safetensors`` or ``.pt`` state dict on disk, OpenAI's layout included. Never unpickled.
        precision: ``fp32``, ``bf16`` or (CUDA) ``fp16`` for the frozen towers.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        VlpromptError: for an unknown name or tag, a checkpoint that does not fit, or weights that cannot be fetched.
    """
    device = resolve_device(device)
    check_precision(precision, device)
    if isinstance(name, nn.Module):
        return FrozenCLIP(name, tokenizer or open_clip.SimpleTokenizer(), precision=precision, device=device)
    if checkpoint is not None and pretrained is not None:
        raise VlpromptError(f"give either pretrained={pretrained} or checkpoint={checkpoint}, not both")
    if name == TINY:
        if pretrained is not None or checkpoint is not None:
            raise VlpromptError(f"{TINY} has its own weights: leave pretrained and checkpoint out")
        from vlprompt.demo.tiny import load_tiny

        model, tokenizer = load_tiny()
    else:
        model = _create(name, pretrained, None if checkpoint is None else Path(checkpoint))
        tokenizer = tokenizer or _tokenizer(name)
    label = pretrained if checkpoint is None else Path(checkpoint).name
    source = {"name": name, "pretrained": pretrained, "checkpoint": None if checkpoint is None else str(checkpoint)}
    return FrozenCLIP(model, tokenizer, name=name, pretrained=label, precision=precision, device=device, source=source)


def shared_clip(
    name: str,
    pretrained: str | None = None,
    checkpoint: str | None = None,
    precision: Precision = "fp32",
    device: str = "auto",
) -> FrozenCLIP:
    """Return what ``load_clip`` does, loaded once for all in this process that ask alike."""
    return _loaded_once(name, pretrained, checkpoint, precision, device)


_loaded_once = lru_cache(maxsize=1)(load_clip)


def _create(name: str, pretrained: str | None, checkpoint: Path | None) -> nn.Module:
    """Build the model and fill in its weights."""
    if name.startswith(("hf-hub:", "local-dir:")):
        return _from_schema(name)
    known = open_clip.list_models()
    if name not in known:
        raise VlpromptError(f"unknown backbone '{name}': {nearest(name, [*known, TINY])}")
    if checkpoint is not None:
        return _from_checkpoint(name, checkpoint)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        tagged = f"pretrained=TAG ({', '.join(tags)})" if tags else "no published tag"
        raise VlpromptError(f"{name} needs weights: {tagged}, checkpoint=FILE, or pretrained=random for untrained ones")
    if pretrained == "random":
        warnings.warn(f"{name} has random weights: good for speed and tests, its features mean nothing", stacklevel=4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same "random" model every time, so that a saved learner finds its backbone again
            return _quiet_create(name)
    tag_config = get_pretrained_cfg(name, pretrained)
    if not tag_config:
        raise VlpromptError(f"unknown pretrained tag '{pretrained}' for {name}: {nearest(pretrained, tags)}")
    try:
        return _quiet_create(name, pretrained=pretrained, force_quick_gelu=bool(tag_config.get("quick_gelu")))
    except (RuntimeError, OSError) as error:
        raise VlpromptError(_unreachable(f"the weights '{pretrained}' of {name}")) from error


def _quiet_create(name: str, **kwargs: Any) -> nn.Module:
    """``open_clip.create_model`` without its log lines about the weights, which are our business."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        return open_clip.create_model(name, pretrained_text=False, **kwargs)
    finally:
        logging.disable(previous)


def _from_schema(name: str) -> nn.Module:
    """Load ``hf-hub:`` and ``local-dir:`` models, whose folder holds configuration and weights."""
    try:
        return _quiet_create(name, require_pretrained=True)
    except (RuntimeError, OSError, ValueError) as error:
        if name.startswith("hf-hub:"):
            raise VlpromptError(_unreachable(name)) from error
        raise VlpromptError(
            f"{name}: no usable OpenCLIP model there; the folder must hold open_clip_config.json and "
            f"open_clip_model.safetensors ({str(error).splitlines()[0]})"
        ) from error


def _from_checkpoint(name: str, path: Path) -> nn.Module:
    """Build the architecture and load a state dict from disk without unpickling anything."""
    state = read_state_dict(path)
    try:
        if "input_resolution" in state or ({"visual.proj", "text_projection"} <= state.keys() and _is_half(state)):
            # OpenAI's own layout: the sizes are read from the weights, and the activation is QuickGELU
            return build_model_from_openai_state_dict(state, cast_dtype=torch.float32)
        model = _quiet_create(name)
        open_clip.load_checkpoint(model, str(path))
    except (RuntimeError, KeyError, AttributeError, AssertionError) as error:
        first = " ".join(str(error).split())[:200]
        raise VlpromptError(f"{path} does not fit the architecture {name}: {first}") from error
    return model


def _is_half(state: dict[str, Tensor]) -> bool:
    return state["text_projection"].dtype == torch.float16


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` or ``.pt`` file of tensors; nothing in it is ever executed."""
    if not path.is_file():
        raise VlpromptError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise VlpromptError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for files it will not read safely
        if "TorchScript" in str(error):
            raise VlpromptError(
                f"{path} is a TorchScript archive, which runs code when loaded; save its state_dict() as .safetensors"
            ) from error
        raise VlpromptError(f"{path} cannot be read as plain tensors, so it was not loaded") from error
    state = state.get("state_dict", state)
    return {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}


def _tokenizer(name: str) -> Tokenizer:
    try:
        return open_clip.get_tokenizer(name)
    except ImportError as error:
        raise VlpromptError(f"the tokenizer of {name} needs another package: {error}") from error
    except Exception as error:  # the Hub client, fsspec and transformers each raise their own kinds
        raise VlpromptError(_unreachable(f"the tokenizer of {name}")) from error


def _unreachable(what: str) -> str:
    return f"could not fetch {what} (no network?); the cache folder is {HF_HUB_CACHE}; offline: {OFFLINE_WAYS}"
