"""Pack the embedded `emoji` dataset from three npm packages: `python scripts/pack_emoji.py NOTO TWEMOJI FLUENT`.

The arguments are the unpacked folders of `emoji-datasource-google` 16.0.0, `emoji-datasource-twitter` 16.0.0 and
`@lobehub/fluent-emoji-3d` 1.1.0 (`npm pack NAME@VERSION`, then `tar xzf`). The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import zipfile
from pathlib import Path

from PIL import Image

from vlprompt.base.files import atomic_write

TARGET = Path(__file__).resolve().parent.parent / "vlprompt" / "demo" / "emoji.zip"
SIZE = 64
QUALITY = 82
MAX_TEST = 16  # identities per class; keeps large subgroups from dominating the test accuracy
MIN_TRAIN, MIN_VAL = 6, 2  # identities per class; six in three styles make 18 images, enough for 16 shots

SUBGROUPS = {
    "transport-air": "air transport",
    "animal-bird": "bird",
    "book-paper": "book",
    "animal-bug": "bug",
    "place-building": "building",
    "clothing": "clothing",
    "drink": "drink",
    "plant-flower": "flower",
    "food-fruit": "fruit",
    "transport-ground": "ground transport",
    "household": "household item",
    "animal-mammal": "mammal",
    "animal-marine": "marine animal",
    "musical-instrument": "musical instrument",
    "office": "office supply",
    "plant-other": "plant",
    "food-prepared": "prepared food",
    "sport": "sport",
    "food-sweet": "sweet food",
    "tool": "tool",
    "food-vegetable": "vegetable",
    "sky & weather": "weather",
}


def family(code: str) -> str:
    """Return the identity that a joined sequence belongs to: a black cat (cat + black square) splits with the cat."""
    return code.split("-200d-")[0].replace("-fe0f", "")


def split_families(families: list[str]) -> dict[str, str]:
    """Split one class's identities into train, val and test by the hash of their code points."""
    n = len(families)
    n_test = min(MAX_TEST, round(0.45 * n), n - MIN_TRAIN - MIN_VAL)
    n_val = max(MIN_VAL, min(4, n // 10))
    order = sorted(families, key=lambda f: hashlib.sha256(f"emoji-split/{f}".encode()).digest())
    return {f: "test" if i < n_test else "val" if i < n_test + n_val else "train" for i, f in enumerate(order)}


def find_image(style: str, folder: Path, code: str) -> Path | None:
    """Return the image of a code in one package, or None if that style lacks it."""
    if style == "fluent":
        names = [f"assets/{code}.webp", f"assets/{code.replace('-fe0f', '')}.webp"]
    else:
        names = [f"img/{'google' if style == 'noto' else 'twitter'}/64/{code}.png"]
    return next((folder / n for n in names if (folder / n).exists()), None)


def encode(path: Path) -> bytes:
    """Return an image on white as WebP of SIZE pixels."""
    image = Image.open(path).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    buffer = io.BytesIO()
    paper.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


def store(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Add a file with a fixed date and mode, so that the archive's bytes depend on its content alone."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    entry.create_system = 3
    archive.writestr(entry, data, zipfile.ZIP_STORED)


def pack(styles: dict[str, Path], target: Path) -> None:
    """Write the archive: WebP images as `style/code.webp` and `index.json`, which lists every emoji."""
    entries = json.loads((styles["noto"] / "emoji.json").read_text(encoding="utf-8"))
    entries = sorted((e for e in entries if e["subcategory"] in SUBGROUPS), key=lambda e: e["sort_order"])
    members: dict[str, set[str]] = {}
    for entry in entries:
        members.setdefault(entry["subcategory"], set()).add(family(entry["unified"].lower()))
    split_of = {f: s for families in members.values() for f, s in split_families(sorted(families)).items()}

    emoji, images = [], {}
    for entry in entries:
        code = entry["unified"].lower()
        paths = {style: find_image(style, folder, code) for style, folder in styles.items()}
        images.update({f"{style}/{code}.webp": encode(path) for style, path in paths.items() if path})
        emoji.append(
            {
                "code": code,
                "name": entry["name"].lower(),
                "class": SUBGROUPS[entry["subcategory"]],
                "split": split_of[family(code)],
                "styles": [style for style, path in paths.items() if path],
            }
        )
    index = {
        "version": 1,
        "size": SIZE,
        "classes": sorted(SUBGROUPS.values()),
        "licenses": {
            "noto": "Apache-2.0, Google (emoji-datasource-google 16.0.0)",
            "twemoji": "CC-BY-4.0, Twitter and contributors (emoji-datasource-twitter 16.0.0)",
            "fluent": "MIT, Microsoft (@lobehub/fluent-emoji-3d 1.1.0)",
        },
        "emoji": emoji,
    }
    with atomic_write(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        store(archive, "index.json", json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode())
        for name in sorted(images):
            store(archive, name, images[name])
    print(f"{target}: {len(emoji)} emoji, {len(images)} images, {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for style in ("noto", "twemoji", "fluent"):
        parser.add_argument(style, type=Path, help=f"unpacked npm folder of the {style} style")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    pack({s: getattr(arguments, s) for s in ("noto", "twemoji", "fluent")}, arguments.target)
