"""The image tower's long run: names' vectors and a teacher's features, at a constant rate, for as long as there is.

Three parts of the loss:

- `names`: a softmax over every concept of the captions, whose vectors come from the sentence teacher (centred, reduced
  to the joint width) and may drift; what an image is called (three quarters) and belongs to (a quarter) is its target.
  So every other concept is a negative at each step, and the text tower costs nothing here. For an emoji the names
  of the dataset's classes stand outside the softmax: no pretraining emoji says whether it is a "mammal".
- `teacher`: the cosine distance of a linear head to the image teacher's centred features, where it has seen the image
  (`taught` says of which source from which step on);
- `drift`: keeps the concepts' vectors near where they began.

Five in eight patches are dropped. A step's draws depend on `seed` and the step alone. The rate stays constant behind
the warm-up (WSD, arXiv:2404.06395): `align.py` takes a copy of any checkpoint to rate zero and makes the file of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms import v2

from scripts.pretrain.augment import draw_images
from scripts.pretrain.loop import LOOP_DEFAULTS, Parts, build_optimizer, run_loop
from scripts.pretrain.sources import load_corpus
from scripts.pretrain.student import MODEL_CONFIG, build_clip, pooled
from vlprompt.clip.tiny import tiny_config
from vlprompt.demo.emoji import emoji_index

DEFAULTS = {
    "batch": {"emoji": 64, "clipart": 48, "natural": 72, "each": 8, "cifar": 40, "glyphs": 24},
    "start": None,  # a file of vlprompt-tiny whose image tower training goes on from
    **LOOP_DEFAULTS,
    "keep": 24,  # patches of 64
    "taught": {"emoji": 0, "clipart": 0, "each": 0, "natural": 200},
    "name_share": 0.75,
    "teacher_weight": 2.0,
    "drift_weight": 10.0,
    "bank_lr": 0.2,  # of the rate
    "one_kind": [],  # sources of which a step sees one kind alone
}


STEPS_OF_A_SEED = 1_000_000  # so that no two seeds share a step's draws


@dataclass
class Drawn:
    """What one step sees; the emoji stand first."""

    images: torch.Tensor  # (B, 3, H, W), normalised
    targets: torch.Tensor  # (B, concepts)
    features: torch.Tensor  # (T, 1280) of the images that are taught
    taught: torch.Tensor  # (T,) their places in the batch
    index: dict[str, torch.Tensor]  # by source, the images' places in it


class Student(nn.Module):
    """The image tower, with what it needs in training alone: concept vectors, a head to the teacher, and a scale."""

    def __init__(self, bank: torch.Tensor, seed: int, teacher_width: int = 1280):
        super().__init__()
        clip = build_clip(seed)
        self.visual = clip.visual
        self.logit_scale = clip.logit_scale
        self.bank = nn.Parameter(bank.clone())  # (concepts, D)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.to_teacher = nn.Linear(MODEL_CONFIG["vision_cfg"]["width"], teacher_width)

    def forward(self, images: torch.Tensor, keep: int, generator: torch.Generator | None) -> tuple[torch.Tensor, ...]:
        """Return pooled states (B, d_v) and normalised joint features (B, D)."""
        x = pooled(self.visual, images, keep, generator)
        return x, F.normalize(x @ self.visual.proj, dim=-1)


def begin_from(visual: nn.Module, weights: Path) -> None:
    """Load another file's image tower but for its projection, the places of its patches interpolated to ours."""
    given = {n.removeprefix("visual."): t.float() for n, t in load_file(weights).items() if n.startswith("visual.")}
    places, here = given["positional_embedding"], visual.positional_embedding.shape[0] - 1
    side, want = round((len(places) - 1) ** 0.5), round(here**0.5)
    grid = places[1:].T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=want, mode="bicubic", align_corners=False).flatten(2)[0].T
    given["positional_embedding"] = torch.cat([places[:1], grid])
    given["proj"] = visual.proj.detach()
    visual.load_state_dict(given)


