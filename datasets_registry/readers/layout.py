"""Which folders are splits and which are classes, and defects of folders where that is unclear."""

from __future__ import annotations

from pathlib import Path

from datasets_registry.readers.base import PART_NAMES
from vlprompt.data.listing import folders, loose_images
from vlprompt.data.splits import PARTS
from vlprompt.errors import VlpromptError

LAYOUT = "it needs one sub-folder of images per class, or such sub-folders in train/ and test/ (and val/)"
ALSO_A_CLASS = "train"  # the one word for a split that may also be a class, beside bus and car


def find_parts(image_dir: Path) -> dict[str, str]:
    """Return the folder of each part (train, val, test), by ``PART_NAMES`` in any case; none if all are classes.

    Raises:
        VlpromptError: there are other folders beside splits, a split has no class folders, two are for one part, there
            is no train, or nothing but train.
    """
    below = folders(image_dir)
    words = [name for name in below if name.lower() in PART_NAMES]
    others = [name for name in below if name not in words]
    if not words:
        return {}
    if others:
        if [word.lower() for word in words] == [ALSO_A_CLASS] and not folders(image_dir / words[0]):
            return {}
        raise VlpromptError(
            f"{image_dir} holds {', '.join(words)}, which name{'s a split' if len(words) == 1 else ' splits'}, and "
            f"{_some(others)}, which {'does' if len(others) == 1 else 'do'} not: remove what is not a split, or "
            "rename what is a class"
        )
    parts: dict[str, str] = {}
    for word in words:
        part = PART_NAMES[word.lower()]
        if part in parts:
            raise VlpromptError(f"{image_dir} holds {parts[part]} and {word}, both for {part}: put them together")
        parts[part] = word
        if not folders(image_dir / word):
            count = len(loose_images(image_dir / word))
            raise VlpromptError(
                f"{image_dir / word} holds {count} images and no class folders, and its name says that it is a split: "
                "sort them into class folders, or move it away"
            )
    if "train" not in parts:
        raise VlpromptError(f"{image_dir} holds {_some(words)} and no train: add it, or give the folder in it")
    if len(parts) == 1:
        raise VlpromptError(
            f"{image_dir} holds {parts['train']} and nothing to test on: add test, or give "
            f"{image_dir / parts['train']}, which is then split"
        )
    return {part: parts[part] for part in PARTS if part in parts}


def nesting_defects(image_dir: Path, classes: list[str]) -> list[str]:
    """Return a sentence for each folder that is no class: one that contains all others, or that contains splits."""
    split = [key for key in classes if any(name.lower() in PART_NAMES for name in folders(image_dir / key))]
    if len(classes) == 1 and folders(image_dir / classes[0]):
        inner = image_dir / classes[0]
        return [f"{image_dir} holds one folder, {classes[0]}, with folders in it: give {inner}"]
    if split:
        inside = next(n for n in folders(image_dir / split[0]) if n.lower() in PART_NAMES)
        return [
            f"{len(split)} folders in {image_dir} hold splits, such as {split[0]}/{inside}: put the splits above the "
            f"classes ({inside}/{split[0]}), or give one of the folders"
        ]
    return []


def nesting_notes(image_dir: Path, classes: list[str]) -> list[str]:
    """Return sentences about images beside the class folders, and about folders inside them."""
    notes = []
    loose = loose_images(image_dir)
    if loose:
        are = "images are" if len(loose) > 1 else "image is"
        notes.append(f"{len(loose)} {are} left out, not being in a class folder but in {image_dir}: {_some(loose)}")
    deeper = [key for key in classes if not loose_images(image_dir / key)]
    if deeper:
        inner = folders(image_dir / deeper[0])[0]
        notes.append(
            f"{len(deeper)} of {len(classes)} class folders contain images only in sub-folders, such as "
            f"{deeper[0]}/{inner}, which do not count as classes: is {image_dir} one folder too high?"
        )
    return notes


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
