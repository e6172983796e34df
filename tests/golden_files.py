"""Golden fixtures: numbers that published code computed; ``tests/golden/README.md`` says what lies where."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from vlprompt import FrozenCLIP

FOLDER = Path(__file__).with_name("golden")
CORE, MORE, NEW = FOLDER / "core", FOLDER / "more", FOLDER / "new"
EMBEDDING = "token_embedding.weight"
KEPT_IDS, KEPT_ROWS = "token_embedding.ids", "token_embedding.rows"


@dataclass(frozen=True)
class Case:
    """What one file of a folder records.

    Attributes:
        facts: its JSON: the method, hyper-parameters, scalar results.
        tensors: by name.
    """

    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start so, without that."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def case_names(folder: Path) -> list[str]:
    """Names of the cases that lie in a folder: those with tensors beside their JSON."""
    found = [path.stem for path in folder.glob("*.json") if path.with_suffix(".safetensors").is_file()]
    assert found, f"there are no golden fixtures in {folder}"
    return sorted(found)


def read_case(folder: Path, name: str) -> Case:
    """A case by its name."""
    return Case(json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors"))


def read_config(folder: Path = CORE) -> dict[str, Any]:
    """What is common to the cases of a folder: ``clip``'s sizes, ``class_names``, ``activation``."""
    return json.loads((folder / "config.json").read_text())


def read_clip(folder: Path = CORE) -> FrozenCLIP:
    """The CLIP that the cases of a folder were computed on, fp32 on the CPU.

    Its weights are those of ``clip.safetensors`` or, where there is none, of ``clip.safetensors.xz``; both may hold
    the whole token embedding, or some of its rows and their ids. Another token is an error then, wherever it comes up.
    """
    file = folder / "clip.safetensors"
    packed = file.with_suffix(".safetensors.xz")
    tensors = load_file(file) if file.exists() else load(lzma.decompress(packed.read_bytes()))
    config = read_config(folder)
    model = make_model(config["clip"], quick_gelu=config["activation"] == "quickgelu")
    if KEPT_IDS in tensors:
        _keep_to(model.token_embedding, tensors, tensors.pop(KEPT_IDS), tensors.pop(KEPT_ROWS))
    model.load_state_dict(tensors)
    return FrozenCLIP(model, open_clip.SimpleTokenizer(context_length=config["clip"]["context_length"]), device="cpu")


def _keep_to(embedding: nn.Embedding, tensors: dict[str, Tensor], ids: Tensor, rows: Tensor) -> None:
    """Make a token embedding (V, d_t) of some rows (K, d_t) for ids (K,): any other id raises, and is NaN beneath."""
    weight = torch.full_like(embedding.weight, torch.nan)
    weight[ids] = rows
    tensors[EMBEDDING] = weight
    known = set(ids.tolist())

    def refuse(module: nn.Module, inputs: tuple[Tensor]) -> None:
        lacking = sorted(set(inputs[0].unique().tolist()) - known)
        if lacking:
            raise LookupError(f"the golden CLIP's file has no rows for the tokens {lacking}: pack it anew with them")

    embedding.register_forward_pre_hook(refuse)


def keep_rows(tensors: Mapping[str, Tensor], ids: Iterable[int]) -> dict[str, Tensor]:
    """A CLIP's weights with the rows of its token embedding for some ids alone."""
    kept = torch.tensor(sorted(ids))
    others = {name: tensor for name, tensor in tensors.items() if name != EMBEDDING}
    return others | {KEPT_IDS: kept, KEPT_ROWS: tensors[EMBEDDING][kept]}


def pack_clip(file: Path, ids: Iterable[int]) -> None:
    """Write ``clip.safetensors`` of a whole CLIP anew beside itself, with some rows, bit for bit and compressed."""
    packed = lzma.compress(save(keep_rows(load_file(file), ids)), preset=9 | lzma.PRESET_EXTREME)
    file.with_suffix(".safetensors.xz").write_bytes(packed)


def make_model(sizes: Mapping[str, int], quick_gelu: bool) -> CLIP:
    """A CLIP of the sizes that ``config.json`` names as OpenAI's models do."""
    vision = {
        "image_size": sizes["image_resolution"],
        "layers": sizes["vision_layers"],
        "width": sizes["vision_width"],
        "patch_size": sizes["vision_patch_size"],
        "head_width": 64,  # in all of OpenAI's models
    }
    text = {
        "context_length": sizes["context_length"],
        "vocab_size": sizes["vocab_size"],
        "width": sizes["transformer_width"],
        "heads": sizes["transformer_heads"],
        "layers": sizes["transformer_layers"],
    }
    with torch.random.fork_rng(devices=[]):
        return CLIP(sizes["embed_dim"], vision, text, quick_gelu=quick_gelu)