class Material:
    """All arrays that a step draws from, and the targets that go with them."""

    def __init__(self, folder: Path, device: str = "cpu"):
        self.device = device
        sources, self.concepts = load_corpus(folder / "corpus.safetensors")
        self.sources = {s: {name: t.to(device) for name, t in data.items()} for s, data in sources.items()}
        self.teacher = load_file(folder / "teacher.safetensors", device=device)
        natural = folder / "teacher_natural.safetensors"  # the longest to compute, so a file of its own
        self.teacher |= load_file(natural, device=device) if natural.exists() else {}
        self.teacher_mean = self.teacher["emoji"].float().mean(0)  # (1280,)
        joint = load_file(folder / "joint.safetensors", device=device)
        trained = [
            data[field].max() for name, data in self.sources.items() for field in ("names", "kinds") if name != "choice"
        ]
        self.start = joint["concepts"][: int(max(trained)) + 1]  # (concepts, D), normalised; the probes' stand last
        self.probed = joint["concepts"]
        self.other = joint["other"]  # class names of the probes
        place = {name: i for i, name in enumerate(self.concepts)}
        classes = emoji_index()["classes"]
        known = [place[c] for c in classes if place.get(c, len(self.start)) < len(self.start)]
        self.forbidden = torch.tensor(known, device=device)
        preprocessing = tiny_config()["preprocess_cfg"]
        self.normalise = v2.Normalize(preprocessing["mean"], preprocessing["std"])

    def targets(self, source: str, index: torch.Tensor, name_share: float) -> torch.Tensor:
        """Return each image's distribution over the concepts (B, concepts)."""
        data, b = self.sources[source], len(index)
        rows = torch.zeros(b, len(self.start), device=self.device)
        for field, share in (("names", name_share), ("kinds", 1 - name_share)):
            said = data[field][index]  # (B, 3)
            weight = (said >= 0).float()
            weight = share * weight / weight.sum(1, keepdim=True).clamp(min=1)
            rows.scatter_add_(1, said.clamp(min=0), weight)
        if source == "emoji":
            rows[:, self.forbidden] = 0
        return rows / rows.sum(1, keepdim=True)

    def draw(self, step: int, config: DictConfig, taught_all: bool = False) -> Drawn:
        """Return what step `step` sees; all that the teacher has seen is taught, or what `config.taught` says."""
        generator = torch.Generator(self.device).manual_seed(step)
        images, targets, features, taught, drawn, at = [], [], [], [], {}, 0
        size = MODEL_CONFIG["vision_cfg"]["image_size"]
        for source, count in config.batch.items():
            data = self.sources[source]
            weight, narrow = data["weight"], source in config.one_kind
            if narrow:  # the others of its kind are what an image is hardest to tell from
                kinds = data["kinds"][data["kinds"] >= 0].unique()
                kind = kinds[torch.randint(len(kinds), (1,), generator=generator, device=kinds.device)]
                weight = weight * (data["kinds"] == kind).any(1)
            index = torch.multinomial(weight, count, replacement=narrow, generator=generator)
            images.append(draw_images(source, data["pixels"][index], size, generator))
            targets.append(self.targets(source, index, config.name_share))
            since = config.taught.get(source, math.inf)
            if source in self.teacher if taught_all else step % STEPS_OF_A_SEED >= since:
                features.append(self.teacher[source][index].float() - self.teacher_mean)
                taught.append(torch.arange(at, at + count, device=self.device))
            drawn[source], at = index, at + count
        whole = self.normalise(torch.cat(images))
        return Drawn(whole, torch.cat(targets), torch.cat(features), torch.cat(taught), drawn)


def name_loss(student: Student, v: torch.Tensor, drawn: Drawn, material: Material) -> torch.Tensor:
    """Return the cross-entropy (scalar) of joint features v (B, D) over the concepts."""
    bank = F.normalize(student.bank, dim=-1)
    logits = student.logit_scale.clamp(max=math.log(100)).exp() * v @ bank.T  # (B, concepts)
    hidden = torch.zeros_like(logits)
    hidden[: len(drawn.index["emoji"]), material.forbidden] = float("-inf")  # emoji are the first of a batch
    spoken = F.log_softmax(logits + hidden, dim=1).clamp(min=-1e4)
    return -(drawn.targets * spoken).sum(1).mean()


def teacher_loss(student: Student, x: torch.Tensor, drawn: Drawn, config: DictConfig) -> torch.Tensor:
    """Return the weighted cosine distance (scalar) of pooled states x (B, d_v) to the teacher's features."""
    alike = F.cosine_similarity(student.to_teacher(x[drawn.taught]), drawn.features)
    return config.teacher_weight * (1 - alike.mean())


def trunk_losses(student: Student, material: Material, step: int, config: DictConfig) -> Parts:
    """Return the parts of the step's loss, weighted."""
    seed = config.seed * STEPS_OF_A_SEED + step
    drawn = material.draw(seed, config)
    x, v = student(drawn.images, config.keep, torch.Generator(material.device).manual_seed(seed))
    alike = (F.normalize(student.bank, dim=-1) * material.start).sum(1).mean()
    return {
        "names": name_loss(student, v, drawn, material),
        "teacher": teacher_loss(student, x, drawn, config),
        "drift": config.drift_weight * (1 - alike),
    }


def run_trunk(data: Path, work: Path, config: DictConfig, until: int) -> None:
    """Train, or go on training, until step `until`."""
    from scripts.pretrain.probes import Probes

    material = Material(data, config.device)
    student, averaged = (Student(material.start, config.seed).to(config.device) for _ in range(2))
    if config.start:
        begin_from(student.visual, Path(config.start))
    optimizer = build_optimizer(student, config, {"bank": config.bank_lr})
    probes = Probes(material)

    def measure(average: Parts) -> dict[str, float]:
        averaged.load_state_dict(average)
        return probes.measure(averaged)

    def losses(step: int) -> Parts:
        return trunk_losses(student, material, step, config)

    def rate(step: int) -> float:
        return config.lr * min(1.0, (step + 1) / config.warmup)

    run_loop(student, optimizer, losses, rate, measure, work, config, until)
