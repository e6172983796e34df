"""Pretrain `vlprompt-tiny`: `python -m vlprompt.demo.pretrain key=value …` (the keys are `DEFAULTS` below).

Contrastive image–text pretraining (CLIP, arXiv:2103.00020) of a small OpenCLIP model on the images of `corpus.py`:

- an image's caption is drawn anew each time: a template around one of its names or, less often, its kinds;
- a caption is a positive of every image in the batch that it is true of, so equal things are no negatives;
- from `families_from` on, a step's glyphs are all cards, or all hexagrams, so that they are told from one another;
- half of the patches are dropped, but for the last tenth of the steps (FLIP, arXiv:2212.00794);
- the text tower runs on the batch's longest caption, which under a causal mask equals the full length;
- the exported weights are an exponential moving average; nothing is selected, the last step is the model.

A step's draws depend on `seed` and the step alone, so a run that was stopped goes on as if it had not been. The
same seed, machine and thread count give the same weights.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from open_clip import get_tokenizer
from open_clip.model import CLIP
from open_clip.transformer import PatchDropout
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms import v2

from vlprompt.base.files import atomic_write
from vlprompt.clip.tiny import WEIGHTS, save_tiny, tiny_config
from vlprompt.demo.corpus import load_corpus, prepare
from vlprompt.demo.emoji import emoji_index, read_emoji
from vlprompt.errors import VlpromptError, nearest

DEFAULTS = {
    "work": "runs/pretrain",  # corpus.safetensors and checkpoint.safetensors lie here
    "noto": "npm/emoji-datasource-google",
    "twemoji": "npm/emoji-datasource-twitter",
    "fluent": "npm/lobehub-fluent-emoji-3d",
    "clipart": "/usr/share/openclipart/png",
    "cifar": "data/cifar100_train.zip",
    "steps": 3000,
    "batch": {"emoji": 128, "clipart": 64, "cifar": 72, "glyphs": 32},
    "lr": 1e-3,
    "weight_decay": 0.1,
    "warmup": 300,
    "ema": 0.998,
    "patch_dropout": 0.5,
    "kind_share": 0.3,
    "families_from": 800,  # from this step on, a step's glyphs are of one family
    "seed": 1,
    "threads": 2,
    "bf16": True,
    "log_every": 50,
    "save_every": 500,
    "export": True,
}

TEMPLATES = {
    "emoji": [
        "a photo of a {}.",
        "an emoji of a {}.",
        "the {} emoji.",
        "a picture of a {}.",
        "{}",
        "a drawing of a {}.",
        "an icon of a {}.",
        "a cartoon {}.",
        "a {}.",
    ],
    "clipart": [
        "a photo of a {}.",
        "clip art of a {}.",
        "a drawing of a {}.",
        "{}",
        "a picture of a {}.",
        "a sign of {}.",
    ],
    "cifar": ["a photo of a {}.", "a blurry photo of a {}.", "a small photo of the {}.", "a picture of a {}.", "{}"],
    "glyphs": ["a photo of a {}.", "a symbol of a {}.", "the symbol {}.", "{}", "a drawing of a {}.", "the {} sign."],
}

# How far each source's images are moved: rotation in degrees, smallest and largest crop, and whether they are mirrored.
MOVES = {
    "emoji": (20.0, 0.65, 1.25, True),
    "clipart": (12.0, 0.7, 1.2, True),
    "cifar": (8.0, 0.65, 1.1, True),
    "glyphs": (6.0, 0.85, 1.3, False),
}


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Return uniform draws of `shape` in [low, high)."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def move(images: torch.Tensor, source: str, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return images (B, c, s, s) rotated, cropped, shifted and mirrored at random, as (B, c, size, size)."""
    degrees, smallest, largest, mirror = MOVES[source]
    b = len(images)
    angle = uniform((b,), -degrees, degrees, generator) * (math.pi / 180)
    crop = uniform((b, 2), smallest, largest, generator).sqrt()  # side lengths: the range above is one of areas
    if mirror:
        crop[:, 0] *= torch.where(torch.rand(b, generator=generator) < 0.5, -1.0, 1.0)
    room = (1 - crop.abs()).abs() * 0.8 + 0.02
    shift = (torch.rand((b, 2), generator=generator) * 2 - 1) * room
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * crop[:, 0], -sin * crop[:, 1], shift[:, 0], sin * crop[:, 0], cos * crop[:, 1], shift[:, 1]]
    theta = torch.stack(rows, 1).view(b, 2, 3)
    grid = F.affine_grid(theta, [b, images.shape[1], size, size], align_corners=False)
    padding = "reflection" if source == "cifar" else "zeros"
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def paper(b: int, generator: torch.Generator) -> torch.Tensor:
    """Return background colours (b, 3, 1, 1): half white, the others light, dark or anything."""
    colour = torch.rand((b, 3), generator=generator)
    kind = torch.rand((b, 1), generator=generator)
    colour = torch.where(kind < 0.75, 0.75 + 0.25 * colour, colour)
    return torch.where(kind < 0.5, torch.ones_like(colour), colour)[:, :, None, None]


