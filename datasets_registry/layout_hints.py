"""Hints for a dataset that is not where it is expected: beside, below or above it, or under a similar name."""

from __future__ import annotations

from pathlib import Path

from datasets_registry.acquire import how_to_get
from datasets_registry.card import Card, card_names, load_card
from vlprompt.data.listing import folders, similar_name
from vlprompt.errors import VlpromptError

LOOKED_AT = 200  # the number of folders that are searched, at most
COMMON = {"", "images", "train", "test"}  # names of image folders that many datasets have


def where_or_how(card: Card, folder: Path) -> str:
    """Return where a dataset's files seem to be instead of in ``folder`` and what to do, or how to get them."""
    return find_elsewhere(card, folder) or how_to_get(card)


def find_elsewhere(card: Card, folder: Path) -> str:
    """Return a phrase that says where a dataset seems to be and what to do; empty if it is not found nearby.

    Args:
        card: the dataset's card.
        folder: where it is expected, ``data_root / card.folder``.
    """
    root = folder.parent
    try:
        return (
            _prepared_by_torchvision(card, root)
            or (_of_folder(card, folder) if folder.is_dir() else _of_root(card, root))
            or ""
        )
    except VlpromptError:  # a folder without permission to read it
        return ""


def _prepared_by_torchvision(card: Card, root: Path) -> str:
    theirs = [path for path, ours in card.torchvision.items() if path != ours and (root / path).exists()]
    if not theirs:
        return ""
    return (
        f"torchvision's layout is there, {root / theirs[0]}: vlprompt data prepare {card.name} from={root} "
        f"data_root={root}"
    )


def _of_root(card: Card, root: Path) -> str:
    """Search around a data root that lacks the dataset's folder."""
    if not root.is_dir():
        return ""
    other = similar_name(card.folder, below := folders(root))
    if other:
        return f"{root / other} is there: rename it to {card.folder}"
    if root.name.lower() in (card.folder.lower(), card.name):
        advice = f"data_root={root.parent}" if root.name == card.folder else f"rename it to {card.folder}"
        return f"data_root={root} is the dataset's own folder, not the one that holds it: {advice}"
    if card.images not in COMMON and (root / card.images).is_dir():
        return f"its image folder {root / card.images} is there: put it into {root / card.folder}"
    inner = next((name for name in below[:LOOKED_AT] if (root / name / card.folder).is_dir()), None)
    return f"{root / inner / card.folder} is there: data_root={root / inner}" if inner else ""


def _of_folder(card: Card, folder: Path) -> str:
    """Search in the dataset's folder, which lacks its image folder."""
    other = similar_name(card.images, below := folders(folder))
    if other:
        return f"{folder / other} is there: rename it to {card.images}"
    inner = next((name for name in below[:LOOKED_AT] if (folder / name / card.images).is_dir()), None)
    return f"{folder / inner / card.images} is there: move what is in {folder / inner} up by one" if inner else ""


def hint_folder(folder: Path) -> str:
    """Return a hint for a folder without registered datasets: it may be one itself, or hold the user's own images."""
    for card in map(load_card, card_names()):
        if card.folder and (found := find_elsewhere(card, folder / card.folder)):
            return f"{card.name}? {found}"
    if folders(folder):
        return f"images of your own are checked by vlprompt data check folder:{folder}"
    return "vlprompt data info NAME shows its layout"
