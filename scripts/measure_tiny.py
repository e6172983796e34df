"""Measure `vlprompt-tiny` for its model card: `python -m scripts.measure_tiny [--folder FOLDER] [--data ZIPS] …`.

Prints two Markdown tables: what the model is held to, and the zero-shot accuracy on every embedded dataset.
`--data` is a folder with eurosat.zip (`2750/CLASS/…`), pacs96.zip (`images/DOMAIN/CLASS/…`) and tiny_imagenet.zip
(`WNID/…`); what it lacks is left out. `--every N` takes every N-th test image. `--methods` adds the slow one: 16-shot
base-to-new on emoji by every learnt method, seed 1.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

import vlprompt
from datasets_registry import load_split
from scripts.pretrain.sources import CHOICE_CLASSES, REPORT_CLASSES
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.tiny import FOLDER, load_tiny
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.demo.glyphs import MINI11, MINI_DG4, read_glyphs

EVERYDAY = Path(__file__).with_name("everyday_names.txt")
PHOTO = "a photo of a {}."
PROBE_IMAGES = 2000


class Labelled(NamedTuple):
    """Features (N, D), normalised, and labels (N,)."""

    features: torch.Tensor
    labels: torch.Tensor

    def part(self, start: int, step: int) -> Labelled:
        """Return every `step`-th of them, from `start` on."""
        return Labelled(self.features[start::step], self.labels[start::step])


@torch.no_grad()
def encode(clip: FrozenCLIP, images: Iterable[Image.Image], batch: int = 256) -> torch.Tensor:
    """Return the images' normalised features (N, D)."""
    parts, waiting = [], []
    for image in images:
        waiting.append(clip.preprocess(image.convert("RGB")))
        if len(waiting) == batch:
            parts.append(clip.model.encode_image(torch.stack(waiting), normalize=True))
            waiting = []
    if waiting:
        parts.append(clip.model.encode_image(torch.stack(waiting), normalize=True))
    return torch.cat(parts)


def of_items(clip: FrozenCLIP, splits: DatasetSplits, items: Sequence[Item]) -> Labelled:
    """Return the features of a dataset's items."""
    features = encode(clip, (splits.open_image(item) for item in items))
    return Labelled(features, torch.tensor([item.label for item in items]))


def of_zip(clip: FrozenCLIP, archive: Path, folders: Sequence[str], every: int) -> Labelled:
    """Return the features of the images in a zip's folders, whose numbers are the labels."""
    with zipfile.ZipFile(archive) as opened:
        names = sorted(opened.namelist())
        pairs = [
            (name, label)
            for label, folder in enumerate(folders)
            for name in [n for n in names if n.startswith(f"{folder}/") and not n.endswith("/")][::every]
        ]
        features = encode(clip, (Image.open(io.BytesIO(opened.read(name))) for name, _ in pairs))
    return Labelled(features, torch.tensor([label for _, label in pairs]))


@torch.no_grad()
def classifier(clip: FrozenCLIP, names: Sequence[str], template: str) -> torch.Tensor:
    """Return the names' normalised text features (C, D)."""
    texts = clip.tokenizer([template.format(name) for name in names], context_length=clip.context_length)
    return clip.model.encode_text(texts, normalize=True)


def zero_shot(clip: FrozenCLIP, given: Labelled, names: Sequence[str], template: str) -> list[float]:
    """Return the accuracy in percent over all classes, among the base ones and among the new ones."""
    scores, labels = given.features @ classifier(clip, names, template).T, given.labels
    middle = (len(names) + 1) // 2
    base = labels < middle
    right = [
        scores.argmax(1) == labels,
        scores[base, :middle].argmax(1) == labels[base],
        scores[~base, middle:].argmax(1) == labels[~base] - middle,
    ]
    return [100 * part.float().mean().item() for part in right]


def linear_probe(train: Labelled, test: Labelled) -> float:
    """Return the test accuracy of logistic regression on features, in percent."""
    probe = LogisticRegression(max_iter=2000, C=10.0).fit(train.features.numpy(), train.labels.numpy())
    return 100 * float(probe.score(test.features.numpy(), test.labels.numpy()))


def equal_pairs(clip: FrozenCLIP) -> tuple[int, int]:
    """Return how many pairs of everyday names have equal text features, and of how many."""
    features = classifier(clip, EVERYDAY.read_text(encoding="utf-8").split(), PHOTO)
    pairs = list(combinations(features, 2))
    return sum(torch.allclose(a, b, atol=1e-6) for a, b in pairs), len(pairs)


def measure_embedded(clip: FrozenCLIP, every: int) -> tuple[list[str], dict[str, str]]:
    """Return the table's lines of the embedded datasets, and what the aims say of them."""
    lines, aims, good = [], {}, 0
    for name in ["emoji", *MINI11, *MINI_DG4, "digits"]:
        splits = read_glyphs(name) if name.startswith("glyphs/") else load_split(name)
        test = of_items(clip, splits, list(splits.test)[::every])
        classes = len(splits.class_names)
        for template in dict.fromkeys([splits.templates[0], PHOTO]):
            numbers = zero_shot(clip, test, splits.class_names, template)
            lines.append(f"| {name} | {classes} | {100 / classes:.1f} | `{template}` | {row(numbers)} |")
            if template == splits.templates[0]:
                good += name in MINI11 and numbers[0] >= 300 / classes
                aims |= {"emoji, zero-shot, 22 classes": f"{numbers[0]:.1f}"} if name == "emoji" else {}
        if name == "emoji":
            found = linear_probe(of_items(clip, splits, splits.train), test)
            aims["emoji, linear probe"] = f"{found:.1f}"
    return lines, aims | {"`mini11`: sets at 3 × chance or more, zero-shot": f"{good} of {len(MINI11)}"}