def recolour(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Return images (B, 3, H, W) with random brightness, contrast, saturation and a little noise."""
    b = len(images)
    brightness, contrast, saturation = uniform((3, b, 1, 1, 1), 1 - strength, 1 + strength, generator)
    saturation = torch.where(torch.rand((b, 1, 1, 1), generator=generator) < 0.1, 0.0, saturation)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    middle = images.mean((1, 2, 3), keepdim=True)
    images = (middle + (images - middle) * contrast) * brightness
    noise = uniform((b, 1, 1, 1), 0.0, 0.04, generator)
    return (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def draw_images(source: str, pixels: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return augmented RGB images (B, 3, size, size) in [0, 1] from uint8 pixels (B, 1 | 3 | 4, s, s)."""
    images = pixels.float() / 255
    b, channels = images.shape[:2]
    if channels == 4:
        rgb, alpha = images[:, :3], images[:, 3:]
        moved = move(torch.cat([rgb * alpha, alpha], 1), source, size, generator)
        images = moved[:, :3] + (1 - moved[:, 3:]) * paper(b, generator)
    elif channels == 1:
        mask = move(images, source, size, generator)
        light, dark = 0.7 + 0.3 * torch.rand((2, b, 3, 1, 1), generator=generator)
        images = light * (1 - mask) + (1 - dark) * mask
    else:
        images = move(images, source, size, generator)
    return recolour(images, 0.1 if channels == 1 else 0.3, generator)


class CaptionedBatches:
    """Draws batches: images (B, 3, H, W), caption tokens (B, longest) and which captions are true of which image."""

    def __init__(self, corpus: Path, config: DictConfig, image_size: int):
        self.sources, self.concepts = load_corpus(corpus)
        self.config, self.image_size = config, image_size
        self.encoder = get_tokenizer("ViT-B-32")
        preprocessing = tiny_config()["preprocess_cfg"]
        self.normalise = v2.Normalize(preprocessing["mean"], preprocessing["std"])
        words = {t.replace("{}", " ") for templates in TEMPLATES.values() for t in templates}
        words |= set(self.concepts) | {f"{c}." for c in self.concepts}  # marks at a name's end join the full stop
        words |= set(emoji_index()["classes"])  # a few of their words are in no caption, and stay as they began
        used = {token for text in words for token in self.encoder.encode(text)}
        used |= {self.encoder.sot_token_id, self.encoder.eot_token_id}
        self.token_ids = torch.tensor(sorted(used))
        self.row_of = {token: row for row, token in enumerate(sorted(used))}
        self.end = self.row_of[self.encoder.eot_token_id]
        self.captions: dict[str, list[int]] = {}

    def rows(self, caption: str) -> list[int]:
        """Return a caption's tokens as rows of the kept vocabulary, with start and end."""
        if caption not in self.captions:
            ids = [self.encoder.sot_token_id, *self.encoder.encode(caption)[:30], self.encoder.eot_token_id]
            self.captions[caption] = [self.row_of[i] for i in ids]
        return self.captions[caption]

    def pad(self, captions: list[str]) -> torch.Tensor:
        """Return captions as one (B, longest) matrix, padded at the end, where no token sees the padding."""
        rows = [self.rows(c) for c in captions]
        longest = max(map(len, rows))
        return torch.tensor([r + [0] * (longest - len(r)) for r in rows])

    def one_family(self, family: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return draw weights (N,) that keep one family, the likelier the larger: cards are hard negatives of cards."""
        members, sizes = family.unique(return_counts=True)
        chosen = members[torch.multinomial(sizes.float().sqrt(), 1, generator=generator)]
        return (family == chosen).float()

    def draw(self, step: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """Return the step's images (B, 3, H, W), captions and truth (B images, B captions)."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        images, captions, said, known = [], [], [], []
        for source, count in self.config.batch.items():
            data = self.sources[source]
            one_family = source == "glyphs" and step >= self.config.families_from
            weight = self.one_family(data["kinds"][:, 0], generator) if one_family else data["weight"]
            index = torch.multinomial(weight, count, replacement=one_family, generator=generator)
            images.append(draw_images(source, data["pixels"][index], self.image_size, generator))
            names, kinds = data["names"][index], data["kinds"][index]
            by_kind = torch.rand(count, generator=generator) < self.config.kind_share
            pool = torch.where(by_kind[:, None], kinds, names)  # (B, 3)
            choice = torch.multinomial((pool >= 0).float(), 1, generator=generator)
            concept = pool.gather(1, choice).squeeze(1)  # (B,)
            template = torch.randint(len(TEMPLATES[source]), (count,), generator=generator)
            pairs = zip(template.tolist(), concept.tolist(), strict=True)
            captions += [TEMPLATES[source][t].format(self.concepts[c]) for t, c in pairs]
            said.append(concept)
            known.append(torch.cat([names, kinds], 1))
        truth = (torch.cat(known)[:, :, None] == torch.cat(said)).any(1)  # (B, B)
        return self.normalise(torch.cat(images)), captions, truth


def attend(attention: nn.MultiheadAttention, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Self-attention (B, L, d) by explicit products, in bf16 on a CPU 1.8 times as fast as the fused kernel."""
    b, length, d = x.shape
    heads = attention.num_heads
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.view(b, length, 3, heads, d // heads).permute(2, 0, 3, 1, 4)  # (B, h, L, d/h)
    weights = (q @ k.transpose(-1, -2)) * (d // heads) ** -0.5
    weights = (weights if mask is None else weights + mask).softmax(-1).to(v.dtype)
    return attention.out_proj((weights @ v).transpose(1, 2).reshape(b, length, d))


def through(blocks: nn.ModuleList, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return x (B, L, d) after OpenCLIP's residual blocks."""
    for block in blocks:
        x = x + attend(block.attn, block.ln_1(x), mask)
        x = x + block.mlp(block.ln_2(x))
    return x


def image_features(model: CLIP, images: torch.Tensor) -> torch.Tensor:
    """Return normalised image features (B, D), as `model.encode_image` would."""
    vision = model.visual
    x = through(vision.transformer.resblocks, vision._embeds(images))
    return F.normalize((vision.ln_post(x[:, 0]) @ vision.proj).float(), dim=-1)


def text_features(model: CLIP, rows: torch.Tensor, end: int) -> torch.Tensor:
    """Return normalised text features (B, D) of rows (B, L) whose end token is row `end`."""
    length = rows.shape[1]
    x = model.token_embedding(rows) + model.positional_embedding[:length]
    x = through(model.transformer.resblocks, x, model.attn_mask[:length, :length])
    x = model.ln_final(x[torch.arange(len(x)), (rows == end).int().argmax(1)])
    return F.normalize((x @ model.text_projection).float(), dim=-1)


def contrastive_loss(v: torch.Tensor, t: torch.Tensor, scale: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the symmetric cross-entropy (scalar) whose targets are spread over all true captions, or images."""
    logits = scale * v @ t.T
    targets = truth.float()
    per_image = -(F.log_softmax(logits, 1) * targets / targets.sum(1, keepdim=True)).sum(1).mean()
    per_text = -(F.log_softmax(logits, 0) * targets / targets.sum(0, keepdim=True)).sum(0).mean()
    return (per_image + per_text) / 2


def learning_rate(step: int, config: DictConfig) -> float:
    """Return the step's rate: linear warm-up, then a cosine to zero."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / (config.steps - config.warmup)))


class Probe:
    """Zero-shot accuracy on the val emoji, which pretraining never sees; watched, never selected on."""

    def __init__(self, batches: CaptionedBatches):
        splits = read_emoji()
        size = batches.image_size
        resize = v2.Resize(size, v2.InterpolationMode.BICUBIC)
        transform = v2.Compose([resize, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), batches.normalise])
        self.images = torch.stack([transform(splits.open_image(item)) for item in splits.val])
        self.labels = torch.tensor([i.label for i in splits.val])
        self.rows = batches.pad([f"an emoji of a {name}." for name in splits.class_names])

    @torch.no_grad()
    def accuracy(self, model: CLIP, end: int) -> float:
        """Return the share of right answers; `end` is the row of the end token."""
        model.eval()
        similarity = image_features(model, self.images) @ text_features(model, self.rows, end).T
        return (similarity.argmax(1) == self.labels).float().mean().item()


def build_model(config: DictConfig, vocabulary: int) -> CLIP:
    """Return an untrained model whose token embedding has only the rows that captions use."""
    model_config = tiny_config()["model_cfg"]
    model_config["text_cfg"]["vocab_size"] = vocabulary
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return CLIP(**model_config)


def build_optimizer(model: CLIP, config: DictConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the matrices alone."""
    decayed = {n for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n}
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in decayed], "weight_decay": config.weight_decay},
        {"params": [p for n, p in model.named_parameters() if n not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-6)


def save_checkpoint(path: Path, step: int, model: CLIP, average: dict, optimizer: torch.optim.Optimizer) -> None:
    """Write everything that going on needs, to a temporary name first."""
    tensors = {f"model.{n}": t for n, t in model.state_dict().items()}
    tensors |= {f"average.{n}": t for n, t in average.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    with atomic_write(path) as temporary:
        save_file({n: t.contiguous() for n, t in tensors.items()} | {"step": torch.tensor(step)}, temporary)


def load_checkpoint(path: Path, model: CLIP, average: dict, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote and return the number of steps done."""
    parts: dict[str, dict[str, Any]] = {"model": {}, "average": {}, "optimizer": {}}
    tensors = load_file(path)
    step = int(tensors.pop("step"))
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    model.load_state_dict(parts["model"])
    average.update(parts["average"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def train_step(
    model: CLIP, optimizer: torch.optim.Optimizer, batches: CaptionedBatches, step: int, config: DictConfig
) -> float:
    """Take one step and return its loss."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    dropping = step < 0.9 * config.steps
    model.visual.patch_dropout = PatchDropout(config.patch_dropout) if dropping else nn.Identity()
    model.train()
    images, captions, truth = batches.draw(step)
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
        torch.manual_seed(config.seed * 1_000_003 + step)  # the patches to drop
        v, t = image_features(model, images), text_features(model, batches.pad(captions), batches.end)
    loss = contrastive_loss(v, t, model.logit_scale.exp(), truth)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(100))
    return loss.item()


@torch.no_grad()
def update_average(average: dict[str, torch.Tensor], model: CLIP, step: int, config: DictConfig) -> None:
    """Move the exponential moving average towards the weights, faster in the first steps."""
    decay = min(config.ema, (step + 1) / (step + 10))
    for name, tensor in model.state_dict().items():
        average[name].lerp_(tensor, 1 - decay)


def pretrain(config: DictConfig) -> None:
    """Run, or go on with, the pretraining that `config` describes; print loss and accuracy as lines of JSON."""
    torch.set_num_threads(config.threads)
    work = Path(config.work)
    corpus, checkpoint = work / "corpus.safetensors", work / "checkpoint.safetensors"
    if not corpus.exists():
        prepare(corpus, *(Path(config[key]) for key in ("noto", "twemoji", "fluent", "clipart", "cifar")))
    batches = CaptionedBatches(corpus, config, tiny_config()["model_cfg"]["vision_cfg"]["image_size"])
    model, averaged = (build_model(config, len(batches.token_ids)) for _ in range(2))
    optimizer = build_optimizer(model, config)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step = load_checkpoint(checkpoint, model, average, optimizer) if checkpoint.exists() else 0
    probe, losses, started = Probe(batches), [], time.time()
    while step < config.steps:
        losses.append(train_step(model, optimizer, batches, step, config))
        step += 1
        update_average(average, model, step, config)
        last = step == config.steps
        if step % config.log_every == 0 or last:
            line = {"step": step, "loss": round(sum(losses) / len(losses), 4), "seconds": round(time.time() - started)}
            if step % (5 * config.log_every) == 0 or last:
                averaged.load_state_dict(average)
                line["val_emoji"] = round(100 * probe.accuracy(averaged, batches.end), 1)
            print(json.dumps(line), flush=True)
            losses = []
        if step % config.save_every == 0 or last:
            save_checkpoint(checkpoint, step, model, average, optimizer)
    if config.export:
        save_tiny(average, batches.token_ids)
        print(f"{WEIGHTS}: {WEIGHTS.stat().st_size / 1e6:.2f} MB")


def read_config(arguments: list[str]) -> DictConfig:
    """Return the defaults with `key=value` arguments over them; an unknown key is an error with the nearest names."""
    defaults, given = OmegaConf.create(DEFAULTS), OmegaConf.from_dotlist(arguments)
    for key in given:
        if key not in defaults:
            raise VlpromptError(f"unknown key '{key}' for pretraining: {nearest(str(key), DEFAULTS)}")
    return OmegaConf.merge(defaults, given)


def main() -> None:
    """Run the command line."""
    try:
        pretrain(read_config(sys.argv[1:]))
    except VlpromptError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
