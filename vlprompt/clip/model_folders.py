"""Models named ``hf-hub:`` or ``local-dir:``, whose configuration and weights may come from anyone.

OpenCLIP passes parts of the configuration to ``transformers``, which can be made to run Python files next to it. So the
configuration is parsed first, and keys that would run code are refused. If files that are downloaded later ask for it,
``transformers`` would ask the user for consent, which is switched off. Weights are read as data.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.pretrained import download_pretrained_from_hf
from torch import nn

from vlprompt.clip.backbone_files import load_weights
from vlprompt.errors import VlpromptError

HUB, LOCAL = "hf-hub:", "local-dir:"
CONFIG = "open_clip_config.json"
READ_BY_TRANSFORMERS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
MAX_BYTES = 64 * 2**20
# keys that make `transformers` run code of a repository; other arguments of a tokenizer must be in the list below
CODE = ("trust_remote_code", "auto_map", "custom_pipelines")
TOKENIZER_ARGUMENTS = (
    *("clean", "strip_sep_token", "language", "tokenizer_mode", "reduction_mask", "additional_special_tokens"),
    *("use_fast", "legacy", "model_max_length", "padding_side", "truncation_side", "do_lower_case"),
)
CURE = "which is never done by name: if you trust it, load it with open_clip and give load_clip the model"
NAMES_FOLDERS = ("hf_tokenizer_name", "hf_model_name")


def create_from_folder(name: str, create: Callable[..., nn.Module]) -> nn.Module:
    """Create the model of a folder or Hub repository that ``refuse_code`` accepted, and read its weights as data.

    Args:
        name: ``hf-hub:ORG/REPO`` or ``local-dir:FOLDER``.
        create: ``open_clip.create_model``, without its log lines.

    Raises:
        VlpromptError: there are no weights, or they do not fit the configuration.
    """
    model = create(name, load_weights=False)
    if name.startswith(HUB):
        found = download_pretrained_from_hf(name.removeprefix(HUB))
    else:
        found = _find_checkpoint_in_dir(Path(name.removeprefix(LOCAL)))
    if not found:
        raise VlpromptError(f"{name} holds no weights: open_clip_model.safetensors is missing")
    load_weights(model, name, Path(found))
    return model


def refuse_code(name: str) -> None:
    """Refuse a model whose configuration, or a file next to it, needs its authors' code to be run.

    Args:
        name: an architecture, ``hf-hub:ORG/REPO`` or ``local-dir:FOLDER``.

    Raises:
        VlpromptError: it needs such code, or a file cannot be read as JSON.
        OSError: the configuration of a Hub repository cannot be downloaded.
    """
    folders: list[Path] = []
    if name.startswith(LOCAL):
        folders = [Path(name.removeprefix(LOCAL))]
        config = _read_json(folders[0] / CONFIG) if (folders[0] / CONFIG).exists() else {}
    elif name.startswith(HUB):
        config = _read_json(Path(download_pretrained_from_hf(name.removeprefix(HUB), filename=CONFIG)))
    else:
        config = open_clip.get_model_config(name) or {}
    _refuse(config, name, CONFIG)
    for part in _mappings(config):
        _check_tokenizer_arguments(part.get("tokenizer_kwargs"), name)
        # a name like that of a repository is a folder's if the folder exists
        folders += [Path(part[key]) for key in NAMES_FOLDERS if isinstance(part.get(key), str)]
    for folder in folders:
        for file in READ_BY_TRANSFORMERS:
            if (folder / file).is_file():
                _refuse(_read_json(folder / file), name, str(folder / file))


@contextmanager
def nothing_asked(what: str) -> Iterator[None]:
    """Have ``transformers`` refuse other people's code rather than ask on the terminal, with a ``VlpromptError``."""
    module: Any = (
        importlib.import_module("transformers.dynamic_module_utils") if "transformers" in sys.modules else None
    )
    before = getattr(module, "TIME_OUT_REMOTE_CODE", None)
    try:
        if before is not None:
            module.TIME_OUT_REMOTE_CODE = 0  # its own setting for non-interactive use
        yield
    except (ValueError, OSError, RuntimeError) as error:
        if "trust_remote_code" not in str(error):
            raise
        raise VlpromptError(f"{what} needs its authors' code to be run, {CURE}") from error
    finally:
        if before is not None:
            module.TIME_OUT_REMOTE_CODE = before


def _check_tokenizer_arguments(given: Any, name: str) -> None:
    for key in given if isinstance(given, dict) else ():
        if key not in (*TOKENIZER_ARGUMENTS, *CODE):  # keys of CODE are refused elsewhere, if they are true
            known = ", ".join(TOKENIZER_ARGUMENTS)
            raise VlpromptError(f"{name} gives its tokenizer the argument {key!r:.60}, which is not one of {known}")


def _refuse(content: Any, name: str, file: str) -> None:
    for part in _mappings(content):
        for key in CODE:
            if part.get(key):
                raise VlpromptError(f"{name} needs its authors' code to be run ({key} in {file}), {CURE}")


def _mappings(content: Any) -> Iterator[Mapping[str, Any]]:
    """All objects of a JSON document, at any depth."""
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _read_json(path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice in one object")
        return dict(pairs)

    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
        return json.loads(content, object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise VlpromptError(f"{path} cannot be read as JSON: {' '.join(str(error).split())[:200]}") from error
