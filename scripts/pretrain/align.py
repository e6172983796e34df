"""From a checkpoint of the trunk and the text tower to the file: both towers together, to rate zero.

To the trunk's losses come CLIP's own (arXiv:2103.00020) on drawn captions, a template around one of an image's names
or, less often, its kinds, where a caption is a positive of every image that it is true of; and the text tower's on
phrases, so that no word is forgotten, concepts standing where the trunk has moved them. An emoji and a caption that
names a class of the embedded dataset are neither a right pair nor a wrong one. The last part of the leg sees all
patches. What ships is the last step's averaged weights.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn

from scripts.pretrain.loop import Parts, build_optimizer, decaying, read_checkpoint, run_loop
from scripts.pretrain.phrases import OWN_TEMPLATES
from scripts.pretrain.probes import Probes, accuracy
from scripts.pretrain.student import MODEL_CONFIG, build_clip, text_features
from scripts.pretrain.text import TEXT_DEFAULTS, Texts, freeze_images, text_loss
from scripts.pretrain.trunk import DEFAULTS, STEPS_OF_A_SEED, Drawn, Material, Student, name_loss, teacher_loss
from vlprompt.base.files import atomic_write
from vlprompt.clip.tiny import WORDS, save_tiny, tiny_config, words_of
from vlprompt.demo.emoji import emoji_index

ALIGN_DEFAULTS = {
    **DEFAULTS,
    "trunk": "runs/pretrain/run",  # folders with a checkpoint.safetensors each
    "text": "runs/pretrain/text",
    "target": "runs/pretrain/vlprompt-tiny",
    "steps": 400,
    "warmup": 20,
    "ema": 0.99,
    "whole_from": 0.7,  # the share of the steps behind which all patches are seen
    "text_lr": 0.5,  # of the rate
    "kind_share": 0.3,
    "one_kind": ["glyphs"],
    "phrases": 192,
    "probe_every": 100,
    "frame_share": TEXT_DEFAULTS["frame_share"],
    "alike_scale": TEXT_DEFAULTS["alike_scale"],
}

STYLE_OF = {"emoji": "emoji", "clipart": "clipart", "glyphs": "glyphs"}  # the others are photos


class Pair(nn.Module):
    """The trunk's student and the text tower."""

    def __init__(self, student: Student, clip: nn.Module):
        super().__init__()
        self.student, self.clip = student, clip


