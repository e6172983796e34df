"""The text tower's own training: phrases to the sentence teacher's vectors, in the joint space.

Token rows begin as the teacher's vectors of the tokens' own strings, so that a token which no phrase holds means
something too. A phrase in a template is to lie near its name's vector, moved a little (`frame_share`) to the
template's. The loss is the cosine distance, and the cross-entropy between a batch's similarities as the teacher has
them and as the student has them, which keeps near names apart. Batches hold texts of like length; no token sees what
follows it, so shorter matrices give what the full context would.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from open_clip import get_tokenizer
from open_clip.model import CLIP
from safetensors.torch import load_file

from scripts.pretrain.loop import LOOP_DEFAULTS, Parts, build_optimizer, decaying, run_loop
from scripts.pretrain.phrases import CONTEXT, all_templates, into, load_phrases
from scripts.pretrain.student import build_clip, text_features
from vlprompt.demo.emoji import emoji_index

TEXT_DEFAULTS = {
    **LOOP_DEFAULTS,
    "lr": 1e-3,
    "warmup": 100,
    "weight_decay": 0.05,
    "ema": 0.995,
    "batch": 512,
    "steps": 1200,
    "frame_share": 0.3,
    "alike_scale": 20.0,
    "row_scale": 0.5,
}


class Texts:
    """All phrases as tokens, with the vectors (N, D) that the text tower is to give them."""

    def __init__(self, data: Path, frame_share: float, device: str = "cpu"):
        self.device = device
        plain, tensors = load_phrases(data / "phrases.safetensors")
        joint = load_file(data / "joint.safetensors")
        self.mean, self.basis = joint["mean"], joint["basis"]
        self.names = into(tensors["plain"], self.mean, self.basis)
        self.styles = frame_share * into(tensors["templates"], self.mean, self.basis)
        self.framed = tensors["framed"]
        templates = all_templates()
        self.texts = [*plain, *(templates[t].format(plain[i]) for t, i in self.framed.tolist())]
        self.targets = self.to_targets()
        self.tokenizer = get_tokenizer("ViT-B-32")
        self.tokens = [self.encode(text) for text in self.texts]
        self.place = {phrase: i for i, phrase in enumerate(plain)}

    def to_targets(self) -> torch.Tensor:
        """Return the vectors (N, D) of all texts, from the names' and the templates'."""
        by, of = self.framed.T
        near = F.normalize(self.names[of] + self.styles[by], dim=-1)
        return torch.cat([self.names, near]).to(self.device)

    def follow(self, concepts: list[str], bank: torch.Tensor) -> None:
        """Let the concepts' phrases, alone and in templates, lie where training has moved their vectors (N, D)."""
        places = torch.tensor([self.place[concept] for concept in concepts])
        self.names[places] = F.normalize(bank, dim=-1).cpu()
        self.targets = self.to_targets()

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens with start and end."""
        tokenizer = self.tokenizer
        return [tokenizer.sot_token_id, *tokenizer.encode(text)[:CONTEXT], tokenizer.eot_token_id]

    def pad(self, rows: list[list[int]]) -> torch.Tensor:
        """Return token lists as one matrix (B, longest), padded at the end, where no token sees the padding."""
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)

    def batch(self, step: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a step's tokens (B, longest) and targets (B, D): each epoch anew, texts of like length together."""
        epoch_steps = len(self.tokens) // size
        epoch, at = divmod(step, epoch_steps)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.tokens), generator=generator)
        pool = (16 * size) if epoch_steps >= 16 else len(self.tokens)
        start = at * size // pool * pool
        near = sorted(order[start : start + pool].tolist(), key=lambda i: len(self.tokens[i]))
        within = at - start // size
        index = near[within * size : (within + 1) * size] or near[:size]
        return self.pad([self.tokens[i] for i in index]), self.targets[torch.tensor(index)]

    def token_rows(self) -> torch.Tensor:
        """Return the vectors of the tokens' own strings (vocabulary, D); zeros for tokens that are no string."""
        rows = torch.zeros(len(self.tokenizer.encoder), self.targets.shape[1], device=self.device)
        for token, number in self.tokenizer.encoder.items():
            try:
                word = bytes(self.tokenizer.byte_decoder[c] for c in token.removesuffix("</w>")).decode("utf-8")
            except (KeyError, UnicodeDecodeError):
                continue
            if word in self.place:
                rows[number] = self.targets[self.place[word]]
        return rows


def text_loss(found: torch.Tensor, wanted: torch.Tensor, scale: float) -> Parts:
    """Return the parts of the loss of text features (B, D), unnormalised, against their targets (B, D)."""
    found = F.normalize(found, dim=-1)
    theirs = (scale * wanted @ wanted.T).softmax(1)
    ours = F.log_softmax(scale * found @ wanted.T, 1)
    return {
        "distance": 4 * (1 - (found * wanted).sum(1)).mean(),
        "alike": (theirs * (theirs.clamp(min=1e-9).log() - ours)).sum(1).mean(),
    }


def begin_text(clip: CLIP, texts: Texts, row_scale: float) -> None:
    """Let token rows begin from the teacher's vectors."""
    with torch.no_grad():
        clip.token_embedding.weight.add_(row_scale * texts.token_rows())


class TextWatch:
    """Which of the emoji classes a training emoji's name is nearest to, by text alone, beside the teacher's own 57%."""

    def __init__(self, texts: Texts):
        index = emoji_index()
        known = [e for e in index["emoji"] if e["split"] == "train"]
        self.tokens = texts.pad([texts.encode(f"a photo of a {e['name']}.") for e in known])
        self.classes = texts.pad([texts.encode(f"an emoji of a {name}.") for name in index["classes"]])
        labels = [index["classes"].index(e["class"]) for e in known]
        self.labels = torch.tensor(labels, device=texts.device)

    @torch.no_grad()
    def measure(self, clip: CLIP) -> dict[str, float]:
        """Return the share of right answers in percent."""
        names, classes = (F.normalize(text_features(clip, t), dim=-1) for t in (self.tokens, self.classes))
        return {"names_to_classes": round(100 * (names @ classes.T).argmax(1).eq(self.labels).float().mean().item(), 1)}


def freeze_images(clip: CLIP) -> CLIP:
    """Leave the text tower alone to be trained."""
    for parameter in (*clip.visual.parameters(), clip.logit_scale):
        parameter.requires_grad_(False)
    return clip


def run_text(data: Path, work: Path, config: DictConfig) -> None:
    """Train the text tower to the end of its schedule, or to a stop."""
    texts = Texts(data, config.frame_share, config.device)
    clip, averaged = (freeze_images(build_clip(config.seed)).to(config.device) for _ in range(2))
    begin_text(clip, texts, config.row_scale)
    watch = TextWatch(texts)

    def losses(step: int) -> Parts:
        tokens, targets = texts.batch(step, config.batch, config.seed)
        return text_loss(text_features(clip, tokens), targets, config.alike_scale)

    def measure(average: Parts) -> dict[str, float]:
        averaged.load_state_dict(average)
        return watch.measure(averaged)

    optimizer = build_optimizer(clip, config, {})
    run_loop(clip, optimizer, losses, decaying(config, config.steps), measure, work, config, config.steps)