def row(numbers: Sequence[float]) -> str:
    """Return numbers as cells."""
    return " | ".join(f"{number:.1f}" for number in numbers)


def measure_eurosat(clip: FrozenCLIP, archive: Path, every: int) -> tuple[list[str], dict[str, str]]:
    """Return the table's lines of EuroSAT, and what the aims say of it: zero-shot, CoOp and a linear probe."""
    with tempfile.TemporaryDirectory() as root:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(Path(root) / "eurosat")
        splits = load_split("eurosat", root)
        test = of_items(clip, splits, list(splits.test)[::every])
        drawn = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(1))[:PROBE_IMAGES]
        train = of_items(clip, splits, [splits.train[i] for i in drawn.tolist()])
        few_shot = {"protocol": "few_shot", "shots": 16, "epochs": 100, "seed": 1}
        result = vlprompt.run(clip=clip, method="coop", dataset="eurosat", data_root=root, output=root, **few_shot)
    templates = dict.fromkeys([splits.templates[0], PHOTO])
    found = {template: zero_shot(clip, test, splits.class_names, template) for template in templates}
    numbers = [found[splits.templates[0]][0], result.rows[0].accuracy, linear_probe(train, test)]
    lines = [f"| eurosat | 10 | 10.0 | `{template}` | {row(cells)} |" for template, cells in found.items()]
    what = f"EuroSAT zero-shot, 10 classes; CoOp, 16 shots, 100 epochs; linear probe on {PROBE_IMAGES:,} images"
    return lines, {what: "; ".join(f"{number:.1f}" for number in numbers)}


def measure_pacs(clip: FrozenCLIP, archive: Path, every: int) -> dict[str, str]:
    """Return the zero-shot accuracy in each domain of PACS."""
    names = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    found = {}
    for domain in ("photo", "art_painting", "cartoon", "sketch"):
        given = of_zip(clip, archive, [f"images/{domain}/{name}" for name in names], every)
        found[f"PACS {domain.replace('_', ' ')} domain, zero-shot, 7 classes"] = (
            f"{zero_shot(clip, given, names, PHOTO)[0]:.1f}"
        )
    return found


def measure_natural(clip: FrozenCLIP, archive: Path, every: int) -> dict[str, str]:
    """Return zero-shot accuracies and linear probes (half of the images) on classes that pretraining did not see."""
    found = {}
    for what, classes in (("chosen by", CHOICE_CLASSES), ("reported", REPORT_CLASSES)):
        given = of_zip(clip, archive, list(classes), every)
        numbers = [zero_shot(clip, given, list(classes.values()), PHOTO)[0]]
        numbers.append(linear_probe(given.part(0, 2), given.part(1, 2)))
        name = f"Tiny-ImageNet, 10 classes outside pretraining ({what}), zero-shot; linear probe on half"
        found[name] = "; ".join(f"{number:.1f}" for number in numbers)
    return found


def measure_methods(clip: FrozenCLIP) -> dict[str, str]:
    """Return which learnt methods have a harmonic mean above zero-shot's, 16 shots, emoji, base to new, seed 1."""
    better, every = [], []
    for name in vlprompt.list_methods():
        with tempfile.TemporaryDirectory() as output:
            result = vlprompt.run(clip=clip, method=name, dataset="emoji", shots=16, seed=1, output=output)
        if not result.has_seeds:
            continue
        ours, plain = (
            2 / sum(1 / max(getattr(test, field), 1e-9) for test in result.tests) for field in ("accuracy", "zero_shot")
        )
        every.append(name)
        better += [f"{name} ({ours:.1f} over {plain:.1f})"] if ours > plain else []
        print(f"{name}: H {ours:.1f}, zero-shot's {plain:.1f}", flush=True)
    said = ", ".join(better) or "none"
    return {"16-shot base-to-new on emoji: methods whose H beats zero-shot's": f"{len(better)} of {len(every)}: {said}"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the model's two files")
    parser.add_argument("--data", type=Path, help="the folder of eurosat.zip, pacs96.zip and tiny_imagenet.zip")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--methods", action="store_true", help="every learnt method on emoji too")
    arguments = parser.parse_args()
    began = time.time()
    model, tokenizer = load_tiny(arguments.folder)
    clip = vlprompt.load_clip(model, tokenizer=tokenizer)
    same, pairs = equal_pairs(clip)
    aims = {"pairs of everyday names with equal text features": f"{same} of {pairs}"}
    lines, found = measure_embedded(clip, arguments.every)
    aims |= found
    if arguments.data and (archive := arguments.data / "eurosat.zip").exists():
        of_eurosat, found = measure_eurosat(clip, archive, arguments.every)
        lines, aims = lines + of_eurosat, aims | found
    for archive, measure in (("pacs96.zip", measure_pacs), ("tiny_imagenet.zip", measure_natural)):
        for folder in (arguments.data, arguments.data / "natural") if arguments.data else ():
            aims |= measure(clip, folder / archive, arguments.every) if (folder / archive).exists() else {}
    aims |= measure_methods(clip) if arguments.methods else {}
    print("| what | measured |\n| --- | ---: |")
    print("\n".join(f"| {what} | {value} |" for what, value in aims.items()))
    print("\n| dataset | classes | chance | template | zero-shot: all | base | new |\n|---|---|---|---|---|---|---|")
    print("\n".join(lines))
    print(f"\n{time.time() - began:.0f} seconds")


if __name__ == "__main__":
    main()
