"""The captioned images that `vlprompt-tiny` is pretrained on: collected once, kept as arrays in one safetensors file.

Every image carries *names* (what it is: "fox face") and *kinds* (what it belongs to: "mammal", "animals and nature").
Emoji of the embedded dataset's val and test splits are left out, in every style and in every joined sequence, and so
are the classes of Tiny-ImageNet that are kept for measuring (`CHOICE_CLASSES`, `REPORT_CLASSES`).
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from open_clip import get_tokenizer
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from safetensors.torch import save_file

from vlprompt.base.files import atomic_write
from vlprompt.demo.emoji import emoji_index
from vlprompt.demo.glyph_sets import DIGITS, font_path, glyph_sets
from vlprompt.errors import VlpromptError

SIZE = 64
MAX_NAMES, MAX_KINDS = 3, 3

SUPERCLASSES = {
    "aquatic mammal": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flower": "orchid poppy rose sunflower tulip",
    "food container": "bottle bowl can cup plate",
    "fruit": "apple orange pear",
    "vegetable": "mushroom sweet_pepper",
    "household electrical device": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insect": "bee beetle butterfly caterpillar cockroach",
    "large carnivore": "bear leopard lion tiger wolf",
    "large man-made outdoor thing": "bridge castle house road skyscraper",
    "large natural outdoor scene": "cloud forest mountain plain sea",
    "large herbivore": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammal": "fox porcupine possum raccoon skunk",
    "invertebrate": "crab lobster snail spider worm",
    "person": "baby boy girl man woman",
    "reptile": "crocodile dinosaur lizard snake turtle",
    "small mammal": "hamster mouse rabbit shrew squirrel",
    "tree": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicle": "bicycle bus motorcycle pickup_truck train lawn_mower rocket streetcar tank tractor",
}
SUPERCLASS_OF = {name: superclass for superclass, names in SUPERCLASSES.items() for name in names.split()}

# Classes of Tiny-ImageNet that pretraining never sees: by the first, choices are made; the second are reported once.
CHOICE_CLASSES = {
    "n01443537": "goldfish",
    "n01882714": "koala",
    "n02099601": "golden retriever",
    "n02268443": "dragonfly",
    "n02410509": "bison",
    "n02769748": "backpack",
    "n02793495": "barn",
    "n04285008": "sports car",
    "n04398044": "teapot",
    "n07873807": "pizza",
}
REPORT_CLASSES = {
    "n01910747": "jellyfish",
    "n02056570": "king penguin",
    "n02123045": "tabby cat",
    "n01774750": "tarantula",
    "n02423022": "gazelle",
    "n02948072": "candle",
    "n04146614": "school bus",
    "n04507155": "umbrella",
    "n04366367": "suspension bridge",
    "n07614500": "ice cream",
}

# Hypernyms of WordNet that say nothing about how a thing looks.
EMPTY = (
    "entity object whole unit artifact instrumentality matter chordate vertebrate organism being part thing structure "
    "substance group set system area way work material causal agent cause product creation abstraction attribute "
    "content feature male female adult young domestic article solid food nutrient ware goods commodity"
)
EMPTY_KINDS = frozenset(EMPTY.split())

GLYPH_KINDS = {
    "symbols": "symbol",
    "arrows": "arrow",
    "cards": "playing card",
    "chess": "chess piece",
    "cyrillic": "cyrillic letter",
    "dominoes": "domino tile",
    "faces": "face",
    "georgian": "georgian letter",
    "greek": "greek letter",
    "hexagrams": "hexagram",
    "zodiac": "zodiac sign",
}

ABSTRACT_CLIPART = ("shapes/stars", "shapes/jigsaw", "special", "computer/icons", "computer/buttons", "logos")
ARTISTS = (
    "aj andrew ani anthony anton architetto ben benj benji bogdan chaosinfa christoph clemente dan dave denco erwan "
    "fidi francesco frederic frouke fudriot ganson ganson1 ganson2 ganson3 gerald guillaume jarno jean jean-vic "
    "jean-victo jean-victor joel jon jonadab jonathan juliane jurgen ken linda lodahl luiz marcelo mateya matt matthew "
    "mauro mike mimooh mo moser nathan nicu patricia paul peterm petr roman romus sergio snuatautisticido susan tess "
    "uliphant victor yen yve yves zazou bw bwh"
)
CLIPART_ARTISTS = frozenset(ARTISTS.split())


@dataclass
class Captioned:
    """One image, (channels, size, size) uint8, with what it is and what it belongs to; `weight` is its draw's."""

    pixels: np.ndarray
    names: list[str]
    kinds: list[str]
    weight: float = 1.0


