"""`vlprompt-tiny`: a real OpenCLIP model of 5.5 million parameters that ships with the library. See MODEL_CARD.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from open_clip import SimpleTokenizer
from open_clip.model import CLIP, set_model_preprocess_cfg
from safetensors.torch import load_file, save_file

from vlprompt.base.files import atomic_write
from vlprompt.errors import VlpromptError

TINY_NAME = "vlprompt-tiny"
FOLDER = Path(__file__).parents[1] / "demo" / TINY_NAME
CONFIG = FOLDER / "open_clip_config.json"
WEIGHTS = FOLDER / "model.safetensors"

EMBEDDING = "token_embedding.weight"
KEPT_IDS, KEPT_ROWS = "token_embedding.ids", "token_embedding.rows"


def tiny_config() -> dict[str, Any]:
    """Return the configuration as OpenCLIP's `local-dir:` folders hold it: `model_cfg` and `preprocess_cfg`."""
    config: dict[str, Any] = json.loads(CONFIG.read_text(encoding="utf-8"))
    return config


def load_tiny() -> tuple[CLIP, SimpleTokenizer]:
    """Return the model in fp32 and eval mode, with its preprocessing set as OpenCLIP does, and CLIP's own tokenizer.

    The file holds fp16 weights and the embeddings of the tokens that pretraining's captions use; every other token
    gets the mean of those.
    """
    if not WEIGHTS.exists():
        raise VlpromptError(f"the weights of {TINY_NAME} are missing at '{WEIGHTS}': reinstall vlprompt")
    whole = tiny_config()
    config, preprocessing = whole["model_cfg"], whole["preprocess_cfg"]
    tensors = load_file(WEIGHTS)
    ids = tensors.pop(KEPT_IDS).long()  # (K,)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    rows = tensors.pop(KEPT_ROWS)  # (K, d_t)
    embedding = rows.mean(0).repeat(config["text_cfg"]["vocab_size"], 1)  # (V, d_t)
    embedding[ids] = rows
    with torch.random.fork_rng(devices=[]):  # building draws random weights, which must not move the caller's seed
        model = CLIP(**config)
    model.load_state_dict({**tensors, EMBEDDING: embedding})
    set_model_preprocess_cfg(model, {"size": config["vision_cfg"]["image_size"], "mode": "RGB", **preprocessing})
    return model.eval(), SimpleTokenizer(context_length=config["text_cfg"]["context_length"])


def save_tiny(state: dict[str, torch.Tensor], token_ids: torch.Tensor, target: Path = WEIGHTS) -> None:
    """Write a state dict as `load_tiny` reads it; its token embedding (K, d_t) holds the rows of `token_ids` (K,)."""
    tensors = {name: tensor.half().contiguous() for name, tensor in state.items() if name != EMBEDDING}
    tensors[KEPT_IDS] = token_ids.int()
    tensors[KEPT_ROWS] = state[EMBEDDING].half().contiguous()
    with atomic_write(target) as temporary:
        save_file(tensors, temporary)
