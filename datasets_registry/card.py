"""The format of a dataset card, and the cards that ship."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vlprompt.base.checks import Template
from vlprompt.base.files import is_relative_inside
from vlprompt.base.schema import read_as, strict
from vlprompt.base.settings_text import read_settings
from vlprompt.errors import VlpromptError

CARDS = Path(__file__).with_name("cards")
COLLECTIONS = Path(__file__).with_name("collections.yaml")


def _inside(path: str) -> str:
    if path and not is_relative_inside(path):
        raise ValueError("is a path which leads out of its folder")
    return path


def _named(url: str) -> str:
    _inside(url.rpartition("/")[2])
    return url


Place = Annotated[str, AfterValidator(_inside)]  # below the data root, an archive or torchvision's root
Address = Annotated[str, AfterValidator(_named)]


@strict()
@dataclass(frozen=True)
class Archive:
    """A file to download.

    Attributes:
        url: where it is.
        md5: the checksum that its authors or torchvision state; empty if there is none.
        into: the folder below the data root that it is unpacked or, if it is no archive, put into.
        member: the folder in the archive whose content is wanted, or an archive in it to unpack; empty takes all.
        megabytes: its approximate size in 10^6 bytes; 0 if unknown.
    """

    url: Address
    md5: str = ""
    into: Place = ""
    member: Place = ""
    megabytes: Annotated[int, Field(ge=0)] = 0


@strict()
@dataclass(frozen=True)
class Card:
    """What is known about a dataset before a file of it is opened.

    Attributes:
        name: registry name, lower case, the same as the card's file name.
        title: the name that people use.
        reader: the reader that turns the files into splits, a name in ``datasets_registry.readers``.
        version: raised whenever images, splits, class names or their order change.
        folder: the dataset's folder below the data root; empty if it needs no files.
        images: the image folder below ``folder``, which items' paths are relative to.
        other_images: image folders of other layouts, each with a folder that must be in it; the first that exists is
            used if ``images`` does not.
        aliases: other names of the dataset, for hints in errors.
        split: where train, val and test come from: ``published`` with a method's code, ``official`` by the dataset's
            authors, ``folders`` of the images, ``test only``, or ``embedded``.
        split_file: the published split, below ``folder``; ``{}`` stands for a domain's letter. If it comes with the
            package (``datasets_registry.readers.packaged``), the file is optional, and takes precedence if it exists.
        split_page: where to get the split file.
        lister: the function that finds classes and images without the split file, for ``split=generated``.
        variants: what may follow ``name/``, for a card that stands for several datasets.
        variant_counts: of each variant its ``classes``, and its images in ``train``, ``val`` and ``test``.
        class_names: folder, or other name in the files, to the name used in prompts, in label order. Long lists are
            in ``<name>.tsv`` beside the card, one class per line.
        shared_names: whether two labels may have the same name, as in ImageNet.
        description_keys: class name to its key in published files of descriptions, if the words differ.
        synonyms: class name to other names of the class, for ``names=card``.
        templates: prompt templates, each with one ``{}``; empty leaves the reader's.
        mirror: whether a mirrored image still shows its class.
        domains: names of the domains, for sets made for domain generalisation; by default those of ``letters``.
        letters: domain to the letter that names it in the split files.
        classes: number of classes.
        counts: images in ``train``, ``val`` and ``test``, and test images in the halves, ``base`` and ``new``; or their
            ``total``.
        domain_counts: images of each domain.
        approximate: whether the counts are those of the literature, from which copies of the dataset differ.
        layout: the files that are expected below the data root.
        archives: the files that a download fetches.
        torchvision: paths below torchvision's root to ours below the data root, for ``vlprompt data prepare``.
        homepage: where the images come from.
        licence: the data's licence, as its authors state it.
        citation: authors, title, venue and year.
        notes: peculiarities worth knowing.
    """

    name: str
    title: str
    reader: str
    version: int = 1
    folder: Place = ""
    images: Place = ""
    other_images: dict[str, str] = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)
    split: Literal["published", "official", "folders", "test only", "embedded"] = "embedded"
    split_file: Place = ""
    split_page: str = ""
    lister: str = ""
    variants: list[str] = field(default_factory=list)
    variant_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    class_names: dict[str, str] = field(default_factory=dict)
    description_keys: dict[str, str] = field(default_factory=dict)
    synonyms: dict[str, list[str]] = field(default_factory=dict)
    shared_names: bool = False
    templates: list[Template] = field(default_factory=list)
    mirror: bool = True
    domains: list[str] = field(default_factory=list)
    letters: dict[str, str] = field(default_factory=dict)
    classes: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    domain_counts: dict[str, int] = field(default_factory=dict)
    approximate: bool = False
    layout: str = ""
    archives: list[Archive] = field(default_factory=list)
    torchvision: dict[Place, Place] = field(default_factory=dict)
    homepage: str = ""
    licence: str = ""
    citation: str = ""
    notes: str = ""


def read_card(path: str | Path, shipped: bool = False) -> Card:
    """Read and check one card; ``shipped`` for those that come with the package.

    Raises:
        VlpromptError: the file is not YAML, a key is unknown, missing or of the wrong type, a template does not
            have one ``{}``, the kind of split is unknown, the name is not the file's, or a path leaves its folder.
    """
    path = Path(path)
    values = read_settings(path, "facts of a dataset", shipped=shipped)
    known = [each.name for cls in (Card, Archive) for each in fields(cls)]
    card = read_as(Card, values, f"the dataset card {path} is not valid", known)
    if card.name != path.stem:
        raise VlpromptError(f"the dataset card {path} is named '{card.name}': name and file name must be the same")
    names = path.with_suffix(".tsv")
    if names.exists():
        card = replace(card, class_names=_read_names(names))
    return card if card.domains else replace(card, domains=list(card.letters))


def locate_images(card: Card, folder: Path) -> Card:
    """Return the card with the image folder that exists below the dataset's folder, if it has another known layout."""
    if not (folder / card.images).is_dir():
        for images, must_have in card.other_images.items():
            if (folder / images / must_have).is_dir():
                return replace(card, images=images)
    return card


def _read_names(path: Path) -> dict[str, str]:
    """Read a table of two columns: folder, and name used in prompts."""
    try:
        pairs = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise VlpromptError(f"the class names {path} cannot be read ({error})") from error
    odd = next((number for number, pair in enumerate(pairs, 1) if len(pair) != 2), None)
    if odd:
        raise VlpromptError(f"line {odd} of {path} must hold a folder, a tab and a name")
    return dict(pairs)


def card_names() -> list[str]:
    """Return the sorted names of the cards that ship."""
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


@cache
def load_card(name: str) -> Card:
    """Return the shipped card called ``name``, which must be one of ``card_names()``."""
    return read_card(CARDS / f"{name}.yaml", shipped=True)


@cache
def collections() -> dict[str, tuple[str, ...]]:
    """Return the named lists of datasets that papers report on together."""
    return {name: tuple(members) for name, members in read_settings(COLLECTIONS).items()}
