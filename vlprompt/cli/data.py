"""List, inspect, check, download or prepare datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from datasets_registry.acquire import download_dataset, prepare_dataset
from datasets_registry.card import Card, load_card, locate_images
from datasets_registry.check import Report, check_dataset, class_hash, datasets_below
from datasets_registry.layout_hints import hint_folder
from datasets_registry.listed import download_size, find_card, list_collections, list_datasets
from datasets_registry.readers.packaged import has_packaged, split_words
from vlprompt.base.reporter import Reporter, make_console
from vlprompt.cli._shared import (
    backbone_settings,
    check_keys,
    command,
    flag_setting,
    number_setting,
    parse,
    split_setting,
)
from vlprompt.clip.catalog import TINY
from vlprompt.errors import VlpromptError, nearest

if TYPE_CHECKING:
    from vlprompt.clip.frozen import FrozenCLIP

USAGE = """vlprompt data list [PATTERN | COLLECTION]
vlprompt data info NAME
vlprompt data check NAME data_root=DIR [split=published|generated] [follow_links=true] [lines=50] [--deep]
                    [backbone=NAME [pretrained=TAG]]
vlprompt data check DIR [--deep]                      every registered dataset that lies below DIR
vlprompt data download NAME data_root=DIR
vlprompt data prepare NAME from=DIR data_root=DIR [mode=link|move]

check prints one line per problem and exits with status 1 if there is any; --deep reads every image. It also takes
folder:PATH, csv:PATH, json:PATH and wds:PATTERN as NAME, and for these it lists the class names that the backbone
(vlprompt-tiny by default) cannot tell apart. prepare converts torchvision's layout to ours, and extracts frames from
UCF101's videos (from=UCF-101)."""
KEYS = {
    "list": (),
    "info": (),
    "check": ("data_root", "deep", "split", "follow_links", "lines", "backbone", "pretrained"),
    "download": ("data_root",),
    "prepare": ("from", "data_root", "mode"),
}
LINES = 50  # how many defects of a dataset are shown
CLASSES, FEWEST = 20, 3  # how many of its first classes are shown, and of the smallest


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """List, describe, check, download or prepare datasets."""
    arguments = parse(argv, words=2, switches=("deep", "follow_links"))
    verb, *names = arguments.words or ("",)
    if verb not in KEYS:
        raise VlpromptError(f"say what to do with data: {nearest(verb, KEYS) if verb else ', '.join(KEYS)}")
    check_keys(arguments.settings, KEYS[verb])
    if not names and verb != "list":
        own = ", folder:PATH for images of your own, or a folder that holds datasets" if verb == "check" else ""
        raise VlpromptError(f"say which dataset: vlprompt data {verb} NAME, a name from vlprompt data list{own}")
    reporter = Reporter("--quiet" in arguments.flags)
    return COMMANDS[verb](names[0] if names else "*", arguments.settings, reporter)


def show_list(pattern: str, settings: dict[str, Any], reporter: Reporter) -> int:
    """Print the datasets that match a pattern, and the collections."""
    names = list_datasets(pattern)
    if not names:
        if not set(pattern) & set("*?["):
            find_card(pattern)  # knows other names of the datasets
        raise VlpromptError(
            f"no dataset matches '{pattern}': {nearest(pattern, [*list_datasets(), *list_collections()])}"
        )
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "title", "classes", "train", "val", "test", "split", "download"):
        table.add_column(heading, justify="right" if heading in ("classes", "train", "val", "test") else "left")
    for name in names:
        card = find_card(name)[0]
        counts = [f"{card.counts[p]:,}" if p in card.counts else "" for p in ("train", "val", "test")]
        offered = "embedded" if not card.folder else download_size(card) or "yes" if card.archives else "by hand"
        table.add_row(name, card.title, str(card.classes or ""), *counts, split_words(card), offered)
    console = make_console()
    console.print(table)
    if pattern == "*":
        console.print(f"\ncollections: {', '.join(list_collections())}", markup=False)
    return 0