def pretraining_identities(codes: Iterable[str]) -> set[str]:
    """Return those emoji codes that pretraining may see: none of the embedded dataset's val or test emoji.

    A joined sequence is dropped with any member of its class that it contains (a black cat with the cat), since
    `scripts/pack_emoji.py` deals the two to one split.
    """
    held_out = {_base(e["code"]) for e in emoji_index()["emoji"] if e["split"] != "train"}
    return {code for code in codes if _base(code) not in held_out}


def _base(code: str) -> str:
    return code.lower().split("-200d-")[0].replace("-fe0f", "")


def _square(image: Image.Image, size: int = SIZE) -> np.ndarray:
    """Return an image cut to its visible part and centred on a transparent square, (4, size, size) uint8."""
    image = image.convert("RGBA")
    box = image.getchannel("A").getbbox()
    image = image.crop(box) if box else image
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (size, size))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(square).transpose(2, 0, 1)  # (4, size, size)


def _need(path: Path, key: str, what: str) -> Path:
    if not path.exists():
        raise VlpromptError(f"pretraining needs {what}, and there is none at '{path}': set {key}=PATH")
    return path


def read_emoji_sources(noto: Path, twemoji: Path, fluent: Path) -> Iterator[Captioned]:
    """Yield every permitted emoji in every style, from the unpacked npm folders."""
    _need(noto / "emoji.json", "noto", "the unpacked npm package emoji-datasource-google 16.0.0")
    _need(twemoji / "img", "twemoji", "the unpacked npm package emoji-datasource-twitter 16.0.0")
    _need(fluent / "assets", "fluent", "the unpacked npm package @lobehub/fluent-emoji-3d 1.1.0")
    in_dataset = {e["code"] for e in emoji_index()["emoji"]}
    entries = json.loads((noto / "emoji.json").read_text(encoding="utf-8"))
    allowed = pretraining_identities(e["unified"] for e in entries)
    for entry in sorted(entries, key=lambda e: e["sort_order"]):
        if entry["unified"] not in allowed or entry["category"] == "Component":
            continue
        code = entry["unified"].lower()
        spoken = [s.replace("_", " ").replace("-", " ") for s in entry["short_names"][:2]]
        names = list(dict.fromkeys([entry["name"].lower(), *spoken]))[:MAX_NAMES]
        kinds = [*_emoji_kind(entry["subcategory"], code in in_dataset), entry["category"].lower().replace("&", "and")]
        weight = 2.0 if code in in_dataset else 0.5 if entry["category"] in ("Flags", "People & Body") else 1.0
        files = (
            noto / "img/google/64" / f"{code}.png",
            twemoji / "img/twitter/64" / f"{code}.png",
            *(fluent / "assets" / f"{c}.webp" for c in dict.fromkeys([code, code.replace("-fe0f", "")])),
        )
        for file in filter(Path.exists, files):
            yield Captioned(_square(Image.open(file)), names, kinds, weight)


def _emoji_kind(subgroup: str, in_dataset: bool) -> list[str]:
    """Return what an emoji of a Unicode subgroup may be called besides its name.

    One of the dataset's emoji is "animal", not "mammal": were the classes taught on emoji here, by more examples than
    any few-shot draw has, a learnt prompt could add nothing to the zero-shot classifier.
    """
    coarse, _, fine = subgroup.partition("-")
    if in_dataset:
        return [coarse] if coarse in ("animal", "food", "place", "transport") else []
    return [(fine or coarse).replace("-", " ")]


def clipart_caption(path: str) -> tuple[str, list[str]]:
    """Return the name and kinds that an openclipart path tells, without artists and numbers.

    >>> clipart_caption("animals/birds/flamand_bw_jean-victor_b_01.png")
    ('flamand', ['bird', 'animal'])
    """
    *folders, stem = path.removesuffix(".png").lower().split("/")
    if "cards" in folders and (match := re.fullmatch(r"[a-z]+_([cdhs])_([0-9ajqk]+)", stem)):
        suit = {"c": "clubs", "d": "diamonds", "h": "hearts", "s": "spades"}[match[1]]
        rank = {"a": "ace", "j": "jack", "q": "queen", "k": "king", "10": "ten"}.get(match[2])
        name = f"{rank or DIGITS[int(match[2])]} of {suit}"
    else:
        words: list[str] = []
        for word in re.split(r"[_\s]+", stem):
            if words and word in CLIPART_ARTISTS:
                break
            words.append(re.sub(r"\d+$", "", word))
        name = " ".join(" ".join(words).replace("-", " ").split()).strip() or folders[-1]
    kinds = [_singular(folder.replace("_", " ")) for folder in reversed(folders) if folder != "unsorted"]
    return name, kinds[:MAX_KINDS] or ["clip art"]


