"""Measure `vlprompt-tiny` for its model card: `python scripts/measure_tiny.py [--data FOLDER] [--every N]`.

Zero-shot accuracy on the embedded datasets and, where FOLDER holds it, EuroSAT; a linear probe on emoji. Prints a
Markdown table. `--every N` takes every N-th test image.
"""

from __future__ import annotations

import argparse

import torch
from open_clip import SimpleTokenizer
from open_clip.model import CLIP
from sklearn.linear_model import LogisticRegression
from torchvision.transforms import v2

from datasets_registry import load_split
from vlprompt.clip.tiny import load_tiny
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.demo.glyphs import MINI11, MINI_DG4, read_glyphs


def encode_images(model: CLIP, splits: DatasetSplits, items: list[Item], batch: int = 256) -> torch.Tensor:
    """Return the items' normalised features (N, D)."""
    preprocessing = model.visual.preprocess_cfg
    resize = v2.Resize(preprocessing["size"], v2.InterpolationMode.BICUBIC)
    normalise = v2.Normalize(preprocessing["mean"], preprocessing["std"])
    transform = v2.Compose([resize, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalise])
    parts = []
    for start in range(0, len(items), batch):
        images = torch.stack([transform(splits.open_image(item)) for item in items[start : start + batch]])
        parts.append(model.encode_image(images, normalize=True))
    return torch.cat(parts)


def zero_shot(model: CLIP, tokenizer: SimpleTokenizer, splits: DatasetSplits, template: str, every: int) -> list[float]:
    """Return the accuracy in percent over all classes, among the base ones and among the new ones."""
    items = list(splits.test)[::every]
    images = encode_images(model, splits, items)
    texts = model.encode_text(tokenizer([template.format(name) for name in splits.class_names]), normalize=True)
    labels = torch.tensor([item.label for item in items])
    scores, middle = images @ texts.T, (len(splits.class_names) + 1) // 2
    base = labels < middle
    right = [
        scores.argmax(1) == labels,
        scores[base, :middle].argmax(1) == labels[base],
        scores[~base, middle:].argmax(1) == labels[~base] - middle,
    ]
    return [100 * part.float().mean().item() for part in right]


def linear_probe(model: CLIP, splits: DatasetSplits) -> float:
    """Return the test accuracy in percent of logistic regression on the features of the whole train split."""
    train, test = (encode_images(model, splits, list(part)).numpy() for part in (splits.train, splits.test))
    probe = LogisticRegression(max_iter=2000, C=10.0).fit(train, [item.label for item in splits.train])
    return 100 * probe.score(test, [item.label for item in splits.test])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="the folder that holds eurosat/")
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    model, tokenizer = load_tiny()
    print("| dataset | classes | chance | template | zero-shot: all | base | new |\n|---|---|---|---|---|---|---|")
    names = ["emoji", *MINI11, *MINI_DG4, "digits"] + (["eurosat"] if arguments.data else [])
    for name in names:
        splits = read_glyphs(name) if name.startswith("glyphs/") else load_split(name, arguments.data)
        for template in dict.fromkeys([splits.templates[0], "a photo of a {}."]):
            numbers = zero_shot(model, tokenizer, splits, template, arguments.every)
            classes = len(splits.class_names)
            cells = [name, classes, f"{100 / classes:.1f}", f"`{template}`", *(f"{n:.1f}" for n in numbers)]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        if name == "emoji":
            print(
                f"| emoji, linear probe | {classes} | {100 / classes:.1f} | | {linear_probe(model, splits):.1f} | | |"
            )


if __name__ == "__main__":
    main()
