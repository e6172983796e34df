"""``load_clip``: makes a ``FrozenCLIP`` from a name, a checkpoint or a model object."""

from __future__ import annotations

import copyreg
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from torch import nn

from vlprompt.base.checks import checked
from vlprompt.base.devices import Precision, check_precision, resolve_device, tell_slow_bf16
from vlprompt.base.modes import default_modes
from vlprompt.clip.backbone_files import from_checkpoint
from vlprompt.clip.backbone_tags import tag_facts
from vlprompt.clip.catalog import TINY
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.model_folders import HUB, LOCAL, create_from_folder, nothing_asked, refuse_code
from vlprompt.clip.prompt_inputs import Tokenizer
from vlprompt.errors import VlpromptError, nearest, warn

# classes of errors that mean that the Hub was not reached; by name, since its clients use different packages
UNREACHED = {
    *("ConnectionError", "TimeoutError", "Timeout", "TransportError", "URLError", "gaierror"),
    *("OfflineModeIsEnabled", "LocalEntryNotFoundError"),
}
LARGE = 512  # width of a text tower from which on the towers' precision affects the speed
OFFLINE_WAYS = (
    "copy the weights into that folder, or give checkpoint=FILE (.safetensors or .pt), or "
    f"backbone=local-dir:FOLDER, or use the embedded backbone={TINY}"
)


@checked
@default_modes()
def load_clip(
    name: str | nn.Module,
    pretrained: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "auto",
    tokenizer: Tokenizer | None = None,
) -> FrozenCLIP:
    """Load an OpenCLIP model and freeze it.

    Args:
        name: an architecture of ``open_clip.list_models()``, ``hf-hub:ORG/REPO``, ``local-dir:FOLDER``, the embedded
            ``vlprompt-tiny``, or a model object (which needs ``tokenizer`` unless OpenCLIP's default is right for it).
        pretrained: a tag of that architecture (``open_clip.list_pretrained_tags_by_model``), or ``random``. Together
            with ``checkpoint`` it names the tag whose preprocessing and activation the weights in the file use.
        checkpoint: a file of weights: safetensors, a ``torch.save`` file, or one of OpenAI's TorchScript archives.
            Nothing in the file is executed or imported (see ``vlprompt.clip.tensor_files``).
        precision: of the frozen towers, ``fp32``, ``bf16`` or (CUDA only) ``fp16``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        VlpromptError: the name or tag is unknown, the checkpoint does not fit the architecture, or the weights cannot
            be downloaded.
    """
    device = resolve_device(device)
    check_precision(precision, device)
    if isinstance(name, nn.Module):
        _refuse_weights("a model object", pretrained, checkpoint)
        return FrozenCLIP(name, tokenizer or open_clip.SimpleTokenizer(), precision=precision, device=device)
    if not isinstance(name, str):
        raise VlpromptError(
            f"a backbone is a name or a model, not {type(name).__name__}; "
            "of the results of create_model_and_transforms, give the first"
        )
    if name == TINY:
        _refuse_weights(TINY, pretrained, checkpoint)
        from vlprompt.clip.tiny import load_tiny

        model, tokenizer = load_tiny()
    elif name.startswith((HUB, LOCAL)):
        _refuse_weights(name, pretrained, checkpoint)
        model = _from_schema(name)
        tokenizer = tokenizer or _tokenizer(name)
    else:
        _check_request(name, pretrained, checkpoint)
        tokenizer = tokenizer or _tokenizer(name)  # fails before weights are downloaded
        model = _create(name, pretrained, None if checkpoint is None else Path(checkpoint))
    label = pretrained if checkpoint is None else Path(checkpoint).name
    source = {"name": name, "pretrained": pretrained, "checkpoint": None if checkpoint is None else str(checkpoint)}
    clip = FrozenCLIP(model, tokenizer, name=name, pretrained=label, precision=precision, device=device, source=source)
    if precision == "bf16" and clip.text.width >= LARGE:
        tell_slow_bf16(device)
    return clip


def shared_clip(
    name: str,
    pretrained: str | None = None,
    checkpoint: str | None = None,
    precision: Precision = "fp32",
    device: str = "auto",
) -> FrozenCLIP:
    """``load_clip``, with the latest model shared by all callers in this process that ask for the same."""
    return _loaded_once(name, pretrained, checkpoint, precision, device)


_loaded_once = lru_cache(maxsize=1)(load_clip)


def _refuse_weights(what: str, pretrained: str | None, checkpoint: str | os.PathLike[str] | None) -> None:
    if pretrained is not None or checkpoint is not None:
        raise VlpromptError(f"{what} has its own weights: leave out pretrained and checkpoint")