def _singular(words: str) -> str:
    if words.endswith(("ss", "us")):
        return words
    return words[:-3] + "y" if words.endswith("ies") else words.removesuffix("s")


def read_clipart(root: Path) -> Iterator[Captioned]:
    """Yield the openclipart images with a meaningful name; abstract series and icon themes are left out."""
    _need(root, "clipart", "the folder of Debian's openclipart-png package")
    natural = ("animals", "food", "plants", "tools", "transportation", "buildings", "recreation", "office", "education")
    for file in sorted(root.rglob("*.png")):
        path = file.relative_to(root).as_posix()
        if path.startswith(ABSTRACT_CLIPART):
            continue
        name, kinds = clipart_caption(path)
        try:
            pixels = _square(Image.open(file))
        except (OSError, Image.DecompressionBombError):  # a broken file or two, and a flag of 231 megapixels
            continue
        yield Captioned(pixels, [name], kinds, 2.0 if path.startswith(natural) else 1.0)


def read_cifar(archive: Path) -> Iterator[Captioned]:
    """Yield CIFAR-100's training images, from a zip with one folder a class or from torchvision's folder."""
    _need(archive, "cifar", "CIFAR-100's training images (a zip with one folder a class, or torchvision's folder)")
    if archive.is_dir():
        from torchvision.datasets import CIFAR100

        data = CIFAR100(archive, train=True)
        pairs = ((np.asarray(image), data.classes[label]) for image, label in data)
    else:
        pairs = _read_zip(archive)
    for image, name in pairs:
        yield Captioned(image.transpose(2, 0, 1), [name.replace("_", " ")], [SUPERCLASS_OF[name]])


def hypernyms(wordnet: Path) -> dict[str, list[str]]:
    """Return `{wnid: kinds}` of every noun of WordNet 3.0: its commonest hypernyms that CLIP knows as one token."""
    _need(wordnet, "wordnet", "WordNet 3.0's file data.noun (Debian's wordnet-base)")
    names: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    for line in wordnet.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue
        offset, _, _, count, lemma, *rest = line.split(" | ")[0].split()
        names[offset] = lemma.replace("_", " ")
        pointers = rest[2 * int(count, 16) :]  # behind the other lemmas, each with a number
        parents[offset] = [target for symbol, target in pairwise(pointers) if symbol == "@"]
    rank = {word.removesuffix("</w>"): i for word, i in get_tokenizer("ViT-B-32").encoder.items() if "</w>" in word}

    def kinds(offset: str) -> list[str]:
        chain, ahead = [], list(parents[offset])
        while ahead:
            above = ahead.pop(0)
            chain.append(names[above])
            ahead += parents[above]
        known = {name for name in chain if name in rank and name not in EMPTY_KINDS}
        return sorted(known, key=rank.__getitem__)[:MAX_KINDS]

    return {f"n{offset}": kinds(offset) for offset in names}


def read_natural(archive: Path, wordnet: Path, wanted: Container[str] | None = None) -> Iterator[Captioned]:
    """Yield ImageNet's images from a zip of `WNID/…webp` or `WNID.webp` and `names.json`.

    Without `wanted`, all but those of the classes that are kept for measuring.
    """
    _need(archive, archive.stem, "a zip of ImageNet's images by wnid")
    kinds = hypernyms(wordnet)
    kept = CHOICE_CLASSES | REPORT_CLASSES
    with zipfile.ZipFile(archive) as opened:
        spoken = json.loads(opened.read("names.json"))
        for member in sorted(n for n in opened.namelist() if n.endswith(".webp")):
            wnid = member.split("/")[0].removesuffix(".webp")
            if wnid in kept if wanted is None else wnid not in wanted:
                continue
            names = [name.strip().lower() for name in spoken[wnid].split(",")][:MAX_NAMES]
            pixels = np.asarray(Image.open(io.BytesIO(opened.read(member))).convert("RGB"))
            yield Captioned(pixels.transpose(2, 0, 1), names, kinds[wnid])