def show_info(name: str, settings: dict[str, Any], reporter: Reporter) -> int:
    """Print what a dataset's card says."""
    card = find_card(name)[0]
    console = make_console()
    for key, value in card_facts(card):
        console.print(f"{key:<12} {value}", markup=False, soft_wrap=True)
    return 0


def card_facts(card: Card) -> list[tuple[str, str]]:
    """Return the facts on a card as pairs of a heading and a text."""
    about = "≈ " if card.approximate else ""
    counts = about + ", ".join(f"{part} {count:,}" for part, count in card.counts.items())
    names = list(card.class_names.values())
    shown = ", ".join(names[:6]) + (f", … ({len(names)} in label order, hash {class_hash(names)})" if names else "")
    facts = {
        "name": card.name + (f"/{{{','.join(card.variants)}}}" if card.variants else ""),
        "title": card.title,
        "classes": f"{card.classes}: {shown}" if names else str(card.classes or ""),
        "images": counts if card.counts else "",
        "domains": ", ".join(
            f"{d} ({card.domain_counts[d]:,})" if d in card.domain_counts else d for d in card.domains
        ),
        "template": " | ".join(card.templates),
        "split": card.split + split_place(card),
        "get it": "embedded, nothing to get"
        if not card.folder
        else f"vlprompt data download {card.name} data_root=DIR"
        if card.archives
        else card.homepage,
        "layout": card.layout.strip().replace("\n", "\n" + " " * 13),
        "homepage": card.homepage,
        "licence": card.licence,
        "citation": card.citation,
        "notes": card.notes,
    }
    return [(key, value) for key, value in facts.items() if value]


def split_place(card: Card) -> str:
    """Return where a published split is or comes from, as a phrase after its kind."""
    if not card.split_file:
        return ""
    file = f"{card.folder}/{card.split_file}"
    if has_packaged(card.name):
        return f", included (a file {file} is used in its place)"
    return f", {file} from {card.split_page}"


def run_check(name: str, settings: dict[str, Any], reporter: Reporter) -> int:
    """Check a dataset, or all below a folder."""
    root = settings.get("data_root")
    is_root = root is None and ":" not in name and Path(name).expanduser().is_dir()
    names = datasets_below(name) if is_root else [name]
    if not names:
        raise VlpromptError(f"no folder of a registered dataset is in {name}: {hint_folder(Path(name).expanduser())}")
    reports, clip = [], _clip(settings) if "backbone" in settings or ":" in name else None
    for each in names:
        with reporter.bar(f"reading {each}", lines=2) as update:
            report = check_dataset(
                each,
                name if is_root else root,
                deep=flag_setting(settings, "deep"),
                split=split_setting(settings),
                follow_links=flag_setting(settings, "follow_links"),
                progress=update,
                clip=clip,
            )
            reports.append(report)
        show_report(reports[-1], number_setting(settings, "lines", 0) or LINES, reporter.console)
    return int(any(report.defects for report in reports))


def show_report(report: Report, lines: int, console: Any) -> None:
    """Print a dataset's state, and its defects one per line."""
    if report.counts:
        counts = ", ".join(f"{part} {count:,}" for part, count in report.counts.items())
        read = f"; {report.opened:,} images read" if report.opened else ""
        state = f"{report.classes} classes (hash {report.class_hash}), {counts}, {report.source} split{read}"
    else:
        state = "found, but cannot be loaded" if report.found else "not found"
    good = "ok" if not report.defects else f"{len(report.defects)} defects" if len(report.defects) > 1 else "1 defect"
    console.print(f"{report.name}: {good}; {state}", markup=False, soft_wrap=True)
    for line in (_classes(report), *(f"note: {note}" for note in report.notes)):
        if line:
            console.print(f"  {' '.join(line.split())}", markup=False, soft_wrap=True)
    for defect in report.defects[:lines]:
        console.print(f"  {' '.join(defect.split())}", markup=False, soft_wrap=True)
    if len(report.defects) > lines:
        console.print(f"  and {len(report.defects) - lines:,} more (lines=N shows N)", markup=False, soft_wrap=True)