def _check_request(name: str, pretrained: str | None, checkpoint: str | os.PathLike[str] | None) -> None:
    """Raise a ``VlpromptError`` for an unknown name or tag or missing weights, before anything is read."""
    known = open_clip.list_models()
    if name not in known:
        if Path(name).is_file():
            raise VlpromptError(f"{name} is a file: name its architecture, such as backbone=ViT-B-32 checkpoint={name}")
        raise VlpromptError(f"unknown backbone '{name}': {nearest(name, [*known, TINY])}")
    if pretrained is None and checkpoint is None:
        tags = open_clip.list_pretrained_tags_by_model(name)
        tagged = f"pretrained=TAG ({', '.join(tags)})" if tags else "no published tag"
        raise VlpromptError(f"{name} needs weights: {tagged}, checkpoint=FILE, or pretrained=random for untrained ones")
    if pretrained == "random" and checkpoint is not None:
        raise VlpromptError(f"give either pretrained=random or checkpoint={checkpoint}, not both")
    if pretrained not in (None, "random"):
        tag_facts(name, pretrained)


def _create(name: str, pretrained: str | None, checkpoint: Path | None) -> nn.Module:
    """Create an architecture with its weights."""
    if checkpoint is not None:
        return from_checkpoint(name, pretrained, checkpoint, _quiet_create)
    if pretrained == "random":
        warn(f"{name} has random weights: good for speed and tests, its features mean nothing")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same "random" model every time, so that saved learners can be loaded on it
            return _quiet_create(name)
    assert pretrained is not None  # checked by _check_request
    return _quiet_create(name, pretrained=pretrained, force_quick_gelu=tag_facts(name, pretrained).quick_gelu)


def _quiet_create(name: str, **kwargs: Any) -> nn.Module:
    """``open_clip.create_model`` without log lines about weights, and with errors as ``VlpromptError``."""
    try:
        with nothing_asked(name), _quiet():
            model: nn.Module = open_clip.create_model(name, pretrained_text=False, **kwargs)
            return model
    except VlpromptError:
        raise
    except (RuntimeError, OSError, ImportError, ValueError) as error:
        tag = kwargs.get("pretrained")
        what = name if tag is None else f"the weights '{tag}' of {name}"
        raise VlpromptError(_no_model(what, error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress log lines of OpenCLIP and the Hub client."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(previous)


def _from_schema(name: str) -> nn.Module:
    """Load an ``hf-hub:`` or ``local-dir:`` model, whose folder contains configuration and weights."""
    try:
        with _quiet():
            refuse_code(name)
            return create_from_folder(name, _quiet_create)
    except VlpromptError as error:
        if name.startswith(HUB) or error.__cause__ is None or re.search("pip install|asks for code", str(error)):
            raise
        cause: BaseException = error.__cause__
    except Exception as error:  # a wrong configuration may fail anywhere in OpenCLIP, and so may the Hub client
        if name.startswith(HUB):
            raise VlpromptError(_no_model(name, error)) from error
        cause = error
    reason = " ".join(str(cause).split())[:200] or type(cause).__name__
    raise VlpromptError(
        f"{name}: no usable OpenCLIP model there; the folder must hold open_clip_config.json and "
        f"open_clip_model.safetensors ({reason})"
    ) from cause


def _tokenizer(name: str) -> Tokenizer:
    what = f"the tokenizer of {name}"
    try:
        with nothing_asked(what), _quiet():
            refuse_code(name)
            tokenizer: Tokenizer = open_clip.get_tokenizer(name)
            return tokenizer
    except VlpromptError:
        raise
    except Exception as error:  # the Hub client, fsspec and transformers raise different classes
        raise VlpromptError(_no_model(what, error)) from error


def _no_model(what: str, error: BaseException) -> str:
    """The reason why loading failed: a missing package, no network, or the error's own message."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    kinds = {kind.__name__ for each in chain for kind in type(each).__mro__}
    if kinds & UNREACHED:
        return f"could not fetch {what} (no network?); the cache folder is {HF_HUB_CACHE}; offline: {OFFLINE_WAYS}"
    for each in chain:
        named = re.search(r"pip install ['`\"]?([A-Za-z][\w.-]*)", str(each))
        package = each.name if isinstance(each, ModuleNotFoundError) else named and named[1]
        if package:
            return f"{what} needs another package: pip install {package.split('.')[0]}"
    reason = " ".join(str(chain[-1]).split())[:300] or type(chain[-1]).__name__
    return f"could not load {what}: {reason}"


def _loaded_again(loading: Mapping[str, Any], weights: str) -> FrozenCLIP:
    """Load a frozen model that was pickled by name, and check that its weights are the same."""
    clip = shared_clip(**loading)
    if clip._weights_hash != weights:
        raise VlpromptError(f"the weights of {clip.name} have changed since this was pickled")
    return clip


def _as_name(clip: FrozenCLIP) -> Any:
    """Pickle a frozen model as the arguments that load it again, or as a whole if there are none."""
    if clip.source is None or clip.source["pretrained"] == "random":
        return object.__reduce_ex__(clip, 2)
    loading = clip.source | {"precision": clip.precision, "device": str(clip.device)}
    return _loaded_again, (loading, clip._weights_hash)


copyreg.pickle(FrozenCLIP, _as_name)