def _read_zip(archive: Path) -> Iterator[tuple[np.ndarray, str]]:
    with zipfile.ZipFile(archive) as opened:
        for member in sorted(n for n in opened.namelist() if n.endswith((".webp", ".png"))):
            image = Image.open(io.BytesIO(opened.read(member))).convert("RGB")
            yield np.asarray(image), member.split("/")[-2]


def read_plain_glyphs() -> Iterator[Captioned]:
    """Yield one plain mask (1, SIZE, SIZE) of every glyph: upright DejaVu Sans, plainer than any of the datasets'."""
    font = ImageFont.truetype(str(font_path("DejaVuSans")), 2 * SIZE)
    drawn = [
        (code, name, GLYPH_KINDS[s]) for s, names in glyph_sets().items() for name in names for code in names[name]
    ]
    drawn += [(ord("0") + value, word, "digit") for value, word in enumerate(DIGITS)]
    drawn += [(code, f"letter {chr(code).lower()}", "letter") for code in (*range(65, 91), *range(97, 123))]
    for code, name, kind in drawn:
        box = font.getbbox(chr(code))
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        ImageDraw.Draw(mask).text((-box[0], -box[1]), chr(code), fill=255, font=font)
        mask.thumbnail((SIZE - 8, SIZE - 8), Image.Resampling.LANCZOS)
        square = Image.new("L", (SIZE, SIZE))
        square.paste(mask, ((SIZE - mask.width) // 2, (SIZE - mask.height) // 2))
        names = [name, str(DIGITS.index(name))] if kind == "digit" else [name]
        yield Captioned(np.asarray(square)[None], names, [kind])


def _stack(images: list[np.ndarray]) -> torch.Tensor:
    """Return images (c, H, W) of whatever size as one uint8 tensor (N, c, S, S), S being the first one's height."""
    size = images[0].shape[1]
    pictures = [
        image
        if image.shape[1:] == (size, size)
        else np.asarray(Image.fromarray(image.transpose(1, 2, 0)).resize((size, size))).transpose(2, 0, 1)
        for image in images
    ]
    return torch.from_numpy(np.stack(pictures)).contiguous()


def prepare(target: Path, paths: Mapping[str, Path]) -> None:
    """Collect every source into one safetensors file: pixels, name and kind numbers, draw weights, concept words.

    `paths` has noto, twemoji, fluent, clipart, cifar, tiny_imagenet, imagenet_one_each and wordnet.
    """
    wordnet = paths["wordnet"]
    sources = {
        "emoji": read_emoji_sources(paths["noto"], paths["twemoji"], paths["fluent"]),
        "clipart": read_clipart(paths["clipart"]),
        "cifar": read_cifar(paths["cifar"]),
        "glyphs": read_plain_glyphs(),
        "natural": read_natural(paths["tiny_imagenet"], wordnet),
        "each": read_natural(paths["imagenet_one_each"], wordnet),
        "choice": read_natural(paths["tiny_imagenet"], wordnet, CHOICE_CLASSES),
    }
    concepts: dict[str, int] = {}
    tensors: dict[str, torch.Tensor] = {}
    for source, read in sources.items():
        images = list(read)
        tensors[f"{source}.pixels"] = _stack([i.pixels for i in images])
        tensors[f"{source}.weight"] = torch.tensor([i.weight for i in images])
        for field, width in (("names", MAX_NAMES), ("kinds", MAX_KINDS)):
            numbers = torch.full((len(images), width), -1)
            for row, image in enumerate(images):
                words = getattr(image, field)
                numbers[row, : len(words)] = torch.tensor(
                    [concepts.setdefault(w, len(concepts)) for w in words], dtype=torch.int64
                )
            tensors[f"{source}.{field}"] = numbers
        print(f"{source}: {len(images)} images, {len(concepts)} concepts so far", flush=True)
    with atomic_write(target) as temporary:
        save_file(tensors, temporary, metadata={"concepts": json.dumps(list(concepts))})


def load_corpus(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], list[str]]:
    """Return `{source: {pixels, weight, names, kinds}}` and the concepts' words, as `prepare` wrote them."""
    sources: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118, safe_open is no mapping
            source, field = key.split(".")
            sources.setdefault(source, {})[field] = file.get_tensor(key)
        return sources, json.loads(file.metadata()["concepts"])