def read_captions(
    drawn: Drawn, material: Material, config: DictConfig, generator: torch.Generator
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Return a caption for each image, which are true of which image (B images, B captions), and which pairs count."""
    captions, said, known = [], [], []
    for source, index in drawn.index.items():
        data = material.sources[source]
        names, kinds = data["names"][index], data["kinds"][index]  # (b, 3) each
        by_kind = torch.rand(len(index), generator=generator, device=index.device) < config.kind_share
        by_kind &= (kinds >= 0).any(1)
        pool = torch.where(by_kind[:, None], kinds, names)
        concept = pool.gather(1, torch.multinomial((pool >= 0).float(), 1, generator=generator)).squeeze(1)
        templates = OWN_TEMPLATES[STYLE_OF.get(source, "photo")]
        template = torch.randint(len(templates), (len(index),), generator=generator, device=index.device)
        pairs = zip(template.tolist(), concept.tolist(), strict=True)
        captions += [templates[t].format(material.concepts[c]) for t, c in pairs]
        said.append(concept)
        known.append(torch.cat([names, kinds], 1))
    spoken = torch.cat(said)
    truth = (torch.cat(known)[:, :, None] == spoken).any(1)  # (B, B)
    of_emoji = torch.arange(len(spoken), device=spoken.device) < len(drawn.index["emoji"])
    counts = ~(of_emoji[:, None] & torch.isin(spoken, material.forbidden)[None])
    return captions, truth & counts, counts


def contrastive_loss(logits: torch.Tensor, truth: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return CLIP's symmetric cross-entropy (scalar) of logits (B, B), its targets spread over all true pairs."""
    logits = logits.masked_fill(~counts, -1e4)
    targets = truth.float()
    found = []
    for dim in (0, 1):
        share = targets / targets.sum(dim, keepdim=True).clamp(min=1)
        held = truth.any(dim).float()
        found.append(-((F.log_softmax(logits, dim) * share).sum(dim) * held).sum() / held.sum().clamp(min=1))
    return (found[0] + found[1]) / 2


def align_losses(pair: Pair, material: Material, texts: Texts, step: int, config: DictConfig) -> Parts:
    """Return the parts of the step's loss, weighted."""
    seed = -1 - config.seed * STEPS_OF_A_SEED - step  # other draws than the trunk's
    drawn = material.draw(seed, config, taught_all=True)
    generator = torch.Generator(material.device).manual_seed(seed)
    student, clip = pair.student, pair.clip
    keep = config.keep if step < config.whole_from * config.steps else 10**6
    x, v = student(drawn.images, keep, generator)
    captions, truth, counts = read_captions(drawn, material, config, generator)
    tokens = texts.pad([texts.encode(caption) for caption in captions])
    t = F.normalize(text_features(clip, tokens), dim=-1)
    scale = student.logit_scale.clamp(max=math.log(100)).exp()
    tokens, targets = texts.batch(step, config.phrases, config.seed)
    phrases = text_loss(text_features(clip, tokens), targets, config.alike_scale)
    return {
        "contrast": contrastive_loss(scale * v @ t.T, truth, counts),
        "names": 0.5 * name_loss(student, v, drawn, material),
        "teacher": teacher_loss(student, x, drawn, config),
        "phrases": torch.stack(list(phrases.values())).sum(),
    }


class AlignWatch:
    """What the trunk watches, by the text tower's own class vectors."""

    def __init__(self, material: Material, texts: Texts, averaged: Pair):
        self.probes, self.pair = Probes(material), averaged
        choices = [material.concepts[i] for i in self.probes.order.tolist()]
        self.emoji = texts.pad([texts.encode(f"an emoji of a {name}.") for name in emoji_index()["classes"]])
        self.choice = texts.pad([texts.encode(f"a photo of a {name}.") for name in choices])

    @torch.no_grad()
    def measure(self, average: Parts) -> dict[str, float]:
        """Return accuracies in percent."""
        self.pair.load_state_dict(average)
        found = self.probes.measure(self.pair.student)
        for name, part, tokens in (("emoji", "val", self.emoji), ("choice", "choice", self.choice)):
            images, labels = self.probes.parts[part]
            classes = F.normalize(text_features(self.pair.clip, tokens), dim=-1)
            scores = self.probes.encode(self.pair.student, images) @ classes.T
            found[f"{name}_by_text"] = accuracy(scores, labels)
        return found


def build_pair(material: Material, config: DictConfig) -> Pair:
    """Return both towers as their own runs left them: the trunk's last weights, the text tower's averaged ones."""
    student = Student(material.start, config.seed)
    student.load_state_dict(read_checkpoint(Path(config.trunk) / "checkpoint.safetensors")[0]["student"])
    clip = freeze_images(build_clip(config.seed))
    clip.load_state_dict(read_checkpoint(Path(config.text) / "checkpoint.safetensors")[0]["average"])
    clip.visual = nn.Identity()  # the student has one
    return Pair(student, clip)


def run_align(data: Path, work: Path, config: DictConfig) -> None:
    """Train both towers to rate zero and write the file."""
    material, texts = Material(data, config.device), Texts(data, config.frame_share, config.device)
    trunk = read_checkpoint(Path(config.trunk) / "checkpoint.safetensors")[0]
    texts.follow(material.concepts[: len(material.start)], trunk["average"]["bank"])
    pair, averaged = (build_pair(material, config).to(config.device) for _ in range(2))
    shares = {n: config.text_lr for n, _ in pair.named_parameters() if n.startswith("clip.")}
    optimizer = build_optimizer(pair, config, {"student.bank": config.bank_lr} | shares)
    watch = AlignWatch(material, texts, averaged)

    def losses(step: int) -> Parts:
        return align_losses(pair, material, texts, step, config)

    average = run_loop(
        pair, optimizer, losses, decaying(config, config.steps), watch.measure, work, config, config.steps
    )
    config_of_file = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": tiny_config()["preprocess_cfg"]}
    target = Path(config.target)
    save_tiny(shipped(average), config_of_file, target)
    with atomic_write(target / WORDS) as temporary:
        temporary.write_text("".join(f"{word}\n" for word in caption_words(material)), encoding="utf-8")


def caption_words(material: Material) -> list[str]:
    """Return the words of all captions, sorted."""
    return sorted({word for concept in material.concepts[: len(material.start)] for word in words_of(concept)})


def shipped(average: Parts) -> Parts:
    """Return the weights of OpenCLIP's names: the student's image tower and scale, and the text tower."""
    state = {n.removeprefix("clip."): t for n, t in average.items() if n.startswith("clip.")}
    state |= {
        n.removeprefix("student."): t
        for n, t in average.items()
        if n.startswith("student.visual.") or n == "student.logit_scale"
    }
    state["logit_scale"] = state["logit_scale"].clamp(max=math.log(100))
    return state
