"""`vlprompt-tiny`: a real OpenCLIP model of 14 million parameters that ships with the library. See MODEL_CARD.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from open_clip import SimpleTokenizer
from open_clip.model import CLIP, set_model_preprocess_cfg
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from vlprompt.base.files import atomic_write
from vlprompt.clip.catalog import TINY
from vlprompt.errors import VlpromptError

TINY_NAME = TINY
FOLDER = Path(__file__).parents[1] / "demo" / TINY_NAME
CONFIG, WEIGHTS, WORDS = "open_clip_config.json", "model.safetensors", "words.txt"

LITTLE = frozenset(("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"))

EMBEDDING = "token_embedding.weight"
ROWS, ROW_SCALES = "token_embedding.int8", "token_embedding.scale"

DRAWS = {nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_}


class Undrawn(TorchFunctionMode):
    """Skips drawing random initial weights while a module is created, since weights of a file replace them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function unless it draws random numbers."""
        return (kwargs or {})["tensor"] if func in DRAWS else func(*args, **(kwargs or {}))


def tiny_config(folder: Path = FOLDER) -> dict[str, Any]:
    """Return the configuration as OpenCLIP's `local-dir:` folders hold it: `model_cfg` and `preprocess_cfg`."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config


def load_tiny(folder: Path = FOLDER) -> tuple[CLIP, SimpleTokenizer]:
    """Return the model in fp32 and eval mode, with its preprocessing set as OpenCLIP does, and CLIP's own tokenizer.

    The file contains fp16 weights, and token embeddings as 8-bit integers with a scale per token.

    Args:
        folder: contains configuration and weights; another folder for a model of one's own pretraining.

    Raises:
        VlpromptError: the files are missing or do not fit each other.
    """
    weights = folder / WEIGHTS
    if not weights.exists():
        raise VlpromptError(f"the weights of {TINY_NAME} are missing at '{weights}': reinstall vlprompt")
    whole = tiny_config(folder)
    config, preprocessing = whole["model_cfg"], whole["preprocess_cfg"]
    # a few weights are drawn nevertheless, which must not affect the caller's random numbers
    with torch.random.fork_rng(devices=[]), Undrawn():
        model = CLIP(**config)
    try:
        model.load_state_dict(unpacked(load_file(weights)), assign=True)  # without a copy
    except (RuntimeError, KeyError, SafetensorError) as error:
        problem = str(error).strip().splitlines()[-1].strip()
        raise VlpromptError(f"'{weights}' does not hold the model of {CONFIG} beside it ({problem})") from error
    set_model_preprocess_cfg(model, {"size": config["vision_cfg"]["image_size"], "mode": "RGB", **preprocessing})
    return model.eval(), tokenizer_of(config["text_cfg"]["context_length"])


@cache
def tokenizer_of(context_length: int) -> SimpleTokenizer:
    """Return CLIP's tokenizer, which is created once per process."""
    return SimpleTokenizer(context_length=context_length)


@cache
def seen_words() -> frozenset[str]:
    """Return the words of the captions that the embedded model was pretrained on."""
    return frozenset((FOLDER / WORDS).read_text(encoding="utf-8").split())


def words_of(name: str) -> list[str]:
    """Return the words of a name in the form of ``seen_words``: letters only, lower case, without a plural's s.

    >>> words_of("Sea or Lake"), words_of("Golden Retrievers"), words_of("737-800")
    (['sea', 'lake'], ['golden', 'retriever'], [])
    """
    words = re.findall(r"[^\W\d_]+", name.lower())
    return [w.removesuffix("s") if len(w) > 3 and not w.endswith("ss") else w for w in words if w not in LITTLE]


def unseen_names(class_names: Sequence[str]) -> list[str]:
    """Return the names none of whose words occurs in the captions of pretraining.

    Names of one letter or digit, or of numbers alone, are never among them.
    """
    return [n for n in class_names if (words := words_of(n)) and not seen_words().intersection(words)]


def unpacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return OpenCLIP's fp32 state dict from the tensors in the file."""
    state = {name: tensor.float() for name, tensor in tensors.items() if not name.startswith("token_embedding.")}
    state[EMBEDDING] = tensors[ROWS].float().mul_(tensors[ROW_SCALES].float())  # (V, d_t), (V, 1)
    return state


def packed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of the file for OpenCLIP's state dict: fp16, and 8-bit token embeddings (V, d_t)."""
    tensors = {name: tensor.half().contiguous() for name, tensor in state.items() if name != EMBEDDING}
    rows = state[EMBEDDING].float()
    scales = (rows.abs().amax(1, keepdim=True) / 127).half().clamp(min=torch.finfo(torch.half).tiny)  # (V, 1)
    tensors[ROWS] = (rows / scales.float()).round().clamp(-127, 127).to(torch.int8)
    tensors[ROW_SCALES] = scales
    return tensors


def save_tiny(state: dict[str, torch.Tensor], config: dict[str, Any], folder: Path) -> None:
    """Write a state dict and its configuration into a folder, as `load_tiny` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file(packed(state), temporary)