def _clip(settings: dict[str, Any]) -> FrozenCLIP:
    """The model that class names are checked for: the one in the settings, or the default one."""
    from vlprompt.clip.loading import load_clip

    return load_clip(*backbone_settings({"backbone": TINY} | settings), device="cpu")


def _classes(report: Report) -> str:
    """The first classes of a user's own dataset and the smallest ones, with their numbers of images."""
    classes = [f"{name} {count:,}" for name, count in report.classes_of_own.items()]
    if len(classes) <= CLASSES:
        return f"classes: {', '.join(classes)}" if classes else ""
    fewest = sorted(report.classes_of_own.items(), key=lambda pair: pair[1])[:FEWEST]
    smallest = ", ".join(f"{name} {count:,}" for name, count in fewest)
    return f"classes: {', '.join(classes[:CLASSES])} and {len(classes) - CLASSES:,} more; the fewest have {smallest}"


def run_download(name: str, settings: dict[str, Any], reporter: Reporter) -> int:
    """Fetch a dataset's images, and say what is left to do by hand."""
    card, root = _registered(name, "download"), _root(settings)
    card = locate_images(card, root / card.folder)
    images = root / card.folder / card.images
    if images.is_dir() and card.images:
        reporter.say(f"{images} is already there, nothing to download (vlprompt data check {name} data_root={root})")
    elif card.archives:
        with reporter.bar(f"downloading {name}") as update:
            download_dataset(card, root, lambda done, total: update(done, max(total, done)))
        reporter.say(f"the images of {card.title} are in {images}")
    else:
        layout = card.layout.strip().replace("\n", f"\n  {root}/")
        raise VlpromptError(
            f"{card.title} has no automatic download: get it from {card.homepage} and make\n  {root}/{layout}"
        )
    _say_split(card, root, reporter)
    return 0


def run_prepare(name: str, settings: dict[str, Any], reporter: Reporter) -> int:
    """Convert files in another layout to the one that vlprompt reads."""
    card, root = _registered(name, "prepare"), _root(settings)
    if "from" not in settings:
        raise VlpromptError("say where the files are: from=DIR, torchvision's root or the folder of UCF101's videos")
    with reporter.bar(f"preparing {name}") as update:
        source = Path(str(settings["from"])).expanduser()
        lines = prepare_dataset(card, source, root, settings.get("mode", "link"), update)
    for line in lines:
        reporter.say(line)
    _say_split(card, root, reporter)
    return 0


def _say_split(card: Card, root: Path, reporter: Reporter) -> None:
    """Report whether the published split is still missing."""
    split = root / card.folder / card.split_file
    if has_packaged(card.name):
        reporter.say(f"the published split comes with the package: vlprompt data check {card.name} data_root={root}")
    elif card.split == "published" and not (card.letters or split.exists()):
        reporter.say(f"still missing: {split}, from the links in {card.split_page} (or use split=generated)")


def _registered(name: str, verb: str) -> Card:
    card = load_card(find_card(name)[0].name)
    if not card.folder:
        raise VlpromptError(f"{card.title} is embedded: there is nothing to {verb}")
    return card


def _root(settings: dict[str, Any]) -> Path:
    if settings.get("data_root") is None:
        raise VlpromptError("say where the datasets' folders should be: data_root=DIR")
    return Path(str(settings["data_root"])).expanduser()


COMMANDS: dict[str, Callable[[str, dict[str, Any], Reporter], int]] = {
    "list": show_list,
    "info": show_info,
    "check": run_check,
    "download": run_download,
    "prepare": run_prepare,
}
