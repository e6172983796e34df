"""Pretrain `vlprompt-tiny`: `python -m scripts.pretrain STEP data=FOLDER work=FOLDER [until=N] [KEY=VALUE …]`.

The steps, in order; each can be stopped at any moment and goes on where it was:

- `collect`: every image into one file (`noto=`, `twemoji=`, … are the folders of `PATHS`);
- `phrases` and `teacher`: what the two teachers say, and the joint space that follows from it;
- `trunk`: the image tower's long run, until step `until`;
- `text`: the text tower, on phrases alone;
- `align`: both towers from the trunk's checkpoint to rate zero, and the file;
- `curve`: prints what the log in `work=` watched.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from scripts.pretrain import align, text, trunk
from scripts.pretrain.loop import curve
from scripts.pretrain.phrases import prepare_joint, prepare_phrases
from scripts.pretrain.sources import load_corpus, prepare
from scripts.pretrain.teachers import prepare_teacher
from vlprompt.errors import VlpromptError, nearest

PATHS = {
    "noto": "sources/noto",
    "twemoji": "sources/twemoji",
    "fluent": "sources/fluent",
    "clipart": "/usr/share/openclipart/png",
    "cifar": "cifar100_train.zip",
    "tiny_imagenet": "tiny_imagenet.zip",
    "imagenet_one_each": "imagenet_one_each.zip",
    "wordnet": "/usr/share/wordnet/data.noun",
}
COMMON = {"data": "runs/pretrain/data", "work": "runs/pretrain/run", "until": 1_000_000, "threads": 1, "device": "cpu"}


def read_config(defaults: dict[str, Any], arguments: list[str]) -> DictConfig:
    """Return the defaults with `key=value` arguments over them; an unknown key is an error with the nearest names."""
    whole, given = OmegaConf.create(COMMON | defaults), OmegaConf.from_dotlist(arguments)
    for key in given:
        if key not in whole:
            raise VlpromptError(f"unknown key '{key}' for pretraining: {nearest(str(key), list(map(str, whole)))}")
    return OmegaConf.merge(whole, given)  # type: ignore[return-value]


def main(step: str, arguments: list[str]) -> None:
    """Run one step."""
    if step == "collect":
        config = read_config(PATHS, arguments)
        prepare(Path(config.data) / "corpus.safetensors", {key: Path(config[key]) for key in PATHS})
        shutil.copy(config.wordnet, Path(config.data) / "data.noun")
    elif step in ("phrases", "teacher"):
        read_teachers(step, Path(read_config({}, arguments).data))
    elif step == "trunk":
        config = read_config(trunk.DEFAULTS, arguments)
        torch.set_num_threads(config.threads)
        trunk.run_trunk(Path(config.data), Path(config.work), config, config.until)
    elif step == "text":
        config = read_config(text.TEXT_DEFAULTS, arguments)
        torch.set_num_threads(config.threads)
        text.run_text(Path(config.data), Path(config.work), config)
    elif step == "align":
        config = read_config(align.ALIGN_DEFAULTS, arguments)
        torch.set_num_threads(config.threads)
        align.run_align(Path(config.data), Path(config.work), config)
    elif step == "curve":
        print(curve(Path(read_config({}, arguments).work) / "log.jsonl"))
    else:
        known = ["collect", "phrases", "teacher", "trunk", "text", "align", "curve"]
        raise VlpromptError(f"unknown step '{step}' of pretraining: {nearest(step, known)}")


def read_teachers(step: str, data: Path) -> None:
    """Write what the teachers say of the collected images and of the phrases."""
    sources, concepts = load_corpus(data / "corpus.safetensors")
    if step == "teacher":
        prepare_teacher(data / "teacher.safetensors", sources)
        return
    prepare_phrases(data / "phrases.safetensors", concepts, data / "data.noun")
    if not (data / "joint.safetensors").exists():  # all training stands on it
        prepare_joint(data / "joint.safetensors", data / "phrases.safetensors", concepts)


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:])
    except VlpromptError as error:
        sys.exit(f"error: {error}")
